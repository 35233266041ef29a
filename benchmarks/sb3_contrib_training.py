"""A whole training on real MuJoCo against sb3-contrib's TRPO: how long both take with the same settings.

    pip install -e ".[bench]"
    python benchmarks/sb3_contrib_training.py [--environments HalfCheetah-v5] [--steps 1000000] [--json FILE]

Both have the batch, networks, discounts, normalization, conjugate gradients and critic passes of configs/gymnasium. They take
turns in one process, with the same number of threads. Seconds are counted from the call that trains, compilation included;
nothing is evaluated. Returns are those of training's last episodes.
"""

import dataclasses
import os
import time
from typing import Any

import gymnasium
import jax
import numpy as np
import sb3_contrib
import torch
import tyro
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import report
import trpo_jax
from trpo_jax.training.run_config import shipped_config


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compare trainings with sb3-contrib's."""

    environments: tuple[str, ...] = ("HalfCheetah-v5", "Hopper-v5")
    steps: int = 1_000_000
    """Environment steps of each training."""
    seed: int = 0
    json: str | None = None
    """Where to write the result."""


def main(arguments: Arguments) -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows = []
    for name in arguments.environments:
        agent: Any = shipped_config(name, suite="gymnasium", accelerator=False).agent
        ours, our_return = train_ours(name, agent, arguments)
        jax.clear_caches()
        theirs, their_return = train_theirs(name, agent, arguments)
        rows.append(
            {
                "environment": name,
                "steps": arguments.steps,
                "trpo_jax, seconds": ours,
                "sb3-contrib, seconds": theirs,
                "ratio": ours / theirs,
                "trpo_jax, return": our_return,
                "sb3-contrib, return": their_return,
            }
        )
    report.publish("whole trainings", rows, arguments.json)


def train_ours(name: str, agent: Any, arguments: Arguments) -> tuple[float, float]:
    """Return seconds and the return of training's last episodes."""
    seen: list[float] = []

    def note(_: int, metrics: dict[str, float]) -> None:
        seen.append(metrics["training/episode_reward"])

    start = time.perf_counter()
    options = {"suite": "gymnasium", "config": agent, "seed": arguments.seed, "num_eval_envs": 0}
    trpo_jax.train(name, arguments.steps, **options, iteration_fn=note)
    return time.perf_counter() - start, float(seen[-1])


def train_theirs(name: str, agent: Any, arguments: Arguments) -> tuple[float, float]:
    """Return the same of sb3-contrib's TRPO with the settings of `agent`."""
    size = gymnasium.make(name).action_space.shape[0]
    environments = VecNormalize(make_vec_env(name, agent.num_envs, seed=arguments.seed), gamma=agent.discounting)
    model = sb3_contrib.TRPO(
        "MlpPolicy",
        environments,
        learning_rate=agent.critic.learning_rate,
        n_steps=agent.unroll_length,
        batch_size=agent.batch_size // agent.critic.num_minibatches,
        n_critic_updates=agent.critic.num_epochs,
        gamma=agent.discounting,
        gae_lambda=agent.gae_lambda,
        cg_max_steps=agent.trust_region.cg_iterations,
        # Its KL is a mean over the action's components where the KL of a Gaussian is their sum.
        cg_damping=agent.trust_region.damping / size,
        target_kl=agent.trust_region.max_kl / size,
        policy_kwargs={
            "net_arch": {"pi": list(agent.policy.hidden_sizes), "vf": list(agent.critic.hidden_sizes)},
            "log_std_init": agent.policy.init_log_std,
        },
        seed=arguments.seed,
        device="cpu",
    )
    start = time.perf_counter()
    model.learn(arguments.steps)
    seconds = time.perf_counter() - start
    return seconds, float(np.mean([episode["r"] for episode in model.ep_info_buffer]))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
