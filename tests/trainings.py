"""A training small enough for tests of plumbing, and how two of them are compared."""

import functools

import trpo_jax
from trpo_jax import CriticConfig, PolicyConfig, TRPOConfig, TRPOScheduleConfig, TrustRegionConfig

SMALL = TRPOConfig(
    num_envs=4,
    unroll_length=4,
    episode_length=5,
    critic=CriticConfig(hidden_sizes=(8,), num_minibatches=1, num_epochs=1),
    policy=PolicyConfig(hidden_sizes=(8,)),
    schedule=TRPOScheduleConfig(max_kl_at_end=1.0, learning_rate_at_end=1.0),
)
"""Four environments, iterations of 16 steps; nothing falls, so that a run may be lengthened."""

one_device_train = functools.partial(trpo_jax.train, max_devices_per_host=1)
"""`train` on one of the eight devices that the tests have."""

CLOCKS = ("sps", "walltime", "time_share", "epoch_eval_time")


def without_clocks(metrics):
    """Leave out what is measured in seconds, and NaN, which equals nothing."""
    return {name: value for name, value in metrics.items() if value == value and not any(clock in name for clock in CLOCKS)}


SHARDED = TRPOConfig(
    num_envs=16,
    unroll_length=16,
    episode_length=5,
    # No early stop: by how far rounding lets conjugate gradients converge differs between programs.
    trust_region=TrustRegionConfig(curvature_fraction=0.5, cg_iterations=5, cg_tolerance=0.0),
    critic=CriticConfig(hidden_sizes=(8,), num_minibatches=4, num_epochs=1),
    policy=PolicyConfig(hidden_sizes=(8,)),
    schedule=SMALL.schedule,
)
"""Environments for up to sixteen devices."""
