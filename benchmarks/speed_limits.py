"""How fast robots run without a limit: half of it is the limit of their tasks in the suite "safety".

    python benchmarks/speed_limits.py [--robots hopper ant] [--num-timesteps 5_000_000] [--seed 5] [--json FILE]

Trains TRPO with the settings that ship for the task, then lets the mode of the policy play.
"""

import dataclasses

import jax
import jax.numpy as jnp
import tyro

import report
import trpo_jax
from trpo_jax.environments.brax import load_environment
from trpo_jax.environments.safety import SPEED_LIMITS, SUFFIX
from trpo_jax.environments.speed_limit import speed


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure speeds of robots."""

    robots: tuple[str, ...] = tuple(SPEED_LIMITS)
    """Names of Brax's environments."""
    num_timesteps: int = 5_000_000
    """Environment steps of each training."""
    seed: int = 5
    episodes: int = 64
    """Episodes that are played, of up to 1000 steps."""
    json: str | None = None
    """Where to write the result."""


def main(arguments: Arguments) -> None:
    trpo_jax.enable_compilation_cache()
    rows = []
    for robot in arguments.robots:
        rows.append(measure(robot, arguments))
        report.publish("metres per second", rows, arguments.json)


def measure(robot: str, arguments: Arguments) -> dict:
    make_policy, params, _ = trpo_jax.train(
        robot + SUFFIX,
        arguments.num_timesteps,
        suite="safety",
        algorithm="trpo",
        seed=arguments.seed,
        num_eval_envs=0,
        progress=True,
    )
    speeds, alive = play(robot, make_policy(params, deterministic=True), arguments.episodes)
    mean = float(jnp.mean(jnp.sum(speeds * alive, axis=0) / jnp.sum(alive, axis=0)))
    return {
        "robot": robot,
        "steps": arguments.num_timesteps,
        "mean speed": mean,
        "half": mean / 2,
        "limit": SPEED_LIMITS[robot],
        "steps of an episode": float(jnp.mean(jnp.sum(alive, axis=0))),
    }


def play(robot: str, policy, episodes: int, length: int = 1000) -> tuple[jax.Array, jax.Array]:
    """Return the speed in each step, and 1 if its episode had not ended before: `[length, episodes]` each."""
    environment = load_environment(robot).environment

    def step(carry, _):
        state, alive = carry
        action, _ = policy(state.obs)
        state = jax.vmap(environment.step)(state, action)
        return (state, alive * (1.0 - state.done)), (jax.vmap(speed)(state), alive)

    @jax.jit
    def run(keys):
        start = jax.vmap(environment.reset)(keys), jnp.ones(episodes)
        return jax.lax.scan(step, start, None, length=length)[1]

    return run(jax.random.split(jax.random.key(0), episodes))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
