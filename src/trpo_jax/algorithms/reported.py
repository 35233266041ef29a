"""Metrics of the algorithms that take trust-region steps."""

import enum
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from trpo_jax.agent.policy_update import Metrics

FIELDS = (
    *("kl", "max_kl", "entropy", "surrogate_improvement", "expected_improvement", "accepted", "outcome", "step_fraction"),
    *("cg_iterations", "cg_residual"),
)
"""Fields of an update's info that become metrics."""


def reported(info: Any, names: Sequence[str] = FIELDS) -> Metrics:
    """Return some fields of an update's info as metrics."""
    return {name: getattr(info, name).astype(jnp.float32) for name in names}


def counted(outcomes: Int[Array, "n"], outcome: Int[Array, ""], kinds: type[enum.IntEnum]) -> tuple[Int[Array, "n"], Metrics]:
    """Count an outcome; return how often each has occurred, as counts and as metrics."""
    outcomes = outcomes + jax.nn.one_hot(outcome, len(kinds), dtype=jnp.int32)
    return outcomes, {f"num_{kind.name.lower()}": outcomes[kind].astype(jnp.float32) for kind in kinds}
