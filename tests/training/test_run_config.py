import dataclasses
import inspect
from pathlib import Path

import jax
import pytest

from trpo_jax import ConfigError, PPOConfig, TRPOConfig, TrustRegionConfig, shipped_config, train
from trpo_jax.algorithms.ppo import ClippedConfig
from trpo_jax.algorithms.registry import ALGORITHMS, default_config
from trpo_jax.cli import main
from trpo_jax.cli.arguments import ArgumentError
from trpo_jax.cli.train import parse_arguments
from trpo_jax.environments import safety
from trpo_jax.errors import FileError
from trpo_jax.runs.run_folder import MetricsLog, create_run_folder, open_run_folder
from trpo_jax.training.run_config import (
    RunConfig,
    read_run_config,
    read_toml,
    shipped_config_file,
    starting_config,
    write_run_config,
)

CONFIGS = sorted(
    path
    for suite in ("brax", "safety", "gymnasium", "gymnax")
    for path in (Path(__file__).parents[2] / "configs" / suite).glob("*.toml")
    if path.stem != "default"
)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_configuration_of_each_algorithm_survives_the_way_to_toml_and_back(tmp_path, algorithm):
    config = RunConfig(agent=default_config(algorithm))
    write_run_config(tmp_path / "config.toml", config)
    assert f'algorithm = "{algorithm}"' in (tmp_path / "config.toml").read_text()
    assert read_run_config(tmp_path / "config.toml") == config


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("accelerator", [False, True])
def test_what_ships_for_an_environment_can_be_used_by_each_algorithm(algorithm, accelerator):
    for path in CONFIGS:
        suite = path.parent.name
        config = starting_config(path.stem, suite, algorithm, accelerator=accelerator)
        assert (config.environment, config.suite, config.algorithm) == (path.stem, suite, algorithm)
        own = read_toml(path, "file").get("num_timesteps", starting_config("another", suite).num_timesteps)
        assert config.num_timesteps == (50_000_000 if accelerator and suite != "gymnasium" else own)


MIXED = """
environment = "hopper"
num_envs = 16
[ppo]
num_envs = 32
clipped.num_epochs = 3
[trpo]
trust_region.max_kl = 0.07
[accelerator]
unroll_length = 5
[accelerator.ppo]
discounting = 0.5
"""


def test_a_table_named_after_an_algorithm_is_for_that_alone(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MIXED)
    trpo, ppo = (read_run_config(path, algorithm).agent for algorithm in (None, "ppo"))
    assert (trpo.num_envs, trpo.trust_region.max_kl, type(trpo)) == (16, 0.07, TRPOConfig)
    assert (ppo.num_envs, ppo.clipped.num_epochs, type(ppo)) == (32, 3, PPOConfig)
    accelerated = read_run_config(path, "ppo", accelerator=True).agent
    assert (accelerated.unroll_length, accelerated.discounting, accelerated.num_envs) == (5, 0.5, 32)
    assert read_run_config(path, accelerator=True).agent.discounting == TRPOConfig().discounting
    path.write_text('algorithm = "ppo"\n' + MIXED)
    assert read_run_config(path).agent == ppo
    assert read_run_config(path, "trpo").agent == trpo


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[ppo]\nclipped.epsilon = 1", "ppo.clipped.epsilon: got 1, allowed: a known field"),
        ("[ppo]\ntrust_region.max_kl = 1", "ppo.trust_region: got .*, allowed: a field of ppo; this one belongs to trpo"),
        ("ppo = 3", "ppo: got 3, allowed: a table of fields of that algorithm"),
        ('[ppo]\nalgorithm = "trpo"', "ppo: got .*, allowed: a table of fields of that algorithm"),
        ('[accelerator]\nalgorithm = "ppo"', "accelerator.algorithm: got 'ppo', allowed: none here; it may only stand"),
        ('algorithm = ["ppo"]', r"algorithm: got \['ppo'\], allowed: one of trpo, ppo"),
        ('algorithm = "dqn"', "algorithm: got 'dqn', allowed: one of trpo, ppo"),
        ('algorithm = "ppo"\ntrust_region.max_kl = 0.1', "trust_region: got .*, allowed: a field of ppo; this one belongs to"),
    ],
)
def test_what_an_algorithm_does_not_know_is_named(tmp_path, line, message):
    path = tmp_path / "mine.toml"
    path.write_text(f'environment = "hopper"\n{line}\n')
    with pytest.raises(ConfigError, match=message):
        read_run_config(path)


def test_the_command_line_takes_the_options_of_the_algorithm_that_it_names():
    parsed = parse_arguments(["hopper", "--algorithm", "ppo", "--clipped.num-epochs", "3"])
    assert parsed.run.agent == dataclasses.replace(PPOConfig(), clipped=ClippedConfig(num_epochs=3))
    parsed = parse_arguments(["hopper", "--algorithm", "trpo", "--algorithm", "ppo"])  # the last one counts
    assert (parsed.algorithm, parsed.run.algorithm) == ("ppo", "ppo")
    with pytest.raises(ArgumentError, match="Unrecognized options: --trust-region"):
        parse_arguments(["hopper", "--algorithm=ppo", "--trust-region.max-kl", "0.1"])
    with pytest.raises(ConfigError, match="algorithm: got 'dqn', allowed: one of trpo, ppo"):
        parse_arguments(["hopper", "--algorithm", "dqn"])


def test_a_config_survives_the_way_to_toml_and_back(tmp_path):
    config = RunConfig(environment="hopper", seed=3, agent=TRPOConfig(num_envs=7, trust_region=TrustRegionConfig(max_kl=0.123)))
    write_run_config(tmp_path / "config.toml", config)
    assert read_run_config(tmp_path / "config.toml") == config


def test_there_is_a_config_for_each_named_environment():
    names = {path.stem for path in CONFIGS if path.parent.name == "brax"}
    assert {"ant", "hopper", "inverted_pendulum", "inverted_double_pendulum", "reacher", "walker2d"} <= names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_shipped_config_loads_and_is_found_by_its_name(path):
    config = read_run_config(path)
    assert config.environment == path.stem
    assert shipped_config_file(path.stem, path.parent.name) == path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_env = 3", r"num_env: got 3, allowed: a known field; did you mean .*num_envs"),
        ("[trust_region]\nmax_klx = 1.0", r"trust_region.max_klx: got 1.0, allowed: .*did you mean max_kl\?"),
        ("[trust_region]\nmax_kl = 'big'", r"trust_region.max_kl: got 'big', allowed: a number > 0"),
        ("[trust_region]\nmax_kl = 0.0", r"trust_region.max_kl: got 0.0, allowed: a number > 0"),
        ("trust_region = 3", r"trust_region: got 3, allowed: a table with the fields of TrustRegionConfig"),
        ("num_envs = 0", r"num_envs: got 0, allowed: an integer >= 1"),
        ("num_envs = 64.5", r"num_envs: got 64.5, allowed: an integer >= 1"),
        ("discounting = 1.5", r"discounting: got 1.5, allowed: a number >= 0 and <= 1"),
        ("discounting = nan", r"discounting: got nan, allowed: a number"),
        ("normalize_observations = 1", r"normalize_observations: got 1, allowed: true or false"),
        ("backend = 'bullet'", r"backend: got 'bullet', allowed: one of auto, spring, positional, generalized, mjx, jax, warp"),
        ("[policy]\nhidden_sizes = [64, 0]", r"policy.hidden_sizes: got \(64, 0\), allowed: a list, each item an integer >= 1"),
        ("seed = {a = 1}", r"seed: got {'a': 1}, allowed: a single value, not a table"),
        ("seed = ", r"config file: got .*allowed: valid TOML"),
    ],
)
def test_a_bad_file_is_answered_with_field_value_and_what_is_allowed(tmp_path, text, message):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_run_config(path)
    assert "\n" not in str(error.value).replace("\\n", "")
    assert str(path) in str(error.value)


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "config.toml").write_bytes(b'\xef\xbb\xbfenvironment = "fast"\nseed = 3\n')
    assert read_run_config(tmp_path / "config.toml").seed == 3
    (tmp_path / "config.toml").write_text('environment = "fast"', encoding="utf-16")
    with pytest.raises(
        ConfigError, match=r"config file: got .*, allowed: a readable TOML file \('utf-8' codec can't decode byte"
    ):
        read_run_config(tmp_path / "config.toml")


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(ConfigError, match=r"config file: got .*No such file"):
        read_run_config(tmp_path / "none.toml")


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("data")
    with pytest.raises(ConfigError, match=r"run_dir: got .*allowed: a folder that is new or empty"):
        create_run_folder(tmp_path, RunConfig())
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"^.*file/run cannot be written: "):
        create_run_folder(tmp_path / "file" / "run", RunConfig())


def test_a_folder_remembers_its_config(tmp_path):
    config = dataclasses.replace(RunConfig(), seed=5)
    create_run_folder(tmp_path / "run", config)
    folder, again = open_run_folder(tmp_path / "run")
    assert again == config
    assert folder.metrics.parent == tmp_path / "run"
    with pytest.raises(ConfigError, match=r"run: got .*allowed: a folder that a training wrote"):
        open_run_folder(tmp_path)


def test_default_folders_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "NOW")
    folders = [create_run_folder(None, RunConfig(environment="ant")) for _ in range(2)]
    assert [str(folder.path) for folder in folders] == ["runs/ant-NOW", "runs/ant-NOW-2"]


def log(path, *records):
    metrics_log = MetricsLog(path)
    for step, metrics in records:
        metrics_log.log(step, metrics)
    metrics_log.close()
    return path.read_text()


def test_the_metrics_log_leaves_out_what_json_cannot_hold(tmp_path):
    text = log(tmp_path / "metrics.jsonl", (1, {"a": 1.5, "b": float("nan"), "c": float("inf")}), (2, {"a": 2.5}))
    assert text == '{"step": 1, "a": 1.5}\n{"step": 2, "a": 2.5}\n'


@pytest.mark.parametrize(
    ("first", "kept"),
    [((2, {"a": 9.0}), 1), ((2, {"eval/b": 9.0}), 2), ((3, {"a": 9.0}), 3), ((7, {"a": 9.0}), 4)],
)
def test_a_run_that_goes_on_replaces_what_it_repeats(tmp_path, first, kept):
    path = tmp_path / "metrics.jsonl"
    before = log(path, (1, {"a": 1.0}), (2, {"a": 2.0}), (2, {"eval/b": 2.0}), (3, {"a": 3.0})).splitlines()
    after = log(path, first, (8, {"a": 8.0})).splitlines()
    assert after[:-2] == before[:kept]
    assert after[-1] == '{"step": 8, "a": 8.0}'
    assert len(after) == kept + 2


def test_a_torn_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a"')
    assert log(path, (2, {"a": 2.0})).splitlines() == ['{"step": 1, "a": 1.0}', '{"step": 2, "a": 2.0}']


@pytest.mark.parametrize("algorithm", ["cpo", "trpo_lagrangian"])
def test_limits_on_costs_come_with_long_rollouts_on_an_accelerator_too(algorithm):
    for environment in safety.environment_names():
        agent = starting_config(environment, "safety", algorithm, accelerator=True).agent
        assert agent.unroll_length >= default_config(algorithm).unroll_length
        assert agent.num_envs > default_config(algorithm).num_envs


def test_on_an_accelerator_every_environment_has_the_defaults_with_a_larger_batch():
    configs = Path(__file__).parents[2] / "configs" / "brax"
    environments = [file.stem for file in configs.glob("*.toml") if "accelerator" not in read_toml(file, file.name)]
    assert {"ant", "humanoid", "pusher", "reacher"} <= set(environments)
    for environment in environments:
        trpo = starting_config(environment, accelerator=True).agent
        assert trpo == TRPOConfig(num_envs=4096, unroll_length=16, discounting=0.99, gae_lambda=0.95), environment


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder in the place of configs/, with an environment that has settings of its own for an accelerator."""
    files = {
        "accelerator.toml": "num_envs = 4096\nunroll_length = 16\n[trust_region]\nmax_kl = 0.05\n",
        "brax/hopper.toml": 'environment = "hopper"\nnum_envs = 32\nepisode_length = 500\n[accelerator]\nunroll_length = 8\n'
        "[accelerator.trust_region]\ndamping = 0.5\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("trpo_jax.training.run_config._configs", lambda: tmp_path)
    return tmp_path


def test_on_an_accelerator_the_common_settings_go_over_an_environments_and_its_own_table_over_both(shipped):
    on_cpu, accelerated = (starting_config("hopper", accelerator=accelerator).agent for accelerator in (False, True))
    assert (on_cpu.num_envs, on_cpu.unroll_length, on_cpu.trust_region.max_kl) == (32, 40, 0.1)
    assert (accelerated.num_envs, accelerated.unroll_length) == (4096, 8)
    assert (accelerated.trust_region.max_kl, accelerated.trust_region.damping) == (0.05, 0.5)
    assert accelerated.episode_length == on_cpu.episode_length == 500
    assert starting_config("walker2d", accelerator=True).agent.unroll_length == 16  # has no file


def test_a_suites_own_settings_lie_below_those_of_an_environment(shipped):
    (shipped / "gymnasium").mkdir()
    text = "num_envs = 16\nunroll_length = 128\n[accelerator]\nepisode_length = 7\n"
    (shipped / "gymnasium" / "default.toml").write_text(text)
    (shipped / "gymnasium" / "Swimmer-v5.toml").write_text('environment = "Swimmer-v5"\nunroll_length = 64\n')
    swimmer, other = (starting_config(name, "gymnasium") for name in ("Swimmer-v5", "Ant-v5"))
    assert (swimmer.agent.num_envs, swimmer.agent.unroll_length) == (16, 64)
    assert (other.environment, other.agent.num_envs, other.agent.unroll_length) == ("Ant-v5", 16, 128)
    assert starting_config("Ant-v5", "gymnasium", "ppo").agent.num_envs == 16
    accelerated = starting_config("Ant-v5", "gymnasium", accelerator=True).agent  # stepped on the host all the same
    assert (accelerated.num_envs, accelerated.episode_length, accelerated.trust_region.max_kl) == (16, 7, 0.1)


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.parent.name != "brax"], ids=lambda path: path.stem)
def test_a_shipped_file_means_the_same_by_its_path_and_by_its_environments_name(path):
    assert starting_config(str(path)) == starting_config(path.stem, path.parent.name)


def test_a_file_of_ones_own_is_changed_by_its_own_table_only(shipped):
    file = str(shipped / "brax" / "hopper.toml")
    assert starting_config(file).agent.unroll_length == 40
    accelerated = starting_config(file, accelerator=True).agent
    assert (accelerated.num_envs, accelerated.unroll_length, accelerated.trust_region.max_kl) == (32, 8, 0.1)


def test_python_and_the_command_line_have_the_same_defaults():
    run_config = RunConfig()
    keywords = {name: each.default for name, each in inspect.signature(train).parameters.items() if hasattr(run_config, name)}
    assert {"seed", "num_evals", "num_eval_envs", "deterministic_eval", "checkpoint_interval"} <= keywords.keys()
    for name in keywords.keys() - {"environment", "num_timesteps", "algorithm"}:  # train has no defaults for the first two
        assert keywords[name] == getattr(run_config, name), name


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_the_default_device_decides_which_settings_a_name_means_in_python_and_on_the_command_line(
    shipped, tmp_path, monkeypatch, platform
):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    expected = starting_config("hopper", accelerator=platform != "cpu")
    assert shipped_config("hopper") == expected
    seen = []

    def record(*arguments, config, **_):
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("trpo_jax.runs.run.train", record)
    monkeypatch.chdir(tmp_path)
    assert main.run(["train", "hopper"]) == main.INTERRUPTED
    monkeypatch.setattr("trpo_jax.training.train.make_agent", lambda environment, config, networks: record(config=config))
    with pytest.raises(KeyboardInterrupt):
        train("hopper", 100)
    assert seen == [expected.agent] * 2


def test_options_go_over_the_settings_for_an_accelerator_and_no_accelerator_over_the_device(shipped, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    parsed = parse_arguments(["hopper", "--num-envs", "8"], accelerator=True)
    assert (parsed.run.agent.num_envs, parsed.run.agent.unroll_length, parsed.accelerator) == (8, 8, True)
    parsed = parse_arguments(["hopper", "--no-accelerator"])
    assert (parsed.run.agent.num_envs, parsed.accelerator) == (32, False)
    parsed = parse_arguments(["hopper", "--accelerator"], accelerator=True)
    assert parsed.run.agent.num_envs == 4096
