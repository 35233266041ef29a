"""Runs, cells and programs of a sweep."""

import pytest

from sweep.sweeps import SIX_RUNS, TINY, TWO_CELLS, plan, runs_of
from trpo_jax import ConfigError, TRPOConfig
from trpo_jax.execution.memory import free_bytes_of_host
from trpo_jax.sweep.plan import cells_of
from trpo_jax.sweep.programs import bytes_of_run
from trpo_jax.training.fields import all_fields, setting_in_words, traced_fields


def cells(mapping):
    return cells_of(runs_of(mapping))


def test_runs_that_differ_in_traced_values_share_a_program_and_others_do_not():
    (one,) = cells(SIX_RUNS)
    assert [(run.config.seed, run.config.agent.gae_lambda) for run in one.runs] == [
        (seed, value) for value in (0.8, 0.9, 1.0) for seed in (0, 1)
    ]
    two = cells(TWO_CELLS)
    assert [{run.config.agent.critic.num_epochs for run in cell.runs} for cell in two] == [{1}, {2}]
    assert [len(cell.runs) for cell in two] == [4, 4]
    several = cells(TINY | {"environments": ["fast", "inverted_pendulum"]})
    assert [cell.config.environment for cell in several] == ["fast", "inverted_pendulum"]


def test_every_run_has_a_name_of_its_own_that_depends_on_its_configuration_alone():
    names = [run.name for cell in cells(SIX_RUNS) for run in cell.runs]
    assert len(set(names)) == 6
    reordered = SIX_RUNS | {"grid": {"gae_lambda": [1.0, 0.9, 0.8]}, "seeds": [1, 0]}
    assert {run.name for cell in cells(reordered) for run in cell.runs} == set(names)
    # An integer where a float is wanted is the same value.
    assert cells(SIX_RUNS | {"grid": {"gae_lambda": [1]}})[0].runs[0].name == names[4]
    # The value that a configuration has anyway, put in by the sweep, is no other run.
    fixed = SIX_RUNS | {"config": SIX_RUNS["config"] | {"discounting": TRPOConfig().discounting}}
    assert [run.name for cell in cells(fixed) for run in cell.runs] == names


def test_the_traced_fields_are_the_leaves_of_the_config_and_the_seed():
    traced = traced_fields()
    assert {"seed", "gae_lambda", "discounting", "trust_region.max_kl", "critic.learning_rate"} <= traced
    assert not {"num_envs", "trust_region.curvature_fraction", "policy.init_log_std", "critic.num_epochs"} & traced
    assert {"clipped.learning_rate", "natural.step_kl"} <= traced  # of other algorithms
    assert traced <= all_fields().keys()


def test_runs_are_named_as_they_were_before_there_were_several_algorithms():
    (program,) = plan({"environments": ["fast"], "seeds": 1, "grid": {"gae_lambda": [0.5]}})
    assert program.runs[0].name == "fast-a6696e0d9b3e-seed0"


BOTH = {
    "environments": ["fast"],
    "seeds": 1,
    "config": {"num_envs": 4, "trpo": {"trust_region.max_kl": 0.03}, "ppo": {"clipped": {"num_epochs": 3}}},
    "grid": {"algorithm": ["trpo", "ppo"], "discounting": [0.5, 0.9]},
}


def test_a_sweep_over_algorithms_has_settings_for_all_and_for_one():
    runs = runs_of(BOTH)
    assert [(run.config.algorithm, run.config.agent.discounting) for run in runs] == [
        ("trpo", 0.5), ("trpo", 0.9), ("ppo", 0.5), ("ppo", 0.9)
    ]  # fmt: skip
    assert {run.config.agent.num_envs for run in runs} == {4}
    assert runs[0].config.agent.trust_region.max_kl == 0.03
    assert runs[2].config.agent.clipped.num_epochs == 3
    assert len(cells_of(runs)) == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"trust_region.max_kl": 0.03}, "trust_region: got .*, allowed: a field of ppo; this one belongs to trpo"),
        ({"ppo": {"trust_region.max_kl": 0.03}}, "trust_region: got .*, allowed: a field of ppo; this one belongs to trpo"),
        ({"ppo": {"epochs": 3}}, r"config.ppo.epochs: got 3, allowed: a known field"),
        ({"ppo": {"algorithm": "trpo"}}, r"config.ppo.algorithm: got 'trpo', allowed: other fields; this one is given under"),
        ({"ppo": 3}, r"config.ppo: got 3, allowed: a table"),
    ],
)
def test_fields_of_another_algorithm_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        runs_of(BOTH | {"config": config})


NAMED = {
    "environments": ["fast"],
    "seeds": 2,
    "config": {"num_envs": 4, "discounting": 0.9},
    "settings": {
        "single path": {},
        "short horizon": {"discounting": 0.5},
        "natural gradient": {"algorithm": "natural_gradient", "natural": {"step_kl": 0.02}},
    },
    "grid": {"gae_lambda": [0.8, 0.9]},
}


def test_settings_with_names_may_differ_in_any_fields_and_algorithms():
    runs = runs_of(NAMED)
    agents = [run.config.agent for run in runs[::2]]
    assert [each.discounting for each in agents] == [0.9, 0.9, 0.5, 0.5, 0.9, 0.9]
    assert [each.gae_lambda for each in agents] == [0.8, 0.9] * 3
    assert [run.config.algorithm for run in runs[::2]] == ["trpo"] * 4 + ["natural_gradient"] * 2
    assert agents[-1].natural.step_kl == 0.02
    assert runs[0].swept == {"setting": "single path", "gae_lambda": 0.8}
    assert setting_in_words(runs[-1].swept) == "natural gradient, gae_lambda 0.9"
    # A name is no part of the configuration: the same run has the same name in a sweep without named settings.
    unnamed = runs_of({name: value for name, value in NAMED.items() if name != "settings"})
    assert [run.name for run in unnamed] == [run.name for run in runs[:4]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"settings: got \{\}, allowed: at least one table, such as"),
        ({"a": 3}, "settings.a: got 3, allowed: a table"),
        ({"a": {"epochs": 3}}, "settings.a.epochs: got 3, allowed: a known field"),
        ({"a": {"seed": 3}}, "settings.a.seed: got 3, allowed: other fields; this one is given as seeds"),
        ({"a": {"suite": "brax"}}, "settings.a.suite: got 'brax', allowed: other fields; this one is given under config"),
        ({"a": {}, "b": {"gae_lambda": 1.0}}, "settings.b: got 'gae_lambda', allowed: fields that are not under grid"),
        ({"a": {}, "b": {}}, "sweep: got 'a, gae_lambda 0.8 and b, gae_lambda 0.8, for fast', allowed: settings that give"),
        ({"a": {"algorithm": ""}}, "algorithm: got '', allowed: one of trpo, ppo"),
        ({"a": {"clipped.num_epochs": 3}}, "clipped: got .*, allowed: a field of trpo; this one belongs to ppo"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        runs_of(NAMED | {"settings": settings})


def test_an_algorithm_that_does_not_exist_is_named():
    for name in ("dqn", ["ppo"]):
        with pytest.raises(ConfigError, match=r"algorithm: got .*, allowed: one of trpo, ppo"):
            runs_of(BOTH | {"grid": {"algorithm": [name]}})


def test_a_configuration_file_is_an_environment_too(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('environment = "fast"\ndiscounting = 0.5\n')
    (mine, shipped) = (cells(TINY | {"environments": [source]})[0].runs[0] for source in (str(path), "fast"))
    assert (mine.config.agent.discounting, mine.source) == (0.5, str(path))
    assert shipped.config.agent.discounting == TRPOConfig().discounting


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"environments": ["fastt"]}, "environment: got 'fastt', allowed: .*fast"),
        ({"environments": ["none.toml"]}, "config file: got 'none.toml', allowed: a readable TOML file"),
        ({"grid": {"gae_lambda": [0.9, 1.5]}}, "gae_lambda: got 1.5, allowed: a number"),
        ({"grid": {"critic.num_epochs": [0.5]}}, "critic.num_epochs: got 0.5, allowed: an integer"),
        ({"grid": {"gae_lambda": [1, 1.0]}}, "grid.gae_lambda: got .* differ"),
        ({"config": SIX_RUNS["config"] | {"suite": 3}}, "suite: got 3, allowed: one of brax, playground"),
        (
            {"grid": {"backend": ["spring", "auto"]}},
            "sweep: got 'backend spring and backend auto, for fast', allowed: settings that give different",
        ),
    ],
)
def test_what_cannot_be_planned_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        cells(SIX_RUNS | change)


def test_programs_hold_as_many_runs_as_fit_and_are_of_about_one_size():
    (cell,) = cells(SIX_RUNS)
    each = bytes_of_run(cell.runs[0])

    def sizes(**options):
        return [len(program.runs) for program in plan(SIX_RUNS, **options)]

    assert sizes() == [6]
    assert sizes(memory_limit=5 * each) == [3, 3]
    assert sizes(memory_limit=4 * each + each // 2) == [3, 3]
    assert sizes(memory_limit=2 * each, num_devices=2) == [4, 2]  # two on each device, and one
    assert sizes(memory_limit=4 * each, num_devices=4) == [6]
    assert sizes(most=4) == [3, 3]
    assert sizes(most=5, memory_limit=each) == [1] * 6
    with pytest.raises(ConfigError, match=r"memory_limit: got 0.*, allowed: at least .* one run of fast"):
        sizes(memory_limit=each - 1)


def test_a_program_knows_how_many_runs_it_may_hold():
    each = bytes_of_run(cells(SIX_RUNS)[0].runs[0])
    assert {program.capacity for program in plan(SIX_RUNS, memory_limit=4 * each, num_devices=2)} == {8}
    assert {program.capacity for program in plan(SIX_RUNS, memory_limit=4 * each, most=5)} == {4}
    assert {program.capacity for program in plan(SIX_RUNS, most=5)} == {5}
    less = plan(SIX_RUNS, memory_limit=2 * each, resume_limit=4 * each)
    assert {(len(program.runs), program.capacity) for program in less} == {(2, 4)}
    assert {program.capacity for program in plan(SIX_RUNS, memory_limit=2 * each, resume_limit=4 * each, most=3)} == {3}


VERSION_1 = "memory/", "5:cpu,cpuacct:/other\n4:memory:/job/step\n", ("limit_in_bytes", "usage_in_bytes", "total_inactive_file")
VERSION_2 = "", "0::/job/step\n", ("max", "current", "inactive_file")


@pytest.mark.parametrize("at", ["", "job", "job/step"])
@pytest.mark.parametrize("version", [VERSION_1, VERSION_2])
def test_a_control_groups_limit_counts_and_what_it_holds_of_files_is_free(version, at, tmp_path):
    top, line, (limit, current, cached) = version
    groups, own = tmp_path / "groups", tmp_path / "own"
    own.write_text(line)
    of_machine = free_bytes_of_host(groups, own)
    assert of_machine > 10**7
    group = groups / top / at
    group.mkdir(parents=True)
    (group / f"memory.{limit}").write_text("10000000\n")
    (group / f"memory.{current}").write_text("9000000\n")
    (group / "memory.stat").write_text(f"anon 2000000\nfile 7000000\n{cached} 6000000\nactive_file 1000000\n")
    assert free_bytes_of_host(groups, own) == 7_000_000
    (group / f"memory.{limit}").write_text("max\n")
    assert free_bytes_of_host(groups, own) == pytest.approx(of_machine, rel=0.2)
    assert free_bytes_of_host(groups, tmp_path / "none") == pytest.approx(of_machine, rel=0.2)
