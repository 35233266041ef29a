"""What every algorithm of the registry keeps: it learns, repeats itself, batches, resumes, spreads, and survives NaN."""

import dataclasses
import functools
import inspect
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trpo_jax
from probes import Bandit, Target, WithCosts
from trainings import SMALL, one_device_train, without_clocks
from trpo_jax import AgentConfig, ConfigError, inference_params, make_agent, register_algorithm
from trpo_jax.agent.binding import bind
from trpo_jax.agent.metrics import without_number
from trpo_jax.algorithms.registry import ALGORITHMS, algorithm_name, default_config
from trpo_jax.config import config, setting

ROOT = Path(__file__).parents[2]
NAMES = tuple(ALGORITHMS)
AT_LENGTH = [pytest.param(name, marks=[pytest.mark.slow] * (name not in ("trpo", "ppo"))) for name in NAMES]
"""For what takes long: the others are left to `make test-slow`."""
COMMON = ("num_envs", "unroll_length", "episode_length", "critic", "policy")


def small(name, **changes):
    """An algorithm's defaults with small networks and batches, and nothing that falls."""
    config = default_config(name)
    schedule = {field.name: 1.0 for field in dataclasses.fields(config.schedule)}
    fields = {field: getattr(SMALL, field) for field in COMMON} | {"num_envs": 8, "unroll_length": 8} | changes
    return dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, **schedule), **fields)


def suitable(name, environment):
    """An environment, with costs if the algorithm limits them."""
    return WithCosts(environment()) if ALGORITHMS[name].policy_update.limits_costs else environment()


@functools.cache
def agent_of(name, environment=Target):
    return make_agent(suitable(name, environment), small(name))


def iterate(agent, state, count):
    for _ in range(count):
        state, metrics = agent.update(state)
    return state, metrics


@pytest.mark.parametrize("name", AT_LENGTH)
@pytest.mark.parametrize(("environment", "most"), [(Target, 0.0), (Bandit, 1.0)])
def test_it_learns_with_continuous_and_with_discrete_actions(name, environment, most):
    agent = make_agent(suitable(name, environment), small(name, num_envs=32, unroll_length=16, discounting=0.5))
    step = jax.jit(lambda state: jax.lax.scan(lambda state, _: agent.update.__wrapped__(state), state, None, length=60))
    state = agent.init(jax.random.key(0))
    _, metrics = step(state)
    reward = metrics["training/episode_reward"] / SMALL.episode_length
    regret = most - np.asarray(reward)
    assert regret[-5:].mean() < 0.5 * regret[:5].mean(), (regret[:5], regret[-5:])


@pytest.mark.parametrize("name", NAMES)
def test_the_state_keeps_its_avals_and_the_same_seed_gives_the_same_bits(name):
    agent = agent_of(name)
    before = jax.eval_shape(agent.init, jax.random.key(0))
    after, _ = jax.eval_shape(agent.update, before)
    describe = lambda tree: [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]  # noqa: E731
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert describe(before) == describe(after)
    first, second = (iterate(agent, agent.init(jax.random.key(3)), 2) for _ in range(2))
    chex.assert_trees_all_equal((inference_params(first[0]), first[1]), (inference_params(second[0]), second[1]))


@pytest.mark.parametrize("name", AT_LENGTH)
def test_seeds_and_float_fields_under_vmap_equal_the_runs_alone(name):
    """Every float field at once: half of its value beside its value."""
    agent = agent_of(name)
    halves, whole = jax.tree.map(lambda leaf: 0.5 * leaf, agent.config), agent.config
    both = jax.tree.map(lambda a, b: jnp.asarray([a, b], jnp.float32), halves, whole)
    keys = jax.random.split(jax.random.key(0))
    _, together = jax.vmap(agent.update)(jax.vmap(agent.init)(keys, both))
    for i, values in enumerate((halves, whole)):
        _, alone = agent.update(agent.init(keys[i], values))
        for metric in ("kl", "entropy", "mean_value", "value_loss"):
            np.testing.assert_allclose(
                together[f"training/{metric}"][i], alone[f"training/{metric}"], rtol=2e-2, atol=1e-5, err_msg=metric
            )


@pytest.mark.parametrize("name", AT_LENGTH)
def test_a_resumed_training_is_bit_for_bit_the_one_that_was_not_interrupted(name, tmp_path):
    def run(folder, iterations, **options):
        rows = []
        config = small(name)
        _, params, _ = one_device_train(
            suitable(name, Target),
            iterations * config.batch_size,
            config=config,
            num_eval_envs=0,
            save_checkpoint_path=folder,
            iteration_fn=lambda step, metrics: rows.append((step, without_clocks(metrics))),
            **options,
        )
        return params, rows

    params, rows = run(tmp_path / "whole", 5)
    _, before = run(tmp_path / "parts", 2)
    resumed, after = run(tmp_path / "parts", 5, resume=True)
    assert before + after == rows
    chex.assert_trees_all_equal(resumed, params)


@pytest.mark.parametrize("name", AT_LENGTH)
def test_devices_compute_what_one_does(name, monkeypatch):
    monkeypatch.setattr(trpo_jax.execution.placement, "are_cores_of_one_processor", lambda devices: False)
    config = small(name, num_envs=16)
    runs = [
        trpo_jax.train(
            suitable(name, Target), 2 * config.batch_size, config=config, num_eval_envs=0, max_devices_per_host=count
        )
        for count in (1, 4)
    ]
    for (path, alone), spread in zip(jax.tree.leaves_with_path(runs[0][1]), jax.tree.leaves(runs[1][1]), strict=True):
        scale = max(float(np.abs(alone).max()), 1e-6)
        np.testing.assert_allclose(alone / scale, spread / scale, rtol=0, atol=2e-3, err_msg=jax.tree_util.keystr(path))


class Faulty(Target):
    """Loses every environment in its first step, and a quarter of them in every step."""

    def step(self, state, action):
        new = super().step(state, action)
        lost = jax.vmap(lambda key: jax.random.bernoulli(key, 0.25))(new.simulator)
        return new._replace(observation=jnp.where(lost[:, None], jnp.nan, new.observation))


@pytest.mark.parametrize("name", AT_LENGTH)
def test_nan_weighs_nothing(name):
    agent = agent_of(name, Faulty)
    state, metrics = iterate(agent, agent.init(jax.random.key(0)), 3)
    assert metrics["training/num_faults"] > 0
    assert metrics["training/kl"] > 0
    chex.assert_tree_all_finite((inference_params(state), metrics))


@pytest.mark.parametrize("name", AT_LENGTH)
def test_a_batch_of_nothing_but_nan_leaves_the_policy_as_it_was(name):
    """Also when optimizers have gathered momentum."""
    agent = agent_of(name)
    before, _ = iterate(agent, agent.init(jax.random.key(0)), 2)
    starts = agent.draw(jax.random.key(1))
    _, transition, _ = agent.collect(before.learner, before.rollout, starts, jax.random.key(2))
    lost = transition._replace(fault=jnp.ones_like(transition.fault))
    improve = jax.jit(agent.improve)
    rest = before.hyperparameters, jax.random.key(3), jnp.float32(0)
    learner, regression, metrics = improve(before.learner, before.critic, lost, *rest)
    critic, _ = jax.jit(agent.fit)(before.critic, regression, *rest)
    chex.assert_trees_all_equal((learner.policy, critic.critic), (before.learner.policy, before.critic.critic))
    after = before._replace(learner=learner, critic=critic)
    chex.assert_tree_all_finite((inference_params(after), metrics))


@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_finite_and_documented(name):
    _, metrics = iterate(agent_of(name), agent_of(name).init(jax.random.key(0)), 2)
    chex.assert_tree_all_finite(metrics)
    assert {"training/kl", "training/entropy"} <= metrics.keys()
    pages = "".join((ROOT / "docs" / page).read_text() for page in ("algorithms.md", "training.md"))
    for metric in metrics:
        bare = metric.removeprefix("training/")
        assert bare.startswith("num_") or f"`{without_number(bare)}`" in pages, metric
    sample_means = ALGORITHMS[name].policy_update.sample_means
    assert {f"training/{metric}" for metric in sample_means} <= {without_number(metric) for metric in metrics}


@config
class SignConfig(AgentConfig):
    step_size: float = setting(default=1e-3)


def test_an_algorithm_of_ones_own_is_registered_and_replaced():
    update = ALGORITHMS["ppo"].policy_update
    register_algorithm("sign", SignConfig, update)
    try:
        register_algorithm("sign", SignConfig, update)  # a notebook's cell, run again
        assert algorithm_name(SignConfig()) == "sign"
        with pytest.raises(ConfigError, match=r"config: got .*SignConfig.*, allowed: a class that no other algorithm uses"):
            register_algorithm("other", SignConfig, update)
    finally:
        del ALGORITHMS["sign"]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("ppo", SignConfig, "algorithm: got 'ppo', allowed: a name that no built-in algorithm"),
        ("critic", SignConfig, "algorithm: got 'critic', allowed: a name that no built-in algorithm .* and no field has"),
        ("step_size", SignConfig, "algorithm: got 'step_size'"),
        ("accelerator", SignConfig, "algorithm: got 'accelerator'"),
        ("mine", type("Bare", (AgentConfig,), {}), "config: got .*Bare.*, allowed: a subclass of AgentConfig, decorated by"),
        ("mine", type(default_config("ppo").clipped), "config: got .*, allowed: a subclass of AgentConfig"),
    ],
)
def test_what_cannot_be_registered_is_refused(name, kind, message):
    with pytest.raises(ConfigError, match=message):
        inspect.unwrap(register_algorithm)(name, kind, ALGORITHMS["ppo"].policy_update)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kl": None}, r".*, allowed: at least kl, max_kl and entropy, as"),
        ({"mean_value": 0.0}, r".*, allowed: at least kl, max_kl and entropy, as"),
        ({"value_loss": 0.0}, "value_loss, allowed: other names"),  # the critic's
        ({"sps": 0.0}, "sps, allowed: other names"),  # the loop's
        ({"num_faults": 0.0, "num_episodes": 1.0}, "num_episodes, num_faults, allowed: other names"),  # the rollout's
    ],
)
def test_metrics_that_all_report_are_asked_for_and_those_of_others_are_not_overwritten(change, message):
    def update(*arguments):
        params, state, metrics = ALGORITHMS["trpo"].policy_update.update(*arguments)
        metrics = {name: value for name, value in (metrics | change).items() if value is not None}
        return params, state, metrics

    agent = bind(ALGORITHMS["trpo"].policy_update._replace(update=update), Target(), small("trpo"))
    with pytest.raises(ValueError, match=f"metrics of the policy update: got {message}"):
        jax.eval_shape(agent.update, jax.eval_shape(agent.init, jax.random.key(0)))


def test_the_type_of_a_configuration_says_which_algorithm():
    assert [algorithm_name(default_config(name)) for name in NAMES] == list(NAMES)
    for name in ("dqn", ["ppo"], None):
        with pytest.raises(ConfigError, match=r"algorithm: got .*, allowed: one of trpo, ppo"):
            default_config(name)
    with pytest.raises(TypeError, match="config: got a dict, allowed: a TRPOConfig or a PPOConfig"):
        inspect.unwrap(algorithm_name)({})  # unwrapped: the tests' type checker is quicker
