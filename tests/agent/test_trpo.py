import dataclasses
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probes import Bandit, ConstantReward, Counter, Target
from trpo_jax import (
    ConfigError,
    CriticConfig,
    PolicyConfig,
    StepOutcome,
    TRPOConfig,
    TrustRegionConfig,
    inference_params,
    make_trpo,
)
from trpo_jax.agent.metrics import episode_metrics, record_step
from trpo_jax.agent.rollout import RolloutState

SMALL = TRPOConfig(
    num_envs=8,
    unroll_length=8,
    episode_length=5,
    # No early stop: by how far rounding lets conjugate gradients converge differs between programs.
    trust_region=TrustRegionConfig(cg_iterations=5, cg_tolerance=0.0),
    critic=CriticConfig(hidden_sizes=(16,), num_minibatches=2, num_epochs=2),
    policy=PolicyConfig(hidden_sizes=(16,)),
)
METRICS = (
    *(
        "episode_reward",
        "episode_length",
        "num_episodes",
        "kl",
        "max_kl",
        "surrogate_improvement",
        "expected_improvement",
        "accepted",
    ),
    *(
        "outcome",
        "step_fraction",
        "kl_bound",
        "critic_learning_rate",
        "cg_iterations",
        "cg_residual",
        "entropy",
        "policy_std",
        "value_loss",
    ),
    *("explained_variance", "mean_value", "mean_return", "num_faults", "normalizer_kl"),
    *("bound_change", "bound_surrogate", "bound_penalty"),
    *(f"num_{outcome.name.lower()}" for outcome in StepOutcome),
)


def iterate(trpo, state, count):
    update = jax.jit(trpo.update, donate_argnums=0)
    for _ in range(count):
        state, metrics = update(state)
    return state, metrics


@pytest.fixture(scope="module")
def small():
    return make_trpo(Target(), SMALL)


def test_the_iteration_compiles_once_in_a_run():
    """The state that leaves update has the avals of the one that entered, also from an environment with weak types."""

    class WeakTypes(Target):
        def reset(self, keys):
            return super().reset(keys)._replace(reward=jnp.broadcast_to(0.0 * 1, keys.shape))

    trpo = make_trpo(WeakTypes(), SMALL)
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(trpo.update.__wrapped__, n=1), donate_argnums=0)
    state = trpo.init(jax.random.key(0))
    for _ in range(3):
        state, _ = update(state)
    assert update._cache_size() == 1
    assert int(state.iteration) == 3


def test_the_state_keeps_its_avals(small):
    before = jax.eval_shape(small.init, jax.random.key(0))
    after, _ = jax.eval_shape(small.update, before)
    describe = lambda tree: [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]  # noqa: E731
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert describe(before) == describe(after)


def test_the_same_seed_gives_the_same_bits(small):
    runs = [iterate(small, small.init(jax.random.key(3)), 3) for _ in range(2)]
    chex.assert_trees_all_equal(*[(inference_params(state), metrics) for state, metrics in runs])


def test_raw_and_typed_keys_give_the_same_state(small):
    typed, raw = small.init(jax.random.key(3)), small.init(jax.random.PRNGKey(3))
    chex.assert_trees_all_equal(inference_params(typed), inference_params(raw))


def test_three_seeds_under_vmap_equal_the_three_runs_alone(small):
    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(small.init)(keys)
    for _ in range(2):
        together, metrics = jax.jit(jax.vmap(small.update))(together)
    for k in range(3):
        alone, alone_metrics = iterate(small, small.init(keys[k]), 2)
        pick = lambda x, k=k: x[k]  # noqa: E731
        chex.assert_trees_all_close(
            jax.tree.map(pick, inference_params(together)), inference_params(alone), rtol=2e-3, atol=2e-4
        )
        chex.assert_trees_all_close(jax.tree.map(pick, metrics), alone_metrics, rtol=1e-2, atol=2e-3)


def test_a_population_of_hyperparameters_equals_the_runs_alone(small):
    values = jnp.asarray([0.002, 0.05])

    def config(max_kl):
        return dataclasses.replace(SMALL, trust_region=dataclasses.replace(SMALL.trust_region, max_kl=max_kl))

    init = jax.vmap(lambda max_kl: small.init(jax.random.key(0), config(max_kl)))
    _, metrics = jax.vmap(small.update)(init(values))
    for k, max_kl in enumerate(values):
        _, alone = small.update(small.init(jax.random.key(0), config(max_kl)))
        np.testing.assert_allclose(metrics["training/kl"][k], alone["training/kl"], rtol=1e-3)
        assert alone["training/kl"] <= max_kl
    assert metrics["training/kl"][1] > 5 * metrics["training/kl"][0]


def test_hyperparameters_may_differ_in_float_fields_only(small):
    with pytest.raises(ConfigError, match=r"hyperparameters: got .* allowed: the agent's TRPOConfig, in which only float"):
        small.init(jax.random.key(0), dataclasses.replace(SMALL, num_envs=4))


def test_an_iteration_reports_every_metric_and_keeps_the_kl_bound(small):
    state, metrics = iterate(small, small.init(jax.random.key(0)), 4)
    assert set(metrics) == {f"training/{name}" for name in METRICS}
    assert all(np.isfinite(value) for value in metrics.values()), metrics
    assert metrics["training/outcome"] == StepOutcome.ACCEPTED
    assert 0 < metrics["training/kl"] <= SMALL.trust_region.max_kl
    assert int(state.iteration) == 4


def test_the_policy_step_starts_at_ratio_one_and_the_normalizer_moves_after_it(monkeypatch, small):
    """Bug 9: recompute log_prob of the rollout's actions under the old policy, on the batch that the update sees."""
    from trpo_jax.algorithms import trpo as module

    seen = {}

    def spy(policy_fn, params, batch, *rest, **options):
        seen["ratio"] = jnp.exp(policy_fn(params, batch.observation).log_prob(batch.action) - batch.log_prob)
        return original(policy_fn, params, batch, *rest, **options)

    original = module.stateful_trust_region_update
    monkeypatch.setattr(module, "stateful_trust_region_update", spy)
    trpo = make_trpo(Target(), SMALL)
    state = trpo.init(jax.random.key(0))
    for _ in range(2):
        state, ratio = jax.jit(lambda s: (trpo.update.__wrapped__(s)[0], seen["ratio"]))(state)
        np.testing.assert_allclose(ratio, 1.0, rtol=0, atol=2e-5)
    assert state.learner.normalizer.count == 2 * 64


def test_the_critic_fit_leaves_the_policy_as_the_trust_region_left_it_bug_13(monkeypatch):
    """The KL between the policies before and after a whole iteration is the one that was checked."""
    from trpo_jax.algorithms import trpo as module

    seen = {}

    def spy(policy_fn, params, batch, *rest, **options):
        seen.update(policy_fn=policy_fn, observation=batch.observation)
        return original(policy_fn, params, batch, *rest, **options)

    original = module.stateful_trust_region_update
    monkeypatch.setattr(module, "stateful_trust_region_update", spy)
    trpo = make_trpo(Target(), SMALL)
    state = trpo.init(jax.random.key(3))
    (new, metrics), observation = jax.jit(lambda s: (trpo.update.__wrapped__(s), seen["observation"]))(state)
    old, moved = (seen["policy_fn"](params, observation) for params in (state.learner.policy, new.learner.policy))
    np.testing.assert_allclose(old.kl(moved).mean(), metrics["training/kl"], rtol=1e-4)
    assert metrics["training/kl"] > 0
    critics = (jax.tree.leaves(each.critic.critic.params) for each in (state, new))
    assert any(jnp.any(before != after) for before, after in zip(*critics, strict=True))


def test_options_that_carry_a_state_or_draw_by_chance_work_in_training():
    trust_region = TrustRegionConfig(
        cg_iterations=5, damping_shape="gradient", curvature_fraction=0.5, curvature_sampling="random",
        num_microbatches=2, kl_constraint="max",
    )  # fmt: skip
    trpo = make_trpo(Target(), dataclasses.replace(SMALL, trust_region=trust_region))
    state, metrics = iterate(trpo, trpo.init(jax.random.key(0)), 3)
    assert metrics["training/accepted"] == 1
    assert 0 < metrics["training/max_kl"] <= trust_region.max_kl
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(state.learner.update.trust_region))


def test_a_policy_learns_the_target():
    config = dataclasses.replace(SMALL, num_envs=32, discounting=0.0, trust_region=TrustRegionConfig(max_kl=0.05))
    trpo = make_trpo(Target(), config)
    state, _ = iterate(trpo, trpo.init(jax.random.key(0)), 80)
    target = jnp.asarray([[0.5, -0.5], [-0.7, 0.2], [0.0, 0.6]])
    action, _ = trpo.make_policy(inference_params(state), deterministic=True)(target, None)
    np.testing.assert_allclose(action, target, atol=0.2)


def test_a_discrete_policy_learns_the_best_arm():
    config = dataclasses.replace(SMALL, trust_region=TrustRegionConfig(max_kl=0.05))
    trpo = make_trpo(Bandit(), config)
    # The bound falls: once the arm is found, advantages are noise, and steps of full length follow it.
    state, metrics = iterate(trpo, trpo.init(jax.random.key(0), num_iterations=40), 40)
    action, _ = trpo.make_policy(inference_params(state))(jnp.ones((200, 1)), jax.random.key(1))
    assert np.mean(np.asarray(action) == 2) > 0.9
    assert "training/policy_std" not in metrics


@pytest.mark.parametrize(("reward_scaling", "normalize_rewards"), [(1.0, False), (0.1, False), (1.0, True), (2.0, True)])
def test_the_critic_learns_through_a_time_limit(reward_scaling, normalize_rewards):
    """Truncation is no termination: the value of a constant reward is r/(1 - γ), not that of the 5 steps of an episode."""
    config = dataclasses.replace(
        SMALL,
        discounting=0.8,
        reward_scaling=reward_scaling,
        normalize_rewards=normalize_rewards,
        critic=CriticConfig(hidden_sizes=(16,), num_minibatches=4, num_epochs=4, learning_rate=0.01),
    )
    trpo = make_trpo(ConstantReward(), config)
    state, metrics = iterate(trpo, trpo.init(jax.random.key(0)), 80)
    value = trpo.make_policy.value_fn(inference_params(state))(jax.random.normal(jax.random.key(1), (50, 2)))
    np.testing.assert_allclose(value, 1 / (1 - 0.8), rtol=0.05)
    np.testing.assert_allclose(metrics["training/mean_return"], 5.0, rtol=0.05)
    assert metrics["training/episode_reward"] == metrics["training/episode_length"] == 5


def test_where_no_episode_ends_early_the_return_is_known_after_half_a_time_limit():
    """Of 32 episodes of 50 steps some come to their limit in every 4 steps; half of one is enough to tell the rest."""
    config = dataclasses.replace(SMALL, num_envs=32, unroll_length=4, episode_length=50)
    trpo = make_trpo(ConstantReward(), config)
    state, known = trpo.init(jax.random.key(0)), []
    for _ in range(16):
        state, metrics = iterate(trpo, state, 1)
        known.append(int(metrics["training/num_episodes"]))
        if known[-1]:
            assert metrics["training/episode_reward"] == pytest.approx(50.0)
            assert metrics["training/episode_length"] == pytest.approx(50.0)
    assert known[5] == 0 < known[6]
    assert 0 < max(np.diff(known)) <= 4  # they come one after another
    assert min(np.diff(known)) >= 0
    assert known[-1] > 16


@pytest.mark.parametrize(("lifetime", "when"), [(6, 1), (300, 38), (1000, 63)])
def test_where_episodes_end_early_only_those_count_that_were_played_from_their_start(lifetime, when):
    """What comes to its limit sooner has not shown how long it would have lasted."""
    config = dataclasses.replace(SMALL, num_envs=512, unroll_length=8, episode_length=1000)
    trpo = make_trpo(Counter(lifetime=lifetime), config)
    rollout = trpo.init(jax.random.key(0)).rollout
    record = jax.jit(lambda state, key: play(trpo, state, key))
    for count in range(1, 70):
        rollout, metrics = record(rollout, jax.random.key(count))
        length, known = float(metrics["episode_length"]), int(metrics["num_episodes"])
        assert (known > 0) == (count >= when)
        if known:
            assert length == pytest.approx(lifetime)


def play(trpo, rollout, key):
    """Let environments be for the steps of a rollout, whatever is done in them; return also what is reported of episodes."""
    environment, action = trpo._resetting, jnp.zeros((trpo.config.num_envs, 2))
    starts = environment.reset(jax.random.split(key, trpo.config.num_envs))

    def step(state, _):
        environments, final, fault = environment.step(state.environments, action, starts)
        done, at_limit = final.terminated | final.truncated, environment.has_reached_limit(final)
        return RolloutState(environments, record_step(state.episodes, final.reward, done, fault, at_limit)), None

    rollout, _ = jax.lax.scan(step, rollout, None, length=trpo.config.unroll_length)
    return rollout, episode_metrics(rollout.episodes, trpo.config.action_repeat)


def test_initial_states_are_fresh_within_and_across_iterations():
    config = dataclasses.replace(SMALL, episode_length=1000, unroll_length=64)
    trpo = make_trpo(Counter(lifetime=32), config)
    state = trpo.init(jax.random.key(0))
    starts = [np.asarray(state.rollout.environments.observation[:, 0])]
    for _ in range(3):
        state, _ = trpo.update(state)
        starts.append(np.asarray(state.rollout.environments.observation[:, 0]))
    assert len(np.unique(starts)) == 4 * config.num_envs


def test_action_repeat_counts_simulator_steps():
    config = dataclasses.replace(SMALL, action_repeat=2, episode_length=10)
    trpo = make_trpo(ConstantReward(), config)
    _, metrics = iterate(trpo, trpo.init(jax.random.key(0)), 2)
    assert trpo.steps_per_iteration == 8 * 8 * 2
    assert metrics["training/episode_length"] == 10
    assert metrics["training/episode_reward"] == 10


def test_noise_is_independent_across_environments_steps_and_dimensions(small):
    """Bug 10: one scalar of noise for all action dimensions."""
    policy = small.make_policy(inference_params(small.init(jax.random.key(0))))
    observation = jnp.zeros((5000, 2))
    raw = np.asarray(policy(observation, jax.random.key(0))[1]["raw_action"])
    again = np.asarray(policy(observation, jax.random.key(1))[1]["raw_action"])
    assert abs(np.corrcoef(raw[:, 0], raw[:, 1])[0, 1]) < 0.05
    assert abs(np.corrcoef(raw[:, 0], again[:, 0])[0, 1]) < 0.05


def test_make_policy_follows_brax(small):
    params = inference_params(small.init(jax.random.key(0)))
    observation = jnp.zeros((3, 2))
    action, extras = small.make_policy(params)(observation, jax.random.PRNGKey(0))
    assert action.shape == extras["raw_action"].shape == (3, 2)
    assert extras["log_prob"].shape == (3,)
    np.testing.assert_array_equal(action, jnp.clip(extras["raw_action"], -1, 1))
    mode, nothing = small.make_policy(params, deterministic=True)(observation[0], None)
    assert mode.shape == (2,)
    assert nothing == {}


def test_without_normalization_observations_reach_the_networks_as_they_are():
    config = dataclasses.replace(SMALL, normalize_observations=False)
    trpo = make_trpo(Counter(), config)
    state, _ = trpo.update(trpo.init(jax.random.key(0)))
    assert state.learner.normalizer is None
    params = inference_params(state)
    far = jnp.asarray([[100.0, 200.0]])
    expected = trpo.networks.critic.apply(params.value.params, far)
    np.testing.assert_array_equal(trpo.make_policy.value_fn(params)(far), expected)


def test_microbatches_must_divide_the_batch():
    config = dataclasses.replace(SMALL, trust_region=TrustRegionConfig(num_microbatches=7))
    with pytest.raises(ConfigError, match=r"trust_region.num_microbatches: got 7, allowed: a divisor of .* = 64"):
        make_trpo(Target(), config)


def test_there_are_at_most_as_many_minibatches_as_samples():
    config = dataclasses.replace(SMALL, critic=CriticConfig(num_minibatches=65))
    with pytest.raises(ConfigError, match=r"critic.num_minibatches: got 65, allowed: at most num_envs·unroll_length = 64"):
        make_trpo(Target(), config)


def test_a_config_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="config: got a TrustRegionConfig, allowed: a TRPOConfig"):
        inspect.unwrap(make_trpo)(Target(), TrustRegionConfig())  # unwrapped: the tests' type checker is quicker
