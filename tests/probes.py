"""Tiny pure-JAX environments with known answers, behind the package's own protocol."""

import jax
import jax.numpy as jnp

from trpo_jax.environments.protocol import EnvironmentState
from trpo_jax.spaces import Box, Discrete


def _flags(n, terminated=False):
    return jnp.broadcast_to(terminated, n), jnp.zeros(n, bool)


class ConstantReward:
    """Pays 1 every step, never terminates; the observation is noise. Its value is 1/(1 - γ) everywhere."""

    action_space = Box(1)

    def reset(self, keys):
        n = keys.shape[0]
        return EnvironmentState(keys, jax.vmap(lambda k: jax.random.normal(k, (2,)))(keys), jnp.zeros(n), *_flags(n))

    def step(self, state, action):
        keys = jax.vmap(lambda k: jax.random.split(k)[0])(state.simulator)
        return self.reset(keys)._replace(reward=jnp.ones(action.shape[0]))


class Counter:
    """Observes (start, steps): the start is drawn once an episode; terminates after `lifetime` steps; pays the step count."""

    action_space = Box(2)

    def __init__(self, lifetime=1_000_000):
        self.lifetime = lifetime

    def reset(self, keys):
        n = keys.shape[0]
        start = jax.vmap(jax.random.uniform)(keys)
        return EnvironmentState(start, jnp.stack([start, jnp.zeros(n)], -1), jnp.zeros(n), *_flags(n))

    def step(self, state, action):
        steps = state.observation[:, 1] + 1
        observation = jnp.stack([state.simulator, steps], -1)
        return EnvironmentState(state.simulator, observation, steps, *_flags(steps.shape, steps >= self.lifetime))


class Target:
    """Pays -(action - target)² summed over two dimensions, where the target is observed and drawn anew every step."""

    action_space = Box(2)

    def reset(self, keys):
        n = keys.shape[0]
        target = jax.vmap(lambda k: jax.random.uniform(k, (2,), minval=-0.8, maxval=0.8))(keys)
        return EnvironmentState(keys, target, jnp.zeros(n), *_flags(n))

    def step(self, state, action):
        keys = jax.vmap(lambda k: jax.random.split(k)[0])(state.simulator)
        return self.reset(keys)._replace(reward=-jnp.sum((action - state.observation) ** 2, -1))


class Bandit:
    """Three arms that pay 0, 0 and 1; one observation."""

    action_space = Discrete(3)

    def reset(self, keys):
        n = keys.shape[0]
        return EnvironmentState((), jnp.ones((n, 1)), jnp.zeros(n), *_flags(n))

    def step(self, state, action):
        return state._replace(reward=(action == 2).astype(jnp.float32))


class WithCosts:
    """An environment with two costs: 1 for a reward below -0.1, and 0.5 in every step."""

    def __init__(self, environment):
        self.environment, self.action_space = environment, environment.action_space

    def reset(self, keys):
        return self.environment.reset(keys)._replace(cost=jnp.zeros((keys.shape[0], 2)))

    def step(self, state, action):
        new = self.environment.step(state, action)
        low = (new.reward < -0.1).astype(jnp.float32)
        return new._replace(cost=jnp.stack([low, jnp.full_like(low, 0.5)], axis=-1))


class Toll:
    """Pays the first component of the action in [-1, 1]², and costs its square in half of the states: those that observe 1."""

    action_space = Box(2)

    def reset(self, keys):
        n = keys.shape[0]
        tolled = jax.vmap(jax.random.bernoulli)(keys).astype(jnp.float32)
        return EnvironmentState(keys, tolled[:, None], jnp.zeros(n), *_flags(n), jnp.zeros((n, 1)))

    def step(self, state, action):
        keys = jax.vmap(lambda k: jax.random.split(k)[0])(state.simulator)
        cost = state.observation * action[:, :1] ** 2
        return self.reset(keys)._replace(reward=action[:, 0], cost=cost)
