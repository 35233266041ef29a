"""Reset and step an environment, and report each violation of the protocol in one sentence."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from trpo_jax.environments.host import AnyEnvironment
from trpo_jax.environments.protocol import Environment, EnvironmentState
from trpo_jax.tree import upcast


def checked_reset(environment: AnyEnvironment, keys: Key[Array, "N"]) -> EnvironmentState:
    """Draw N initial states. Rewards and costs become at least float32, because they are summed.

    Raises:
        TypeError: the result is not a state of N environments. Raised while tracing; the message names the field.
    """
    state = environment.reset(keys)
    _check_state(state, environment, "reset", keys.shape[0])
    return strong(state._replace(reward=upcast(state.reward), cost=upcast(state.cost)))


def checked_step(environment: Environment, state: EnvironmentState, action: Any) -> EnvironmentState:
    """Advance N environments. The result has the dtypes of `state`, which may be wider than those that the step returns.

    Raises:
        TypeError: the result is not a state like `state`, or would have to be rounded to become one. Raised while
            tracing; the message names the field.
    """
    new = environment.step(state, action)
    _check_state(new, environment, "step", state.reward.shape[0])
    return _like_the_last(new, state, type(environment).__name__)


def _like_the_last(new: EnvironmentState, old: EnvironmentState, name: str) -> EnvironmentState:
    """Convert a step's state to the dtypes of the state before it.

    Raises:
        TypeError: another structure or shape, or a dtype that the old one cannot hold.
    """
    for field, part, before in zip(old._fields, new, old, strict=True):
        structures = [jax.tree.structure(each) for each in (part, before)]
        if structures[0] not in structures[1:]:
            got, wanted = (str(structure)[:150] for structure in structures)
            raise TypeError(
                f"environment: got another structure for {field} from step of {name} than from reset, allowed: the same; "
                f"step gave {got}, reset gave {wanted}"
            )
    for (path, leaf), before in zip(jax.tree_util.tree_leaves_with_path(new), jax.tree.leaves(old), strict=True):
        got, wanted = (_describe(each) for each in (leaf, before))
        if jnp.shape(leaf) != jnp.shape(before) or not _holds(jnp.result_type(before), jnp.result_type(leaf)):
            where = jax.tree_util.keystr(path).lstrip(".")
            raise TypeError(
                f"environment: got {got} for {where} from step of {name} but {wanted} from reset, "
                "allowed: the same from both, or a narrower dtype from step"
            )
    return jax.tree.map(lambda x, before: jax.lax.convert_element_type(x, before.dtype), new, old)


def strong(tree: Any) -> Any:
    """Strip weak types, which would make the first state differ from later ones and cost a second compilation."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), tree)


def _check_state(state: Any, environment: Any, method: str, num_envs: int) -> None:
    """Raise a TypeError that names the field if this is not a state of `num_envs` environments."""
    source = f"{method} of {type(environment).__name__}"
    if not isinstance(state, EnvironmentState):
        raise TypeError(f"environment: got a {type(state).__name__} from {source}, allowed: a trpo_jax.EnvironmentState")
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jnp.shape(leaf)[:1] != (num_envs,):
            where = jax.tree_util.keystr(path).lstrip(".")
            raise TypeError(
                f"environment: got shape {jnp.shape(leaf)} for {where} from {source}, "
                f"allowed: one that begins with the number of environments, here {num_envs}"
            )
    for name, kind, hint in (
        ("reward", jnp.floating, "a floating dtype"),
        ("terminated", jnp.bool_, "bool (for Brax's float flag write `done > 0`)"),
        ("truncated", jnp.bool_, "bool (for Brax's float flag write `truncation > 0`)"),
    ):
        leaf = getattr(state, name)
        if not jax.tree_util.all_leaves([leaf]) or jnp.shape(leaf) != (num_envs,):
            raise TypeError(
                f"environment: got {jax.tree.map(jnp.shape, leaf)} for {name} from {source}, "
                f"allowed: a number for each environment, here of shape {(num_envs,)}"
            )
        if not jnp.issubdtype(jnp.result_type(leaf), kind):
            raise TypeError(f"environment: got {jnp.result_type(leaf)} for {name} from {source}, allowed: {hint}")
    _check_cost(state.cost, source, num_envs)
    if not jax.tree.leaves(state.observation):
        raise TypeError(f"environment: got no array for observation from {source}, allowed: at least one")


def _check_cost(cost: Any, source: str, num_envs: int) -> None:
    if cost is None:
        return
    is_array = jax.tree_util.all_leaves([cost]) and jnp.ndim(cost) == 2 and jnp.shape(cost)[1] > 0
    if not is_array or not jnp.issubdtype(jnp.result_type(cost), jnp.floating):
        got = _describe(cost) if jax.tree_util.all_leaves([cost]) else jax.tree.map(jnp.shape, cost)
        raise TypeError(
            f"environment: got {got} for cost from {source}, allowed: numbers of a floating dtype for each environment, "
            f"here of shape ({num_envs}, number of costs), or None"
        )


def _describe(leaf: Any) -> str:
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"


def _holds(wide: Any, narrow: Any) -> bool:
    """Tell whether the dtype `wide` can represent every value of `narrow`."""
    if jnp.issubdtype(wide, jax.dtypes.extended) or jnp.issubdtype(narrow, jax.dtypes.extended):
        return wide == narrow
    return np.can_cast(narrow, wide, "safe")
