"""Names of the suites of environments."""

from typing import Literal, get_args

Suite = Literal["brax", "playground", "safety", "gymnasium", "gymnax"]
SUITES: tuple[str, ...] = get_args(Suite)
ON_HOST = ("gymnasium",)
"""Suites whose environments are stepped on the host."""
