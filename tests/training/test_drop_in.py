"""`trpo_jax.train` in place of `brax.training.agents.ppo.train`."""

import dataclasses
import functools
import inspect
import warnings

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

import trpo_jax
from environments.falling import Falling, brax, random_gravity
from probes import Counter, Target
from trainings import SMALL, one_device_train
from trpo_jax import AgentConfig, ConfigError, PPOConfig, TRPOConfig, inference_params, make_trpo
from trpo_jax.algorithms.registry import ALGORITHMS, Algorithm
from trpo_jax.config import config, setting
from trpo_jax.training.brax_keywords import PPO_ONLY, RENAMED, UNSUPPORTED, translate
from trpo_jax.training.options import with_options

with warnings.catch_warnings(action="ignore"):  # what Brax imports
    from brax.io import model
    from brax.training.agents.ppo import networks as ppo_networks
    from brax.training.agents.ppo import train as brax_ppo

SCRIPT = """
import functools
import jax
import jax.numpy as jnp
from brax import envs
from brax.training.agents.ppo import networks as ppo_networks
from brax.training.agents.ppo import train as ppo

env = envs.get_environment(env_name="inverted_pendulum", backend="spring")
train_fn = functools.partial(
    ppo.train, num_timesteps=2_000, num_evals=3, reward_scaling=10, episode_length=20, normalize_observations=True,
    action_repeat=1, unroll_length=5, num_minibatches=4, num_updates_per_batch=4, discounting=0.97, learning_rate=3e-4,
    entropy_cost=1e-2, num_envs=32, batch_size=32, seed=1, num_eval_envs=4, max_devices_per_host=1,
    network_factory=functools.partial(ppo_networks.make_ppo_networks, policy_hidden_layer_sizes=(16, 16)))

xdata, ydata, times = [], [], []

def progress(num_steps, metrics):
    xdata.append(num_steps)
    ydata.append(metrics["eval/episode_reward"])
    times.append(metrics["eval/walltime"])

make_inference_fn, params, metrics = train_fn(environment=env, progress_fn=progress)

jit_inference_fn = jax.jit(make_inference_fn(params, deterministic=True))
jit_reset, jit_step = jax.jit(env.reset), jax.jit(env.step)
rng = jax.random.PRNGKey(seed=1)
state = jit_reset(rng=rng)
rollout = []
for _ in range(5):
    rollout.append(state.pipeline_state)
    act_rng, rng = jax.random.split(rng)
    act, _ = jit_inference_fn(state.obs, act_rng)
    state = jit_step(state, act)
"""


@pytest.mark.brax
@pytest.mark.filterwarnings("ignore:Brax System")  # the script's own loading of the environment
def test_a_script_written_for_brax_ppo_runs_with_its_import_changed():
    changed = SCRIPT.replace("from brax.training.agents.ppo import train as ppo", "import trpo_jax as ppo")
    assert changed != SCRIPT
    names = {}
    with pytest.warns(UserWarning, match="batch_size, entropy_cost, learning_rate, num_minibatches.*: only for Brax's PPO"):
        exec(compile(changed, "script", "exec"), names)
    assert names["xdata"][0] == 0
    assert names["xdata"][-1] >= 2_000
    assert len(names["xdata"]) == len(names["ydata"]) == 3
    assert len(names["rollout"]) == 5
    assert {"eval/episode_reward_std", "eval/avg_episode_length", "training/sps"} <= names["metrics"].keys()
    kernels = names["params"][1]["params"]
    assert kernels["hidden_0"]["kernel"].shape == (4, 16)  # the network of the factory


def test_every_keyword_of_brax_ppo_is_known():
    theirs = set(inspect.signature(brax_ppo.train).parameters)
    ours = set(inspect.signature(inspect.unwrap(trpo_jax.train)).parameters)
    fields = set(TRPOConfig.__dataclass_fields__)
    assert theirs - ours - fields - RENAMED.keys() - PPO_ONLY - set(UNSUPPORTED) == set()
    assert theirs >= PPO_ONLY
    assert ours.isdisjoint(PPO_ONLY)


def test_what_does_not_exist_here_is_refused():
    with pytest.raises(ConfigError, match="vision: got True, allowed: false"):
        one_device_train(Target(), 16, config=SMALL, vision=True)


def test_keywords_with_another_name_here_get_it():
    with warnings.catch_warnings(action="error"):
        assert translate({"normalize_advantage": False, "num_envs": 3}, "trpo") == {
            "normalize_advantages": False,
            "num_envs": 3,
        }


def test_keywords_of_braxs_ppo_set_the_fields_of_ours():
    options = {"learning_rate": 0.5, "num_updates_per_batch": 3, "num_minibatches": 2, "entropy_cost": 0.1, "batch_size": 8}
    with pytest.warns(UserWarning, match="^batch_size: only for Brax's PPO, without effect here; see PPOConfig"):
        translated = translate(options, "ppo")
    both = {"learning_rate": 0.5, "num_epochs": 3, "num_minibatches": 2}
    assert translated == {"clipped": both | {"entropy_cost": 0.1}, "critic": both}
    config = with_options(PPOConfig(), translated)
    assert (config.clipped.num_epochs, config.critic.num_epochs) == (3, 3)


def test_a_field_of_an_algorithm_may_have_the_name_of_a_keyword_of_braxs_ppo(monkeypatch):
    @config
    class BonusConfig(AgentConfig):
        entropy_cost: float = setting(default=0.0)

    monkeypatch.setitem(ALGORITHMS, "bonus", Algorithm(BonusConfig, ALGORITHMS["ppo"].policy_update))
    with warnings.catch_warnings(action="error"):
        assert translate({"entropy_cost": 0.5}, "bonus") == {"entropy_cost": 0.5}


@pytest.mark.parametrize("kind", ["normal", "tanh_normal"])
def test_a_brax_network_acts_as_in_brax(kind):
    factory = functools.partial(
        ppo_networks.make_ppo_networks, policy_hidden_layer_sizes=(8,), value_hidden_layer_sizes=(8,), distribution_type=kind
    )
    make_policy, params, _ = one_device_train(
        Target(), 32, config=SMALL, num_eval_envs=0, network_factory=factory, normalize_observations=False
    )
    observation, key = jnp.asarray([[0.3, -0.4], [0.1, 0.9]]), jax.random.PRNGKey(3)
    brax_policy = ppo_networks.make_inference_fn(factory(2, 2))(params, deterministic=False)
    theirs, their_extras = brax_policy(observation, key)
    _, our_extras = make_policy(params)(observation, key)
    again = {"action": our_extras["raw_action"]}
    distribution = factory(2, 2).parametric_action_distribution
    np.testing.assert_allclose(
        our_extras["log_prob"],
        distribution.log_prob(their_extras["distribution_params"], again["action"]),
        rtol=1e-4,
        atol=1e-5,
    )
    mode = make_policy(params, deterministic=True)(observation, None)[0]
    np.testing.assert_allclose(
        mode, jnp.clip(distribution.mode(their_extras["distribution_params"]), -1, 1), rtol=1e-5, atol=1e-6
    )
    assert theirs.shape == mode.shape


def test_a_factory_of_something_else_is_refused():
    with pytest.raises(ConfigError, match=r"network_factory: got .* allowed: a function that returns Brax's PPONetworks"):
        one_device_train(Target(), 16, config=SMALL, network_factory=lambda *_, **__: None)


class TwoViews(Target):
    """Shows the policy noise, and the critic the target."""

    def _views(self, state):
        noise = jnp.zeros((state.reward.shape[0], 3))
        return state._replace(observation={"state": noise, "privileged_state": state.observation})

    def reset(self, keys):
        return self._views(super().reset(keys))

    def step(self, state, action):
        return super().step(state._replace(observation=state.observation["privileged_state"]), action)  # which resets


def test_a_privileged_critic_sees_what_the_policy_does_not():
    critic = trpo_jax.CriticConfig(observation_key="privileged_state", hidden_sizes=(8,), num_minibatches=1)
    trpo = make_trpo(TwoViews(), TRPOConfig(num_envs=4, unroll_length=4, critic=critic, policy=SMALL.policy))
    params = inference_params(trpo.update(trpo.init(jax.random.key(0)))[0])
    assert params.policy["params"]["MLP_0"]["Dense_0"]["kernel"].shape == (3, 8)
    assert params.value.params["params"]["MLP_0"]["Dense_0"]["kernel"].shape == (2, 8)


def test_an_entry_that_is_not_there_is_named():
    critic = trpo_jax.CriticConfig(observation_key="hidden", num_minibatches=1)
    with pytest.raises(ConfigError, match=r"critic.observation_key: got 'hidden', allowed: .*: privileged_state, state"):
        make_trpo(TwoViews(), TRPOConfig(num_envs=4, unroll_length=4, critic=critic))


def test_tanh_policies_act_inside_the_box_and_clipped_ones_on_its_sides():
    observation = jnp.zeros((500, 2))
    for bounds, on_the_sides in (("clip", True), ("tanh", False)):
        policy = trpo_jax.PolicyConfig(hidden_sizes=(8,), action_bounds=bounds)
        make_policy, params, _ = one_device_train(Target(), 16, config=SMALL, num_eval_envs=0, policy=policy)
        action, extras = make_policy(params)(observation, jax.random.key(0))
        assert (np.abs(action) == 1).any() == on_the_sides
        assert np.abs(action).max() <= 1
        assert np.abs(extras["raw_action"]).max() > 1


def test_parameters_of_networks_that_a_factory_makes_are_restored():
    from brax.training.agents.ppo.networks import make_ppo_networks

    factory = functools.partial(make_ppo_networks, policy_hidden_layer_sizes=(4,), value_hidden_layer_sizes=(4,))
    _, params, _ = one_device_train(Target(), 16, config=SMALL, num_eval_envs=0, network_factory=factory)
    _, restored, _ = one_device_train(
        Target(), 0, config=SMALL, num_eval_envs=0, network_factory=factory, restore_params=params, seed=9
    )
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(restored), jax.tree.leaves(params))


def test_a_value_function_of_another_reward_scale_is_refused():
    _, params, _ = one_device_train(Target(), 16, config=SMALL, num_eval_envs=0)
    options = {"config": SMALL, "num_eval_envs": 0, "restore_params": params, "reward_scaling": 2.0}
    with pytest.raises(ConfigError, match=r"reward_scaling: got 2.0, allowed: 1.0, with which .* or set restore_value_fn"):
        one_device_train(Target(), 0, **options)
    _, restored, _ = one_device_train(Target(), 0, **options, restore_value_fn=False)
    jax.tree.map(np.testing.assert_array_equal, restored.policy, params.policy)
    assert restored.value.reward_scaling == 2.0


def test_a_value_function_is_restored_in_its_units_where_rewards_are_normalized():
    config = dataclasses.replace(SMALL, normalize_rewards=True)
    _, params, _ = one_device_train(Target(), 16, config=config, num_eval_envs=0)
    assert params.value.reward_scaling not in (0.0, 1.0)
    _, restored, _ = one_device_train(Target(), 0, config=config, num_eval_envs=0, restore_params=params)
    assert restored.value.reward_scaling == params.value.reward_scaling
    with pytest.raises(ConfigError, match=r"reward_scaling: got 1\.0, allowed: 0\."):
        one_device_train(Target(), 0, config=SMALL, num_eval_envs=0, restore_params=params)


def test_a_suite_and_a_backend_are_taken_by_keyword():
    with pytest.raises(ConfigError, match="environment: got 'Cartpole', allowed: a known Playground environment"):
        trpo_jax.train("Cartpole", 0, suite="playground")
    with pytest.raises(ConfigError, match="backend: got 'spring', allowed: one that swimmer offers"):
        trpo_jax.train("swimmer", 0, backend="spring")


def test_parameters_restored_are_those_that_were_trained(tmp_path):
    _, params, _ = one_device_train(Target(), 32, config=SMALL, num_eval_envs=0, save_checkpoint_path=tmp_path)
    for source in ({"restore_params": params}, {"restore_checkpoint_path": tmp_path}):
        _, restored, _ = one_device_train(Target(), 0, config=SMALL, num_eval_envs=0, seed=9, **source)
        jax.tree.map(np.testing.assert_array_equal, restored, params)
        _, partly, _ = one_device_train(Target(), 0, config=SMALL, num_eval_envs=0, seed=9, restore_value_fn=False, **source)
        jax.tree.map(np.testing.assert_array_equal, partly.policy, params.policy)
        assert not np.array_equal(*(jax.tree.leaves(p.value.params)[1] for p in (partly, params)))


def save_with_brax(params, path):
    model.save_params(str(path), params)
    return model.load_params(str(path))


def save_with_flax(params, path):
    path.write_bytes(flax.serialization.to_bytes(params))
    return flax.serialization.from_bytes(jax.tree.map(np.zeros_like, params), path.read_bytes())


def save_with_orbax(params, path):
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, params)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path, params)


@pytest.mark.parametrize("save", [save_with_brax, save_with_flax, save_with_orbax])
@pytest.mark.parametrize("network_factory", [pytest.param(None, marks=pytest.mark.slow), ppo_networks.make_ppo_networks])
def test_any_saver_takes_the_parameters(network_factory, save, tmp_path):
    train = functools.partial(one_device_train, Target(), config=SMALL, num_eval_envs=0, network_factory=network_factory)
    make_policy, params, _ = train(16)
    saved = save(params, tmp_path / "params")
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(saved), jax.tree.leaves(params))
    observation = jnp.asarray([[0.3, -0.2]])
    np.testing.assert_array_equal(
        make_policy(saved, deterministic=True)(observation)[0], make_policy(params, deterministic=True)(observation)[0]
    )
    np.testing.assert_array_equal(make_policy.value_fn(saved)(observation), make_policy.value_fn(params)(observation))
    _, restored, _ = train(0, restore_params=saved)
    jax.tree.map(np.testing.assert_array_equal, restored, params)


def test_parameters_of_other_networks_are_refused():
    params = one_device_train(Target(), 0, config=SMALL, num_eval_envs=0)[1]
    with pytest.raises(ConfigError, match=r"restore_params: got .* allowed: policy of shapes"):
        one_device_train(Target(), 0, config=SMALL, restore_params=params, policy=trpo_jax.PolicyConfig(hidden_sizes=(9,)))


@pytest.mark.parametrize(("part", "dtype"), [(0, "float64"), (1, "bfloat16"), (2, "float64")])
def test_parameters_of_another_dtype_are_refused(part, dtype):
    params = one_device_train(Target(), 0, config=SMALL, num_eval_envs=0)[1]
    name = params._fields[part]
    other = params._replace(**{name: jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), params[part])})
    message = rf"restore_params: got '{dtype}', allowed: \w+, the dtype of {name}.* in this training; astype converts"
    with pytest.raises(ConfigError, match=message):
        one_device_train(Target(), 0, config=SMALL, num_eval_envs=0, restore_params=other)


def test_training_metrics_go_to_progress_fn_on_request():
    seen = []
    one_device_train(
        Target(), 6 * 16, config=SMALL, num_evals=2, num_eval_envs=2, log_training_metrics=True, training_metrics_steps=48,
        progress_fn=lambda step, metrics: seen.append((step, "training/kl" in metrics, "eval/episode_reward" in metrics)),
    )  # fmt: skip
    assert seen == [(0, False, True), (48, True, False), (96, True, False), (96, True, True)]


def test_without_evaluations_callbacks_come_all_the_same():
    seen = []
    one_device_train(
        Target(), 32, config=SMALL, run_evals=False, num_evals=3, progress_fn=lambda step, metrics: seen.append((step, metrics))
    )
    assert [step for step, _ in seen] == [0, 16, 32]
    assert not any(name.startswith("eval/") for _, metrics in seen for name in metrics)


def test_an_environment_of_its_own_for_evaluations():
    long = {"config": SMALL, "episode_length": 50, "num_eval_envs": 3}
    lengths = [
        one_device_train(Counter(), 16, **long, **options)[2]["eval/avg_episode_length"]
        for options in ({}, {"eval_env": Counter(lifetime=7)})
    ]
    assert lengths == [50, 7]


def test_resets_between_evaluations_break_episodes_off():
    config = {"config": SMALL, "episode_length": 1000, "num_eval_envs": 0, "num_evals": 2}
    seen = {}
    for resets in (0, 3):
        rows = seen.setdefault(resets, [])
        one_device_train(
            Counter(),
            12 * 16,
            num_resets_per_eval=resets,
            iteration_fn=lambda _, metrics, rows=rows: rows.append(metrics),
            **config,
        )
    value = [[row["training/mean_return"] for row in rows] for rows in seen.values()]
    np.testing.assert_array_equal(value[0][:4], value[1][:4])
    assert value[1][4] < value[0][4]  # the count that is paid began again


def test_randomized_physics_reach_training_and_evaluation():
    results = [
        one_device_train(Falling(), 32, config=SMALL, num_eval_envs=8, randomization_fn=fn)[2] for fn in (None, random_gravity)
    ]
    assert results[0]["eval/episode_reward_std"] != results[1]["eval/episode_reward_std"]


@pytest.mark.filterwarnings("ignore:Brax System")
def test_a_foreign_wrapper_is_warned_of_and_its_truncated_steps_weigh_nothing():
    with pytest.warns(UserWarning, match="hides the final observations of episodes"):
        _, params, metrics = one_device_train(
            Falling(), 3 * 16, config=SMALL, num_eval_envs=2, wrap_env_fn=brax.envs.training.wrap
        )
    assert np.isfinite(metrics["eval/episode_reward"])
    # Of 4 · 12 steps each fifth is a time limit's; the normalizer does not count it.
    assert params.normalizer.count == 4 * 12 - 4 * 2


def test_randomization_of_an_environment_that_is_not_wrapped_is_refused():
    with pytest.raises(ConfigError, match=r"randomization_fn: got .*, allowed: None with wrap_env=False"):
        trpo_jax.train(Target(), 16, config=SMALL, wrap_env=False, randomization_fn=lambda sys, keys: (sys, None))


def test_an_environment_for_evaluations_is_not_made_if_there_are_none():
    one_device_train(Target(), 16, config=SMALL, eval_env="no such environment", num_eval_envs=0)
    one_device_train(Target(), 16, config=SMALL, eval_env="no such environment", run_evals=False)
