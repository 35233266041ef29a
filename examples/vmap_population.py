"""Train a population, several seeds for each of several max_kl, in one program: `trpo_jax.make_trpo` under `jax.vmap`.

    python examples/vmap_population.py --environment inverted_pendulum --seeds 3 --max-kls 0.001 0.01 0.1

At the end a table shows, for each max_kl, the return of the latest episodes and the KL of the updates averaged over iterations,
each as mean ± standard deviation over seeds.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from trpo_jax import Agent, Environment, TRPOConfig, make_trpo


@dataclass(frozen=True)
class Arguments:
    environment: str = "inverted_pendulum"
    """Name of a Brax environment; it runs on the spring backend."""
    seeds: int = 3
    """Runs for each max_kl."""
    max_kls: tuple[float, ...] = (0.001, 0.01, 0.1)
    """Largest mean KL(old ‖ new) of an update, in nats."""
    iterations: int = 40
    num_envs: int = 16
    """Environments side by side in each run."""


def train_population(trpo: Agent, max_kls: jax.Array, keys: jax.Array, iterations: int):
    """Train one member for each of P values and keys -> (state of [P, …], metrics: name -> [iterations, P])."""

    def init(max_kl, key):
        config = replace(trpo.config, trust_region=replace(trpo.config.trust_region, max_kl=max_kl))
        return trpo.init(key, config, num_iterations=iterations)

    state = jax.jit(jax.vmap(init))(max_kls, keys)
    update = jax.jit(jax.vmap(trpo.update), donate_argnums=0)
    history = []
    for iteration in range(1, iterations + 1):
        state, metrics = update(state)
        history.append(metrics)
        if iteration % 10 == 0:
            print(f"iteration {iteration}: best return {np.max(metrics['training/episode_reward']):.1f}", flush=True)
    return state, jax.tree.map(lambda *leaves: np.stack(leaves), *history)


def main(arguments: Arguments, environment: Environment | None = None, config: TRPOConfig | None = None) -> np.ndarray:
    """Train, print the table, and return it: a row (max_kl, return, its sd, KL, its sd) for each max_kl."""
    config = replace(config or TRPOConfig(), num_envs=arguments.num_envs)
    trpo = make_trpo(environment or arguments.environment, config)
    shape = len(arguments.max_kls), arguments.seeds
    max_kls = jnp.repeat(jnp.asarray(arguments.max_kls), arguments.seeds)
    keys = jnp.tile(jax.random.split(jax.random.key(0), arguments.seeds), len(arguments.max_kls))  # every max_kl gets all seeds
    _, metrics = train_population(trpo, max_kls, keys, arguments.iterations)
    returns = metrics["training/episode_reward"][-1].reshape(shape)
    kl = metrics["training/kl"].mean(axis=0).reshape(shape)
    table = np.stack([arguments.max_kls, returns.mean(1), returns.std(1), kl.mean(1), kl.std(1)], axis=1)
    print("  max_kl            return                     KL")
    for row in table:
        print("{:8.4g} {:8.1f} ± {:6.1f}   {:9.5f} ± {:8.5f}".format(*row))
    return table


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
