"""Training with networks that have a memory, behind probe environments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probes import Counter
from trpo_jax import (
    ConfigError,
    CPOConfig,
    CriticConfig,
    Discrete,
    EnvironmentState,
    PolicyConfig,
    Sequence,
    TRPOConfig,
    inference_params,
    make_agent,
    make_trpo,
)
from trpo_jax.agent.evaluate import make_evaluator
from trpo_jax.agent.minibatches import minibatches
from trpo_jax.agent.stages import advance

LENGTH = 4


class Recall:
    """Shows a cue, +1 or -1, in the first of four steps; the last one pays 1 for the action that fits it, else -1."""

    action_space = Discrete(2)

    def reset(self, keys):
        cue = jax.vmap(jax.random.bernoulli)(keys)
        shown = jnp.stack([jnp.where(cue, 1.0, -1.0), jnp.zeros(keys.shape)], -1)
        nothing, no = jnp.zeros(keys.shape), jnp.zeros(keys.shape, bool)
        return EnvironmentState((cue, jnp.zeros(keys.shape, jnp.int32)), shown, nothing, no, no)

    def step(self, state, action):
        cue, steps = state.simulator
        steps = steps + 1
        ends = steps == LENGTH
        reward = jnp.where(ends, jnp.where(action == cue, 1.0, -1.0), 0.0)
        asked = jnp.stack([jnp.zeros(ends.shape), (steps == LENGTH - 1).astype(float)], -1)
        return EnvironmentState((cue, steps), asked, reward, ends, jnp.zeros(ends.shape, bool))


def config(kind, critic=None, **fields):
    return TRPOConfig(
        **{"num_envs": 64, "unroll_length": 16} | fields,
        policy=PolicyConfig(network=kind, hidden_sizes=(16,)),
        critic=CriticConfig(network=critic or kind, hidden_sizes=(16,), num_minibatches=4),
    )


@pytest.mark.parametrize(("kind", "solves"), [("mlp", False), ("gru", True), ("lstm", True)])
def test_only_a_policy_with_memory_recalls(kind, solves):
    agent = make_trpo(Recall(), config(kind))
    step = jax.jit(lambda state: jax.lax.scan(lambda state, _: agent.update.__wrapped__(state), state, None, length=25))
    state, metrics = step(agent.init(jax.random.key(0)))
    assert np.max(metrics["training/kl"]) <= agent.config.trust_region.max_kl
    late = float(np.mean(metrics["training/episode_reward"][-5:]))
    assert late > 0.9 if solves else abs(late) < 0.3
    evaluate = make_evaluator(agent.environment, agent.make_policy, num_episodes=64, deterministic=True)
    mean = float(np.mean(evaluate(inference_params(state), jax.random.key(1)).episode_return))
    assert mean > 0.9 if solves else mean < 0.5


@pytest.mark.parametrize("critic", ["mlp", "gru"])
def test_a_rollout_is_seen_as_it_was_acted(critic):
    """The policy's log-probabilities of a whole sequence are those of its steps, over resets and from rollout to rollout."""
    agent = make_trpo(Recall(), config("gru", critic, unroll_length=6))
    state = agent.init(jax.random.key(0))
    for _ in range(2):
        keys, *_ = advance(state.key, state.iteration, state.num_iterations)
        starts = agent.draw(keys.starts)
        rollout, transition, _ = jax.jit(agent.collect)(state.learner, state.rollout, starts, keys.rollout)
        memory = transition.memory
        ended = np.asarray(transition.terminated | transition.truncated)
        np.testing.assert_array_equal(memory.begins[1:], ended[:-1])
        np.testing.assert_array_equal(rollout.memory.begins, ended[-1])
        normalizer = state.learner.normalizer
        seen = (transition.observation - normalizer.mean) / normalizer.std
        sequence = Sequence(jnp.clip(seen, -10, 10), memory.begins, memory.carry)
        whole = agent.networks.policy.apply(state.learner.policy, sequence)
        np.testing.assert_allclose(whole.log_prob(transition.action), transition.log_prob, atol=1e-5)
        state = agent.update(state)[0]


def test_the_memory_of_the_critic_goes_on_from_rollout_to_rollout():
    agent = make_trpo(Recall(), config("mlp", "gru", unroll_length=4))
    state = agent.init(jax.random.key(0))
    np.testing.assert_array_equal(state.critic.carry, 0.0)
    keys, *_ = advance(state.key, state.iteration, state.num_iterations)
    _, transition, _ = jax.jit(agent.collect)(state.learner, state.rollout, agent.draw(keys.starts), keys.rollout)
    carry = state.critic.carry
    state, _ = agent.update(state)
    assert state.rollout.memory.carry is None
    for begins, observation in zip(transition.memory.begins, transition.observation, strict=True):  # not normalized yet
        carry = jnp.where(begins[:, None], 0.0, carry)
        carry, _ = agent.networks.critic.step(state.critic.critic.params, carry, observation)
    np.testing.assert_allclose(state.critic.carry, carry, atol=1e-5)


def test_minibatches_of_sequences_hold_whole_environments():
    time, env = jnp.meshgrid(jnp.arange(6), jnp.arange(10), indexing="ij")
    sequence = Sequence(100 * env + time, jnp.zeros((6, 10), bool), jnp.zeros((6, 10, 2)))

    cut = minibatches({"seen": sequence}, jax.random.key(0), 3)["seen"]
    assert cut.observation.shape == (3, 6, 3)
    assert cut.carry.shape == (3, 6, 3, 2)
    held = np.asarray(cut.observation)
    np.testing.assert_array_equal(held % 100, np.broadcast_to(np.arange(6)[None, :, None], held.shape))
    envs = held[:, 0].ravel() // 100
    assert len(set(envs)) == 9
    assert (np.diff(envs) < 0).any(), "not shuffled"
    with pytest.raises(ConfigError, match=r"num_minibatches: got 11, allowed: at most num_envs = 10 for a network with memory"):
        minibatches({"seen": sequence}, jax.random.key(0), 11)


@pytest.mark.parametrize("name", ["ppo", "natural_gradient", "penalty", "policy_gradient", "penalty_adam"])
def test_every_algorithm_takes_networks_with_memory(name):
    from trpo_jax.algorithms.registry import default_config

    plain = config("gru", num_envs=8, unroll_length=8)
    own = dataclasses.replace(default_config(name), num_envs=8, unroll_length=8, policy=plain.policy, critic=plain.critic)
    if hasattr(own, "num_minibatches"):
        own = dataclasses.replace(own, num_minibatches=2)
    agent = make_agent(Recall(), own)
    _, metrics = agent.update(agent.init(jax.random.key(0)))
    assert np.isfinite(metrics["training/kl"])


def test_a_policy_is_called_with_its_memory():
    agent = make_trpo(Recall(), config("lstm"))
    policy = agent.make_policy(inference_params(agent.init(jax.random.key(0))))
    carry = agent.make_policy.initial_carry((3,))
    action, extras = policy(jnp.ones((3, 2)), jax.random.key(1), carry)
    assert action.shape == (3,)
    assert jax.tree.map(jnp.shape, extras["carry"]) == jax.tree.map(jnp.shape, carry)
    again, _ = policy(jnp.ones((3, 2)), jax.random.key(1), extras["carry"])
    assert again.shape == (3,)
    with pytest.raises(TypeError, match=r"carry: got None, allowed: make_policy\.initial_carry"):
        policy(jnp.ones((3, 2)), jax.random.key(1))
    assert make_trpo(Recall(), config("mlp")).make_policy.initial_carry((3,)) is None


def test_values_of_a_sequence_are_in_units_of_the_reward():
    agent = make_trpo(Recall(), config("gru", reward_scaling=0.5))
    params = inference_params(agent.init(jax.random.key(0)))
    carry = jnp.zeros((5, 3, 16))
    sequence = Sequence(jnp.full((5, 3, 2), 0.3), jnp.zeros((5, 3), bool), carry)
    values = agent.make_policy.value_fn(params)(sequence)
    np.testing.assert_allclose(values, agent.networks.critic.apply(params.value.params, sequence) / 0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler": "vine"}, r'policy\.network: .*allowed: mlp with the sampler "vine"'),
        (
            {"policy": PolicyConfig(network="gru", hidden_sizes=())},
            r"policy\.hidden_sizes: got \(\), allowed: at least one",
        ),
    ],
)
def test_where_a_memory_cannot_be_used_one_sentence_says_so(fields, message):
    with pytest.raises(ConfigError, match=message):
        make_trpo(Recall(), dataclasses.replace(config("gru"), **fields))


def test_a_critic_with_memory_is_refused_where_costs_are_limited():
    class Costly(Counter):
        def reset(self, keys):
            return super().reset(keys)._replace(cost=jnp.zeros((keys.shape[0], 1)))

    with pytest.raises(ConfigError, match=r"critic\.network: .*allowed: mlp for an algorithm that limits costs"):
        make_agent(Costly(), CPOConfig(critic=CriticConfig(network="gru")))
