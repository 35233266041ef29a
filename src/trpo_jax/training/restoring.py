"""Start a training with the parameters of another one."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax.agent.inference import Params
from trpo_jax.agent.state import TrainState, inference_params
from trpo_jax.errors import ConfigError
from trpo_jax.execution.host_arrays import to_host
from trpo_jax.execution.runner import Runner
from trpo_jax.training.checkpoint import load_params


class ParamsSource(NamedTuple):
    """Source of a training's first parameters. If `path` and `params` are None, they are drawn."""

    path: str | Path | None
    """Folder of checkpoints; the newest readable one is used."""
    params: Params | None
    """(normalizer, policy, value); these override `path`."""
    restore_value_fn: bool
    """False keeps the value function as drawn."""


def restored(runner: Runner, state: TrainState, source: ParamsSource) -> TrainState:
    """Put parameters from elsewhere into a fresh state.

    Raises:
        ConfigError: parameters of other shapes or dtypes, or a value function in other units of reward.
        CheckpointError: no checkpoint that can be read.
    """
    path, params, restore_value_fn = source
    if params is None and path is None:
        return state
    host_state = to_host(state)
    fresh = inference_params(host_state)
    params = Params(*(load_params(str(path), fresh)[1] if params is None else params))
    value = params.value if restore_value_fn else fresh.value
    _check_fits("normalizer", params.normalizer, fresh.normalizer)
    _check_fits("policy", params.policy, fresh.policy)
    _check_fits("value", value.params, fresh.value.params)
    scaling = to_host(jnp.asarray(value.reward_scaling))
    if host_state.critic.returns is None and float(scaling) != float(fresh.value.reward_scaling):
        allowed = f"{scaling}, with which the restored value function was trained; or set restore_value_fn to false"
        raise ConfigError("reward_scaling", float(fresh.value.reward_scaling), allowed)
    normalizer, policy, value_params = to_host(jax.tree.map(jnp.asarray, (params.normalizer, params.policy, value.params)))
    learner = host_state.learner._replace(normalizer=normalizer, policy=policy)
    critic = host_state.critic._replace(critic=fresh.value._replace(params=value_params, reward_scaling=scaling))
    return runner.place(host_state._replace(learner=learner, critic=critic))


def _check_fits(name: str, params: Any, like: Any) -> None:
    given, wanted = (jax.tree.map(np.shape, tree) for tree in (params, like))
    if given != wanted:
        raise ConfigError("restore_params", given, f"{name} of shapes {wanted}, those of this training")
    for (path, leaf), other in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(like), strict=True):
        if getattr(leaf, "dtype", other.dtype) != other.dtype:
            allowed = f"{other.dtype}, the dtype of {name}{jax.tree_util.keystr(path)} in this training; astype converts"
            raise ConfigError("restore_params", str(leaf.dtype), allowed)
