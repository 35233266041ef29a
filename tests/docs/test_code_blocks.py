"""The python blocks of the documentation run as they stand, in order, each page in one namespace."""

import re
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import pytest

from trpo_jax.algorithms.registry import ALGORITHMS

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def each_block_after_the_setup_ends_in_an_accepted_update(number, names):
    if number == 0:
        assert names["action"].shape == (3, 2)
        assert names["carry"].shape == (3, 16)
    if number > 1:
        assert "info" in names, f"block {number} makes no update"
        info = names.pop("info")
        assert info.accepted, f"block {number}"
        assert 0 < info.kl <= names["config"].max_kl, f"block {number}"


def the_last_update_was_accepted(number, names):
    assert jnp.all(names["info"].accepted), f"block {number}"


def the_mass_has_learned_to_come_to_its_goal(number, names):
    if number == 1:
        assert names["metrics"]["eval/episode_reward"] > 84
    elif number == 2:
        assert jnp.mean(names["state"].reward) > 0.8


def every_step_kept_its_bound(number, names):
    assert "info" in names or "metrics" in names
    if "info" in names:
        assert names["info"].accepted
    if "metrics" in names:
        assert jnp.all(jnp.asarray(names["metrics"]["training/kl"]) <= jnp.asarray(names["metrics"]["training/kl_bound"]))


def the_algorithm_of_ones_own_has_trained(number, names):
    assert names["metrics"]["training/gradient_size"] > 0
    del ALGORITHMS["sign"]


# A page and what must hold after each of its blocks: called with the block's number and the names defined so far.
PAGES = {
    "docs/algorithms.md": the_algorithm_of_ones_own_has_trained,
    "README.md": every_step_kept_its_bound,
    "docs/environments.md": the_mass_has_learned_to_come_to_its_goal,
    "docs/policies.md": each_block_after_the_setup_ends_in_an_accepted_update,
    "docs/solver.md": the_last_update_was_accepted,
    "docs/training.md": every_step_kept_its_bound,
}


SLOW = ("README.md", "docs/policies.md", "docs/training.md")
"""What they show is tested elsewhere."""


def code_blocks(page):
    """The page's blocks, compiled such that an error names the page and its line."""
    text = (ROOT / page).read_text()
    for match in BLOCK.finditer(text):
        lines_before = text.count("\n", 0, match.start(1))
        yield compile("\n" * lines_before + match[1], str(ROOT / page), "exec")


@pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning", "ignore:Brax System:UserWarning")
@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in PAGES])
def test_the_code_of_a_page_runs_as_it_stands(page, monkeypatch):
    module = types.ModuleType(Path(page).stem)
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look for what a class refers to
    blocks = list(code_blocks(page))
    assert blocks
    for number, block in enumerate(blocks):
        exec(block, vars(module))
        PAGES[page](number, vars(module))
