"""Brax's PPO as a competitor: its settings by scale, its speed, and what it lacks on today's jax."""

import contextlib
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trpo_jax.environments.brax import load_environment  # first: it keeps back what Brax says when it is imported

# isort: split
from brax.training.agents.ppo import networks as ppo_networks
from brax.training.agents.ppo import train as ppo

Settings = Mapping[str, Any]
"""Keywords of `brax.training.agents.ppo.train`. Beside them its networks' layers, policy_hidden_layer_sizes and
value_hidden_layer_sizes, and learning_rate_at_end, the share of the learning rate to which it falls over the training."""

SMALL_SCALE: Settings = {
    "num_envs": 64,
    "unroll_length": 10,
    "batch_size": 32,
    "num_minibatches": 16,
    "num_updates_per_batch": 4,
    "learning_rate": 2e-3,
    "entropy_cost": 1e-2,
    "discounting": 0.97,
    "reward_scaling": 10.0,
    "episode_length": 1000,
    "normalize_observations": True,
    "policy_hidden_layer_sizes": (64, 64),
    "value_hidden_layer_sizes": (64, 64),
}
"""For ant (spring) on a few CPU cores, with networks as small as ours: of seven settings tried, one seed each, the one that
reached a return of 3500 in the fewest steps, at no more work a step than the others that reached it. With the published
learning rate, 3e-4, PPO stayed below 3000 for 1M steps."""

ONE_SETTING: Settings = {
    **SMALL_SCALE,
    "discounting": 0.995,
    "reward_scaling": 1.0,
    "unroll_length": 20,
    "num_minibatches": 8,
    "num_updates_per_batch": 16,
    "gae_lambda": 0.97,
    "learning_rate_at_end": 0.1,
}
"""For several environments alike: the best of what `ppo_search.py` tried, by mean normalized return, see docs/benchmarks."""

_PUBLISHED: Settings = {
    "num_envs": 2048,
    "unroll_length": 5,
    "batch_size": 1024,
    "num_minibatches": 32,
    "num_updates_per_batch": 4,
    "learning_rate": 3e-4,
    "entropy_cost": 1e-2,
    "discounting": 0.97,
    "reward_scaling": 10.0,
    "episode_length": 1000,
    "normalize_observations": True,
}
_LONGER: Settings = {**_PUBLISHED, "num_updates_per_batch": 8, "entropy_cost": 1e-3}

PUBLISHED: dict[str, Settings] = {
    "ant": {**_PUBLISHED, "num_envs": 4096, "batch_size": 2048},
    "halfcheetah": {**_LONGER, "unroll_length": 20, "batch_size": 512, "discounting": 0.95, "reward_scaling": 1.0},
    "humanoid": {**_LONGER, "unroll_length": 10, "reward_scaling": 0.1},
    "inverted_double_pendulum": _PUBLISHED,
    "inverted_pendulum": _PUBLISHED,
    "reacher": {**_LONGER, "unroll_length": 50, "batch_size": 256, "discounting": 0.95, "reward_scaling": 5.0},
}
"""What Brax's training notebook runs on an accelerator, for 2M to 50M steps, with the networks that are PPO's default. For the
reacher it repeats each action four times, which is another task and left out here. Hopper and walker2d it trains by SAC."""


def train_ppo(
    environment: str,
    num_timesteps: int,
    settings: Settings,
    *,
    seed: int,
    num_evals: int,
    policy_params_fn: Callable[..., None],
    backend: str = "spring",
    num_devices: int = 1,
) -> None:
    """Train by Brax's PPO without its own evaluations.

    Args:
        environment: name of a Brax environment.
        num_timesteps: environment steps, which PPO rounds up.
        settings: `Settings`.
        seed: of everything random.
        num_evals: calls of `policy_params_fn`, evenly spread from step 0 to the end.
        policy_params_fn: (steps, make_policy, params) -> None, as of `trpo_jax.train`; may raise to end the training.
        backend: Brax's physics.
        num_devices: local devices to train on.
    """
    sizes = {name: value for name, value in settings.items() if name.endswith("_hidden_layer_sizes")}
    ours = {*sizes, "learning_rate_at_end"}
    falling: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if (at_end := settings.get("learning_rate_at_end", 1.0)) != 1:
        falling = falling_learning_rate(at_end, gradient_steps(num_timesteps, settings, num_evals))
    with device_put_replicated(), falling:
        ppo.train(
            load_environment(environment, backend).environment,
            num_timesteps,
            max_devices_per_host=num_devices,
            network_factory=functools.partial(ppo_networks.make_ppo_networks, **sizes),
            seed=seed,
            num_evals=num_evals,
            run_evals=False,
            policy_params_fn=policy_params_fn,
            **{name: value for name, value in settings.items() if name not in ours},
        )


class Stopwatch:
    """What a training passes its policy to every so often: times the stretches between, the first of which ends at step 0."""

    def __init__(self) -> None:
        self.stretches: list[float] = []
        self._resumed = time.perf_counter()

    def __call__(self, steps: int, make_policy: Any, params: Any) -> None:
        jax.block_until_ready(params)
        self.stretches.append(time.perf_counter() - self._resumed)
        self.visit(int(steps), make_policy, params)
        self._resumed = time.perf_counter()

    def visit(self, steps: int, make_policy: Any, params: Any) -> None:
        """Do what is not to be timed."""


def steady_stretch(stretches: Sequence[float]) -> float:
    """Return the median seconds of a stretch of training, leaving out the first three where there are more.

    They are the one before step 0, the one that compiles, and one in which PPO compiles again, since the state that its
    first call returns has another type than the one it was given.
    """
    return statistics.median(stretches[3:] or stretches[-1:])


def ppo_speed(environment: str, settings: Settings, *, rounds: int, backend: str, num_devices: int) -> float:
    """Return environment steps a second of PPO's training, compilation left out: the median over some training steps."""
    steps = settings["batch_size"] * settings["num_minibatches"] * settings["unroll_length"]
    stopwatch = Stopwatch()
    num_stretches = rounds + 2
    options = {"num_evals": num_stretches + 1, "policy_params_fn": stopwatch, "seed": 0}
    train_ppo(environment, steps * num_stretches, settings, backend=backend, num_devices=num_devices, **options)
    return steps / steady_stretch(stopwatch.stretches)


def gradient_steps(num_timesteps: int, settings: Settings, num_evals: int) -> int:
    """Return how often PPO's optimizer is called in a training, which is as long as Brax rounds it."""
    steps = settings["batch_size"] * settings["num_minibatches"] * settings["unroll_length"] * settings.get("action_repeat", 1)
    epochs = max(num_evals - 1, 1)
    return (
        epochs * math.ceil(num_timesteps / (epochs * steps)) * settings["num_updates_per_batch"] * settings["num_minibatches"]
    )


@contextlib.contextmanager
def falling_learning_rate(at_end: float, num_steps: int) -> Iterator[None]:
    """Patch `optax.adam` so that its learning rate falls linearly to a share of it: Brax's PPO takes a number only."""
    adam = optax.adam

    def falling(learning_rate: float) -> optax.GradientTransformation:
        return adam(optax.linear_schedule(learning_rate, at_end * learning_rate, num_steps))

    with mock.patch.object(optax, "adam", falling):
        yield


@contextlib.contextmanager
def device_put_replicated() -> Iterator[None]:
    """Give jax back, for the duration, the function that Brax 0.14.2 calls and that jax 0.10 has dropped."""
    with mock.patch.object(jax, "device_put_replicated", replicate, create=True):
        yield


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copy every leaf to each of D devices: `[...]` becomes `[D, ...]`, split over the devices."""
    mesh = jax.sharding.Mesh(np.array(devices), ("devices",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
    stacked = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(devices), *jnp.shape(leaf))), tree)
    return jax.device_put(stacked, sharding)
