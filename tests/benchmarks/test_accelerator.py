"""The accelerator's benchmark: nothing is lost or measured twice, whatever ends early; and what its figures rest on."""

import gzip
import importlib
import inspect
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import accelerator
import throughput
from accelerator import Arguments
from accelerator_parts import kernels, process, result, table, unit
from accelerator_parts.unit import Context, LeftOut
from probes import Counter
from trpo_jax.environments.brax import resolve_backend
from trpo_jax.environments.wrappers import EpisodeLimit
from trpo_jax.execution.runner import Runner

BENCHMARKS = Path(accelerator.__file__).parent

PROBES = """
import os, pathlib, signal, time, uuid
from accelerator_parts.unit import LeftOut, Part, Unit

HERE = pathlib.Path(__file__).parent

def wait(context, seconds):
    (HERE / "process").write_text(str(os.getpid()))
    time.sleep(seconds)
    return {"value": str(uuid.uuid4())}

def fail(context):
    raise RuntimeError("out of\\nmemory")

def die(context):
    os.kill(os.getpid(), signal.SIGKILL)

def leave_out(context):
    raise LeftOut("for a reason")

def meet(context, others):
    (HERE / f"met {os.getpid()}").touch()
    until = time.monotonic() + 30
    while len(list(HERE.glob("met *"))) < others + 1:
        assert time.monotonic() < until, "alone"
        time.sleep(0.01)
    return {"at once": context.at_once, "preallocates": os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE")}

def part(name, *units, **options):
    return Part(name, "", units, **options)

def friend(name):
    return Unit(name, "probe_parts.meet", 0.0, arguments={"others": 2})

def sleeper(name, seconds=0.0, predicted=0.0):
    return Unit(name, "probe_parts.wait", predicted, arguments={"seconds": seconds})

def probe(function, needs=""):
    return Unit(function, f"probe_parts.{function}", 0.0, needs=needs)

PARTS = (
    part("failing", probe("fail"), sleeper("good")),
    part("dying", probe("die"), sleeper("good")),
    part("absent", probe("wait", needs="nowhere.here"), probe("leave_out"), sleeper("good")),
    part("long", sleeper("hour", predicted=3600.0), sleeper("minute", predicted=60.0)),
    part("asleep", sleeper("asleep", seconds=60.0), sleeper("good")),
    part("overrun", sleeper("overruns", seconds=2.5), sleeper("next", predicted=2.0)),
    part("together", *map(friend, "abc"), probe("die"), probe("fail"), at_once=True),
    part("broken", Unit("broken", "nowhere.measure", 0.0)),
    *(part(f"sleepy {i}", *(sleeper(f"unit {j}", seconds=0.1) for j in range(3))) for i in range(2)),
)
"""
"""A table of parts that sleep, fail, or end their process."""


@pytest.fixture
def probe_parts(tmp_path, monkeypatch):
    """Return a function that runs some of the probes, and gives the exit status and the rows by part and unit."""
    (tmp_path / "probe_parts.py").write_text(PROBES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "probe_parts", raising=False)

    def run(*parts, **options):
        path = tmp_path / "result.json"
        status = accelerator.main(Arguments(parts=parts, json=str(path), **options), table="probe_parts")
        return status, {(row["part"], row["unit"]): row for row in json.loads(path.read_text())["rows"]}

    return run


def test_a_failure_is_written_down_and_the_rest_goes_on(probe_parts, capfd):
    status, rows = probe_parts("failing", "dying", "broken")
    assert status == 1
    assert rows["failing", "fail"]["failed"] == "RuntimeError: out of memory"
    assert rows["dying", "die"]["failed"] == "its process ended with status -9"
    assert rows["broken", "broken"]["failed"] == "ModuleNotFoundError: No module named 'nowhere'"
    assert all(result.is_measured(rows[part, "good"]) for part in ("failing", "dying"))
    assert "out of memory" in capfd.readouterr().out


def test_units_at_once_share_the_device_and_lose_only_their_own_failures(probe_parts):
    status, rows = probe_parts("together")
    assert status == 1
    assert all(rows["together", name].items() >= {"at once": True, "preallocates": "false"}.items() for name in "abc")
    assert rows["together", "fail"]["failed"] == "RuntimeError: out of memory"
    assert rows["together", "die"]["failed"] == "its process ended with status -9"


def test_what_was_measured_stays_and_what_failed_is_tried_again_last(probe_parts, capfd):
    _, before = probe_parts("failing", "sleepy 0")
    capfd.readouterr()
    status, after = probe_parts("failing", "sleepy 0", "sleepy 1")
    assert status == 1
    assert all(after[key] == row for key, row in before.items() if result.is_measured(row))
    assert after["failing", "fail"]["command"] == 2
    begun = [line.split(":")[0] for line in capfd.readouterr().out.splitlines() if "predicted," in line]
    assert begun == ["sleepy 1", "failing"]
    _, anew = probe_parts("sleepy 0", resume=False)
    assert {row["command"] for row in anew.values()} == {1}
    assert anew["sleepy 0", "unit 0"]["value"] != before["sleepy 0", "unit 0"]["value"]


def test_what_there_is_no_time_for_or_what_is_not_installed_is_left_out(probe_parts):
    status, rows = probe_parts("long", "absent")
    assert status == 0
    assert [rows["long", name]["left out"] for name in ("hour", "minute")] == ["no time"] * 2
    assert rows["absent", "wait"]["left out"] == "not installed: nowhere.here"
    assert rows["absent", "leave_out"]["left out"] == "for a reason"
    assert result.is_measured(rows["absent", "good"])


def test_a_part_that_takes_too_long_is_ended(probe_parts, monkeypatch):
    monkeypatch.setattr(accelerator, "PATIENCE", 0.7)
    status, rows = probe_parts("asleep")
    assert status == 1
    assert rows["asleep", "asleep"]["failed"] == "took too long: the part was ended after 4 s"
    assert result.is_measured(rows["asleep", "good"])


def test_what_a_process_has_no_time_left_for_gets_another(probe_parts, monkeypatch, capfd):
    monkeypatch.setattr(unit, "START", 0.9)
    status, rows = probe_parts("overrun")
    assert status == 0
    assert all(result.is_measured(row) for row in rows.values())
    assert capfd.readouterr().out.count("s predicted, ") == 2


def test_a_part_that_the_command_ends_in_has_not_failed(probe_parts, monkeypatch):
    monkeypatch.setattr(unit, "START", 0.9)
    status, rows = probe_parts("asleep", seconds=1.0)
    assert status == 0
    assert rows["asleep", "asleep"]["left out"].startswith("no time: cut off at the end of the command")
    assert rows["asleep", "good"]["left out"] == "no time"


def test_a_failure_is_not_forgotten_for_want_of_time(tmp_path):
    path = tmp_path / "result.json"
    named = {"part": "a", "unit": "b"}
    result.add(path, named | {"command": 1, "failed": "because"})
    result.add(path, named | {"command": 2, "left out": "no time"})
    assert result.read(path)["rows"] == [named | {"command": 2, "failed": "because"}]
    result.add(path, named | {"command": 3, "value": 1})
    result.add(path, named | {"command": 3, "value": 2})
    assert result.read(path)["rows"] == [named | {"command": 3, "value": 1}]


def test_a_command_that_is_killed_loses_nothing_and_repeats_nothing(probe_parts, tmp_path):
    path = tmp_path / "result.json"
    parts = ("sleepy 0", "sleepy 1")
    line = f"accelerator.main(accelerator.Arguments(parts={parts}, json={str(path)!r}), table='probe_parts')"
    variables = {**os.environ, "PYTHONPATH": f"{BENCHMARKS}:{tmp_path}"}
    moments = random.Random(0)
    for _ in range(4):
        before = result.read(path)["rows"]
        command = subprocess.Popen([sys.executable, "-c", f"import accelerator; {line}"], env=variables)
        time.sleep(moments.uniform(0.3, 1.5))
        command.kill()
        command.wait()
        wait_for_its_end(tmp_path / "process")
        assert result.read(path)["rows"][: len(before)] == before
    before = {(row["part"], row["unit"]): row for row in result.read(path)["rows"]}
    status, rows = probe_parts(*parts)
    assert status == 0
    assert [(row["part"], row["unit"]) for row in result.read(path)["rows"]] == list(rows)
    assert sorted(rows) == [(part, f"unit {i}") for part in parts for i in range(3)]
    assert all(rows[key] == row for key, row in before.items())


def wait_for_its_end(written: Path) -> None:
    """Wait until the process whose number is in a file is no more, or no more than a name."""
    state = Path("/proc") / (written.read_text() if written.exists() else "none") / "stat"
    for _ in range(100):
        try:
            if state.read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.05)
    raise AssertionError("the part outlived the command")


def test_writers_do_not_lose_each_others_rows(tmp_path):
    path = tmp_path / "result.json"
    line = f"result.add(pathlib.Path({str(path)!r}), {{'part': sys.argv[1], 'unit': i, 'command': 1}})"
    code = f"import pathlib, sys\nfrom accelerator_parts import result\nfor i in range(20): {line}"
    variables = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    writers = [subprocess.Popen([sys.executable, "-c", code, name], env=variables) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0] * 3
    assert sorted((row["part"], row["unit"]) for row in result.read(path)["rows"]) == [(p, i) for p in "abc" for i in range(20)]


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(SystemExit, match="there is no part nowhere; there are ant_speed, fit_by_cublas"):
        accelerator.main(Arguments(parts=("nowhere",), json=str(tmp_path / "result.json")))
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(SystemExit, match=r"other.json holds no result of a benchmark \(TypeError\); name another file"):
        accelerator.main(Arguments(json=str(tmp_path / "other.json")))


def test_all_parts_fit_into_the_time_and_predict_their_figures():
    assert sum(part.seconds(part.units) for part in table.PARTS) <= Arguments.seconds
    units = [(part.name, each.name) for part in table.PARTS for each in part.units]
    assert len(set(units)) == len(units)
    for each in (each for part in table.PARTS for each in part.units):
        assert each.predicted
        assert (each.evaluation > 0) == ("training" in each.measure)
        module, _, name = each.measure.rpartition(".")
        for small in (False, True):
            arguments = unit.arguments_of(each, small=small, environment="fast")
            inspect.signature(getattr(importlib.import_module(module), name)).bind(None, **arguments)
            assert arguments.get("environment") in (None, "fast", "CartpoleBalance")


def test_time_for_one_evaluation_is_kept_at_the_end():
    first, second = (unit.Unit(name, "", 10.0, evaluation=5.0) for name in "ab")
    other = unit.Unit("c", "", 7.0)
    assert unit.needed((first, second, other)) == 10 + 5 + 10 + unit.EVALUATION + 7
    assert unit.needed((other,)) == 7


def test_the_process_that_starts_the_parts_leaves_the_device_to_them():
    code = "import sys, accelerator, accelerator_parts.table; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(BENCHMARKS)}).returncode == 0


def test_the_simulators_environments_are_split_over_devices():
    tree = {"state": jnp.zeros((16, 3)), "key": jnp.zeros(2)}
    spread = throughput.over_devices(tree, num_envs=16, num_devices=2)
    assert [shard.data.shape for shard in spread["state"].addressable_shards] == [(8, 3)] * 2
    assert spread["key"].is_fully_replicated


def act_by(params, deterministic=False):
    return lambda observation, key: (jnp.broadcast_to(params, (*observation.shape[:-1], 2)), {})


class Payer(Counter):
    """A counter that pays its first action."""

    def step(self, state, action):
        return super().step(state, action)._replace(reward=action[..., 0])


def kept(stop_at=float("inf")):
    from accelerator_parts.training import Keeper

    keeper = Keeper(stop_at)
    for steps, value in ((0, 0.0), (50, 700.0), (100, 1000.0)):
        keeper(steps, act_by, np.float32(value))
    keeper.stretches = [5.0, 3.0, 2.0]
    return keeper


def test_kept_policies_are_evaluated_together(monkeypatch):
    from accelerator_parts import training

    options = {"xla_gpu_enable_triton_gemm": False}  # as on a GPU
    monkeypatch.setattr(training, "compiler_options", lambda devices: options)
    context = Context(float("inf"), imports=1.0, small=False, path=Path())
    row = training.summary(kept(), EpisodeLimit(Payer(), 5), context, episodes=2, batch=25)
    told = kept()
    told.first_iteration = 7.0
    assert training.summary(told, EpisodeLimit(Payer(), 5), context, episodes=2, made=2.0)["trace, compile, start"] == 5.0
    assert (row["final"], row["best"], row["steps/s"]) == (5000.0, 5000.0, 25.0)
    assert row["to_3000"] == [50, 8.0, 2.0]
    assert row["to_5000"] == [100, 10.0, 4.0]
    assert row["to_6000"] is None
    assert row["trace, compile, start"] == 8 - 2 + 1  # without the second half of the second stretch
    assert row["time to first step"] == row["trace, compile, start"] + 1


def test_policies_of_several_runs_are_evaluated_together():
    from accelerator_parts import training

    keeper = kept()
    keeper.policies = [np.stack([policy, policy + 200]) for policy in keeper.policies]
    context = Context(float("inf"), imports=1.0, small=False, path=Path(), at_once=True)
    row = training.summary(keeper, EpisodeLimit(Payer(), 5), context, episodes=2, together=True)
    assert row == {
        "steps": 100,
        "each run": [5000.0, 6000.0],
        "curve": [(0, [0.0, 1000.0]), (50, [3500.0, 4500.0]), (100, [5000.0, 6000.0])],
    }


@pytest.mark.brax
def test_several_rules_are_trained_in_one_program(monkeypatch):
    from accelerator_parts import training

    made = []

    class Watched(Runner):
        def __init__(self, *given, hyperparameters):
            super().__init__(*given, hyperparameters=hyperparameters)
            made.append(hyperparameters)

        def init(self, keys):
            made.append(keys)
            return super().init(keys)

    monkeypatch.setattr(training, "Runner", Watched)
    context = Context(float("inf"), imports=1.0, small=True, path=Path(), at_once=True)
    sizes = {"num_envs": 16, "unroll_length": 16, "num_timesteps": 512, "num_evals": 2, "episodes": 2}
    rules = ({"discounting": 0.5}, {"discounting": 0.75})
    row = training.together(context, environment="fast", rules=rules, seeds=(0, 1, 2), **sizes)
    assert np.shape(row["each run"]) == (2, 3)
    assert row["final"] == [np.mean(each) for each in row["each run"]]
    assert [(steps, len(returns)) for steps, returns in row["curve"]] == [(0, 6), (512, 6)]
    hyperparameters, keys = made
    assert hyperparameters.discounting.tolist() == [0.5, 0.5, 0.5, 0.75, 0.75, 0.75]
    assert (keys == jnp.stack([jax.random.key(seed) for seed in (0, 1, 2, 0, 1, 2)])).all()


def test_a_policy_among_other_trainings_has_no_seconds():
    from accelerator_parts import training

    context = Context(float("inf"), imports=1.0, small=False, path=Path(), at_once=True)
    row = training.summary(kept(), EpisodeLimit(Payer(), 5), context, episodes=2)
    assert row == {"steps": 100, "final": 5000.0, "best": 5000.0, "curve": [(0, 0.0), (50, 3500.0), (100, 5000.0)]}


def test_only_the_fit_is_compiled_with_other_options():
    from accelerator_parts.speed import options_for

    shipped = lambda devices, *, for_fit: {"kept": for_fit, "changed": 0}  # noqa: E731
    assert options_for(shipped, {"changed": 1}, []) == {"kept": False, "changed": 0}
    assert options_for(shipped, {"changed": 1}, [], for_fit=True) == {"kept": True, "changed": 1}


def test_a_training_is_stopped_in_time_to_be_evaluated():
    from accelerator_parts.training import Keeper, OutOfTime, summary

    keeper = Keeper(stop_at=time.monotonic() - 1)
    with pytest.raises(OutOfTime):
        keeper(0, act_by, np.float32(1.0))
    with pytest.raises(LeftOut, match="no time: the training was stopped before its second evaluation"):
        summary(keeper, None, None, episodes=2)


def test_ppo_is_trained_with_its_published_settings_untouched(monkeypatch):
    from accelerator_parts import training

    given = []
    monkeypatch.setattr(training, "train_ppo", lambda *arguments, **options: given.append((arguments, options)))
    monkeypatch.setattr(training, "summary", lambda *arguments, **options: {})
    context = Context(float("inf"), imports=1.0, small=False, path=Path())
    for each in (each for part in table.PARTS for each in part.units if each.measure.endswith(".ppo")):
        row = training.ppo(context, **each.arguments)
        (environment, steps, settings), options = given.pop()
        published = each.arguments["published"]
        assert settings is training.PUBLISHED[published]
        other = "" if published == environment else f" for {published}"
        assert (steps, options["seed"]) == (each.arguments["num_timesteps"], each.arguments["seed"])
        assert (row["algorithm"], options["backend"]) == (f"Brax PPO, published{other}", resolve_backend(environment))


def test_kernels_are_counted_by_stage(tmp_path):
    def named(kind, name, pid, tid=None):
        return {"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": {"name": name}}

    def span(name, ts, dur, pid, tid, **args):
        return {"ph": "X", "name": name, "ts": ts, "dur": dur, "pid": pid, "tid": tid, "args": args}

    names = [named("process_name", "/host:CPU", 1), named("process_name", "/device:GPU:0", 2)]
    names += [named("thread_name", "Stream #13(Compute)", 2, 13), named("thread_name", "XLA Ops", 2, 14)]
    host = [span("collect", 0, 1000, 1, 1), span("collect", 2000, 1000, 1, 1), span("improve", 1000, 1000, 1, 1)]
    device = [span(name, ts, 100, 2, 13) for name, ts in (("a", 10), ("a", 500), ("b", 1500), ("a", 2100), ("b", 2200))]
    again = [span("fusion", 10, 900, 2, 14, hlo_op="fusion")]
    path = tmp_path / "plugins" / "profile" / "now" / "host.trace.json.gz"
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt") as file:
        json.dump({"traceEvents": [*names, *host, *device, *again, {}]}, file)
    stages = kernels.by_stage(kernels.trace_file(tmp_path), ("collect", "improve", "fit"))
    assert stages["collect"] == {"ms": 1.0, "kernels": 2, "kernel ms": 0.2, "longest kernels": [["a", 2, 0.15], ["b", 0, 0.05]]}
    assert stages["improve"] == {"ms": 1.0, "kernels": 1, "kernel ms": 0.1, "longest kernels": [["b", 1, 0.1]]}
    assert stages["fit"]["kernels"] == 0


@pytest.mark.slow
@pytest.mark.brax
def test_a_part_runs_at_its_smallest_size(tmp_path, capfd):
    path = tmp_path / "result.json"
    # "fast" is Brax's own probe: a point that can only gain
    arguments = Arguments(parts=("profile",), small=True, environment="fast", json=str(path))
    assert accelerator.main(arguments) == 0
    record = json.loads(path.read_text())
    (row,) = record["rows"]
    assert {"device", "versions", "commit", "commands"} <= set(record["where"])
    assert set(row["predicted"]) <= set(row)
    assert row["collect: kernels"] > row["advance: kernels"] > 0
    assert path.with_suffix(".trace.json.gz").exists()
    assert "predicted and measured" in capfd.readouterr().out


@pytest.mark.brax
@pytest.mark.parametrize(("part", "name"), [("long", "humanoid"), ("ant_speed", "4096 × 16")])
def test_units_tell_what_they_predict(part, name, tmp_path):
    (each,) = (each for whole in table.PARTS for each in whole.units if (whole.name, each.name) == (part, name))
    arguments = unit.arguments_of(each, small=True, environment="fast")
    row = process.measure(each, Context(float("inf"), imports=1.0, small=True, path=tmp_path), arguments)
    assert set(each.predicted) <= set(row)
    assert row["time to first step"] > row["trace, compile, start"] > 0
