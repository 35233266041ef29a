"""What a sweep file says, and what is said of one that cannot be used."""

from pathlib import Path

import pytest

from trpo_jax import ConfigError
from trpo_jax.algorithms.registry import default_config
from trpo_jax.sweep import plan
from trpo_jax.sweep.spec import Setting, read_sweep, sweep_from_mapping

KL = "trust_region.max_kl"
SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "sweeps").glob("*.toml"))


def written(tmp_path, text):
    path = tmp_path / "sweep.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_grid_is_every_combination_and_tables_may_be_dotted_or_not(tmp_path):
    text = """
    environments = ["hopper", "ant"]
    seeds = 3
    num_timesteps = 1000
    [config]
    critic.num_epochs = 5
    [grid]
    gae_lambda = [0.9, 0.95]
    trust_region.max_kl = [0.01, 0.02, 0.03]
    """
    sweep = read_sweep(written(tmp_path, text))
    assert (sweep.environments, sweep.seeds) == (("hopper", "ant"), (0, 1, 2))
    assert sweep.config == {"critic.num_epochs": 5, "num_timesteps": 1000}
    assert all(list(setting.swept) == ["gae_lambda", KL] for setting in sweep.settings)
    points = [{"gae_lambda": a, KL: b} for a in (0.9, 0.95) for b in (0.01, 0.02, 0.03)]
    assert sweep.settings == tuple(Setting(point, point) for point in points)
    quoted = sweep_from_mapping({"environments": ["ant"], "grid": {KL: [0.01]}})
    assert quoted.settings == (Setting({KL: 0.01}, {KL: 0.01}),)


def test_without_a_grid_there_is_one_setting_and_without_seeds_one_seed():
    sweep = sweep_from_mapping({"environments": ["ant"]})
    assert (sweep.settings, sweep.seeds) == ((Setting({}, {}),), (0,))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_each_shipped_sweep_can_be_planned(path, monkeypatch):
    monkeypatch.setattr(plan, "resolve", lambda config: config)  # which would load every environment
    sweep = read_sweep(path)
    assert len(plan.make_plan(sweep)) == len(sweep.environments) * len(sweep.settings) * len(sweep.seeds)


def test_sweeps_that_compare_defaults_do_so():
    folder = SHIPPED[0].parent
    pure = {"single path", "natural gradient"}
    ablations = [run for run in plan.plan_file(folder / "paper_ablations.toml") if run.swept["setting"] in pure]
    for run in (*plan.plan_file(folder / "algorithms.toml"), *ablations):
        assert run.config.agent == default_config(run.config.algorithm)


def swept(sweep):
    return [setting.swept for setting in sweep.settings]


def random_sweep(fields, **options):
    return sweep_from_mapping({"environments": ["ant"], "random": {"num_samples": 40, "fields": fields} | options})


def test_random_samples_lie_in_their_ranges_and_differ_by_seed_alone():
    fields = {
        KL: {"low": 1e-3, "high": 1e-1, "scale": "log"},
        "gae_lambda": {"low": 0.9, "high": 1.0},
        "critic.num_epochs": {"low": 1, "high": 9},
        "policy.activation": ["tanh", "swish"],
    }
    settings = swept(random_sweep(fields))
    assert settings == swept(random_sweep(fields)) != swept(random_sweep(fields, seed=1))
    assert all(1e-3 <= setting[KL] <= 1e-1 and 0.9 <= setting["gae_lambda"] <= 1 for setting in settings)
    assert 8 < sum(setting[KL] < 1e-2 for setting in settings) < 32  # uniform in the logarithm
    assert {setting["policy.activation"] for setting in settings} == {"tanh", "swish"}
    epochs = [setting["critic.num_epochs"] for setting in settings]
    assert all(isinstance(value, int) for value in epochs)
    assert min(epochs) < 3
    assert max(epochs) > 7
    # What else is drawn changes nothing.
    alone = [setting[KL] for setting in swept(random_sweep({KL: fields[KL]}))]
    assert alone == [setting[KL] for setting in settings]
    assert all(value == float(f"{value:.6g}") for value in alone)


def test_whole_numbers_are_drawn_with_the_same_chance_up_to_both_ends():
    fields = {"critic.num_epochs": {"low": 1, "high": 3}, "gae_lambda": {"low": 0.0, "high": 1.0}}
    drawn = [setting["critic.num_epochs"] for setting in swept(random_sweep(fields, num_samples=3000))]
    assert set(drawn) == {1, 2, 3}
    assert all(900 < drawn.count(value) < 1100 for value in (1, 2, 3))


def test_what_has_been_drawn_before_is_trained_once():
    settings = swept(random_sweep({"policy.activation": ["tanh", "swish"]}))
    assert sorted(setting["policy.activation"] for setting in settings) == ["swish", "tanh"]


def test_samples_are_the_same_at_every_point_of_the_grid():
    random = {"num_samples": 3, "fields": {"gae_lambda": {"low": 0.9, "high": 1.0}}}
    settings = swept(sweep_from_mapping({"environments": ["ant"], "grid": {KL: [0.1, 0.2]}, "random": random}))
    assert [setting[KL] for setting in settings] == [0.1] * 3 + [0.2] * 3
    drawn = [setting["gae_lambda"] for setting in settings]
    assert drawn[:3] == drawn[3:]


def drawn(field=KL, **interval):
    return {"random": {"fields": {field: interval}}}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "environments: got None, allowed: a list of strings"),
        ({"environments": []}, r"environments: got \[\], allowed: a list of strings"),
        ({"environments": "ant"}, "environments: got 'ant', allowed: a list"),
        ({"environments": ["ant", "ant"]}, "environments: got .*, allowed: strings that differ"),
        ({"environment": ["ant"]}, "environment: got .*, allowed: a known key of a sweep file; did you mean environments"),
        ({"grid": {}}, r"grid: got \{\}, allowed: at least one field"),
        ({"grid": {KL: []}}, rf"grid.{KL}: got \[\], allowed: a list of one or more"),
        ({"grid": {KL: 0.1}}, f"grid.{KL}: got 0.1, allowed: a list"),
        ({"grid": {KL: [0.1, 0.1]}}, f"grid.{KL}: got .* allowed: values that differ"),
        ({"grid": {"trust_region": {"max_lk": [0.1]}}}, "grid.trust_region.max_lk: got .* did you mean trust_region.max_kl"),
        ({"grid": {"seed": [1, 2]}}, "grid.seed: got .*, allowed: other fields; this one is given as seeds"),
        ({"config": {"environment": "ant"}}, "config.environment: got 'ant', allowed: .* given as environments"),
        ({"config": {"num_timesteps": 1}}, "config.num_timesteps: got 1, allowed: .* given as num_timesteps, at the top"),
        ({"grid": {"suite": ["brax"]}}, "grid.suite: got .*, allowed: other fields; this one is given under config"),
        ({"config": {"lambda": 1}}, "config.lambda: got 1, allowed: a known field"),
        ({"config": 3}, "config: got 3, allowed: a table"),
        ({"seeds": 0}, "seeds: got 0, allowed: a number of seeds >= 1, or a list"),
        ({"seeds": [1, -1]}, r"seeds: got \[1, -1\], allowed"),
        ({"seeds": True}, "seeds: got True, allowed"),
        ({"random": {"num_samples": 2}}, r"random.fields: got \{\}, allowed: at least one field"),
        ({"random": {"samples": 2, "fields": {KL: [0.1]}}}, "random.samples: got 2, allowed: .* did you mean num_samples"),
        ({"random": {"fields": {KL: 0.1}}}, f"random.fields.{KL}: got 0.1, allowed: a list of values, or a table with low"),
        (drawn(low=1, high=1), f"random.fields.{KL}.high: got 1, allowed: a number above low"),
        (
            {"random": {"fields": {KL: {"low": 0, "high": 1, "scale": "log"}}}},
            f"random.fields.{KL}.low: got 0, allowed: a number > 0",
        ),
        (
            {"random": {"fields": {KL: {"low": 0, "high": 1, "scale": "ln"}}}},
            f"random.fields.{KL}.scale: got 'ln', allowed: one of",
        ),
        (
            {"random": {"fields": {"policy.activation": {"low": 0, "high": 1}}}},
            "random.fields.policy.activation: got .* the field is not a number",
        ),
        (
            {"grid": {KL: [0.1]}, "random": {"fields": {KL: [0.2]}}},
            f"random.fields: got '{KL}', allowed: fields that are not under grid",
        ),
        (
            {"grid": {"num_envs": [8, 16]}, "traced": ["num_envs"]},
            "traced: got 'num_envs', allowed: fields that one program may hold many values of: clipped.*gae_lambda",
        ),
        ({"traced": ["gae_lambda"]}, "traced: got 'gae_lambda', allowed: fields under grid or random.fields"),
        ({"traced": ["gae_lambad"]}, "gae_lambad: got 'gae_lambad', allowed: .* did you mean gae_lambda"),
    ],
)
def test_a_wrong_entry_is_named(mapping, message):
    base = {} if "environments" in mapping or "environment" in mapping or not mapping else {"environments": ["ant"]}
    with pytest.raises(ConfigError, match=f"^(.*: )?{message}") as error:
        sweep_from_mapping(base | mapping)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("environments = [", "valid TOML"), (None, "a readable TOML file"), ("grid = {}", "environments: got")],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, text, message):
    path = tmp_path / "none.toml" if text is None else written(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as error:
        read_sweep(path)
    assert str(path) in str(error.value)


def test_whole_numbers_may_be_written_as_floats(tmp_path):
    text = 'environments = ["hopper"]\nseeds = [1e1, 2]\nnum_timesteps = 1e6\n[grid]\nnum_envs = [1e2, 64]\n'
    runs = plan.plan_file(written(tmp_path, text))
    assert {run.config.seed for run in runs} == {10, 2}
    assert {run.config.num_timesteps for run in runs} == {1_000_000}
    assert {run.config.agent.num_envs for run in runs} == {100, 64}
    assert all(type(run.config.agent.num_envs) is int for run in runs)
    assert sweep_from_mapping({"environments": ["hopper"], "seeds": 2.0}).seeds == (0, 1)
