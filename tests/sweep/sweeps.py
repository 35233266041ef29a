"""Sweeps small enough for tests, and processes that run them."""

import json
import time

import numpy as np

from trpo_jax.agent.inference import Params
from trpo_jax.sweep.executor import LocalExecutor, choose_devices
from trpo_jax.sweep.folder import SweepFolder
from trpo_jax.sweep.plan import make_plan
from trpo_jax.sweep.programs import plan_programs
from trpo_jax.sweep.running import run_sweep
from trpo_jax.sweep.spec import sweep_from_mapping
from trpo_jax.sweep.train_together import Trained

TINY = {
    "num_timesteps": 96,
    "config": {
        "num_envs": 4,
        "unroll_length": 4,
        "episode_length": 5,
        "num_evals": 2,
        "num_eval_envs": 2,
        "checkpoint_interval": 2,
        "trust_region.cg_iterations": 3,  # no early stop, which rounding decides about
        "critic.num_minibatches": 1,
        "critic.num_epochs": 1,
        "critic.hidden_sizes": [8],
        "policy.hidden_sizes": [8],
    },
}
"""Six iterations of 16 steps, at the end of which and before the first is an evaluation."""

SIX_RUNS = TINY | {"environments": ["fast"], "seeds": 2, "grid": {"gae_lambda": [0.8, 0.9, 1.0]}}
TWO_CELLS = TINY | {"environments": ["fast"], "seeds": 2, "grid": {"critic.num_epochs": [1, 2], "gae_lambda": [0.8, 0.9]}}


class Silent:
    """Is told of progress, and keeps the names of the runs of each job that has begun."""

    def __init__(self, seconds_an_iteration=0.0):
        self.begun, self._seconds = [], seconds_an_iteration

    def begin(self, num_finished, num_runs):
        pass

    def start(self, job):
        self.begun.append([run.name for run in job.runs])

    def iteration(self, job, step, metrics):
        time.sleep(self._seconds)

    def finished(self, job, num_finished):
        pass

    def failed(self, job, error):
        pass


def runs_of(mapping):
    return make_plan(sweep_from_mapping(mapping))


def plan(mapping, **options):
    options = {"memory_limit": 2**30, "num_devices": 1} | options
    return plan_programs(runs_of(mapping), **options)


def sweep(path, mapping, executor=None, *, progress=None, **options):
    """Run a sweep to its end, in this process where no executor is given; return the jobs that were begun."""
    folder, planned, progress = SweepFolder(path), plan(mapping, **options), progress or Silent()
    with folder.locked():
        folder.begin(runs_of(mapping))
        run_sweep(folder, planned, executor=executor or LocalExecutor(choose_devices()[:1]), listener=progress)
    return progress.begun


def pretend_finished(folder, run, records, **result):
    """Have a run finished that was never trained."""
    trained = Trained(records, Params(None, np.zeros(2, np.float32), np.ones(1, np.float32)))
    folder.finish(run, trained, {"run": run.name, "steps": records[-1]["step"]} | result)


def sweep_slowly(path, mapping):
    """Run a sweep with time to be killed in, and count the times that one has begun."""
    with (path.parent / "begun").open("a") as file:
        file.write("begun\n")
    sweep(path, json.loads(mapping), progress=Silent(seconds_an_iteration=0.02), most=2)


def records(path):
    """Return what every finished run has left, without what is measured in seconds."""
    folder = SweepFolder(path)
    found = {name: folder.finished(name) for name in folder.planned()}
    return {name: [timeless(record) for record in each.records] for name, each in found.items() if each is not None}


def timeless(record):
    return {name: value for name, value in record.items() if not any(word in name for word in ("sps", "time"))}
