"""Train equinox networks in a loop and an environment of your own, with `trpo_jax.trust_region_update` alone.

    python examples/own_loop_equinox.py --seed 1 --max-kl 0.02

A pole stands on a cart that a continuous force pushes; the return is the seconds it stays up, at most 5. A line shows the mean
return of the episodes that ended in an iteration, the KL of its policy update (never above max_kl), and the update's outcome.
The return rises from half a second to nearly 5 within 15 iterations.
"""

from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import tyro

import trpo_jax

STEP_SECONDS, EPISODE_STEPS, CRITIC_STEPS = 0.02, 250, 50
optimizer = optax.adam(3e-3)  # for the critic


@dataclass(frozen=True)
class Arguments:
    iterations: int = 25
    seed: int = 0
    num_envs: int = 16
    """Carts side by side (N)."""
    unroll_length: int = 256
    """Steps of each cart in an iteration (T)."""
    max_kl: float = 0.01
    """Largest mean KL(old ‖ new) of a policy update, in nats."""
    print_every: int = 5


class CartPole(NamedTuple):
    observation: jax.Array  # [N, 4]: position (m), velocity, angle (rad), angular velocity
    steps: jax.Array  # [N], since the episode began


def reset(key, num_envs: int) -> CartPole:
    return CartPole(jax.random.uniform(key, (num_envs, 4), minval=-0.05, maxval=0.05), jnp.zeros(num_envs, jnp.int32))


def step(state: CartPole, action):
    """Push with up to 10 N -> (state, terminated, done), without a reset."""
    _, velocity, angle, spin = state.observation.T
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    push = (10.0 * jnp.clip(action[:, 0], -1.0, 1.0) + 0.05 * spin**2 * sin) / 1.1
    spin_rate = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
    rate = jnp.stack([velocity, push - 0.05 * spin_rate * cos / 1.1, spin, spin_rate], axis=-1)
    new = CartPole(state.observation + STEP_SECONDS * rate, state.steps + 1)
    terminated = (jnp.abs(new.observation[:, 0]) > 2.4) | (jnp.abs(new.observation[:, 2]) > 0.2)
    return new, terminated, terminated | (new.steps == EPISODE_STEPS)


class Policy(eqx.Module):
    mean: eqx.nn.MLP
    log_std: jax.Array

    def __call__(self, observation) -> trpo_jax.DiagonalGaussian:
        with jax.default_matmul_precision("highest"):  # as in the update, so that its probability ratio starts at 1
            mean = jnp.vectorize(self.mean, signature="(o)->(a)")(observation)
        return trpo_jax.DiagonalGaussian(mean, jnp.broadcast_to(self.log_std, mean.shape))


def rollout(policy: Policy, carts: CartPole, key, unroll_length: int):
    """Act for T steps, resetting carts that are done -> (carts, experience of [T, N, …])."""

    def act(carts, key):
        action_key, reset_key = jax.random.split(key)
        distribution = policy(carts.observation)
        action = distribution.sample(action_key)
        reached, terminated, done = step(carts, action)
        following = jax.tree.map(lambda a, b: jax.vmap(jnp.where)(done, a, b), reset(reset_key, len(done)), reached)
        return following, (carts.observation, action, distribution.log_prob(action), reached, terminated, done)

    return jax.lax.scan(act, carts, jax.random.split(key, unroll_length))


def fit(critic: eqx.nn.MLP, state: optax.OptState, observation, target):
    """Regress values on targets by least squares -> (critic, optimizer state)."""
    params, static = eqx.partition(critic, eqx.is_inexact_array)

    def descend(carry, _):
        params, state = carry
        value_fn = lambda params: jax.vmap(jax.vmap(eqx.combine(params, static)))(observation)  # noqa: E731
        gradient = jax.grad(lambda params: jnp.mean((value_fn(params) - target) ** 2))(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(descend, (params, state), length=CRITIC_STEPS)
    return eqx.combine(params, static), state


@eqx.filter_jit
def iterate(policy: Policy, critic: eqx.nn.MLP, state: optax.OptState, carts: CartPole, key, arguments: Arguments):
    """Collect experience, improve the policy, fit the critic -> ((policy, critic, state, carts), metrics)."""
    carts, (observation, action, log_prob, reached, terminated, done) = rollout(policy, carts, key, arguments.unroll_length)
    reward = jnp.full(done.shape, STEP_SECONDS)
    value = jax.vmap(jax.vmap(critic))(observation)
    next_value = jax.vmap(jax.vmap(critic))(reached.observation)  # before any reset: a time limit is not a termination
    advantage = trpo_jax.generalized_advantage_estimation(
        reward, value, next_value, terminated, done, discounting=0.99, gae_lambda=0.95
    )
    batch = trpo_jax.Batch(observation, action, log_prob, (advantage - advantage.mean()) / (advantage.std() + 1e-8))

    params, static = eqx.partition(policy, eqx.is_inexact_array)  # a module also holds functions; its arrays are the parameters
    policy_fn = lambda params, observation: eqx.combine(params, static)(observation)  # noqa: E731
    params, info = trpo_jax.trust_region_update(policy_fn, params, batch, trpo_jax.TrustRegionConfig(arguments.max_kl))

    critic, state = fit(critic, state, observation, value + advantage)
    mean_length = jnp.mean(reached.steps, where=done)  # of the episodes that ended; NaN if none did
    metrics = {"return": STEP_SECONDS * mean_length, "kl": info.kl, "outcome": info.outcome}
    return (eqx.combine(params, static), critic, state, carts), metrics


def main(arguments: Arguments):
    """Train -> (policy, history: name -> [iterations])."""
    policy_key, critic_key, carts_key, loop_key = jax.random.split(jax.random.key(arguments.seed), 4)
    policy = Policy(eqx.nn.MLP(4, 1, 64, 2, jnp.tanh, key=policy_key), log_std=jnp.zeros(1))
    critic = eqx.nn.MLP(4, "scalar", 64, 2, jnp.tanh, key=critic_key)
    state = optimizer.init(eqx.filter(critic, eqx.is_inexact_array))
    learner, history = (policy, critic, state, reset(carts_key, arguments.num_envs)), []
    for iteration, key in enumerate(jax.random.split(loop_key, arguments.iterations), start=1):
        learner, metrics = iterate(*learner, key, arguments)
        history.append(metrics)
        if iteration % arguments.print_every == 0:
            outcome = trpo_jax.StepOutcome(int(metrics["outcome"])).name
            print(f"iteration {iteration:3}  return {metrics['return']:4.2f} s  KL {metrics['kl']:.4f}  {outcome}", flush=True)
    return learner[0], jax.tree.map(lambda *leaves: jnp.stack(leaves), *history)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
