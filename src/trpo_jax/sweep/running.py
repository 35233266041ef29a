"""Running a sweep: what is left to do, by an executor, until every run is finished."""

from collections.abc import Sequence, Set
from typing import Any

from trpo_jax.sweep.executor import Done, Executor, Job, Listener
from trpo_jax.sweep.fields import fields_of
from trpo_jax.sweep.folder import SweepFolder
from trpo_jax.sweep.plan import Run
from trpo_jax.sweep.programs import PlannedProgram
from trpo_jax.sweep.training import RETURN, TRAINING_RETURN, Records


def run_sweep(folder: SweepFolder, planned: Sequence[PlannedProgram], executor: Executor, listener: Listener) -> None:
    """Train what is not finished yet. The folder is locked, and knows the plan.

    Args:
        folder: of the sweep.
        planned: see `plan_programs`.
        executor: does the work.
        listener: told how it goes on.

    Raises:
        What training raises; all that was finished before is kept.
    """
    results = Results(folder, planned, listener)
    executor(jobs_left(folder, planned, finished=results.rows.keys()), results.add, listener)


class Results:
    """The rows of the table, kept at hand while a sweep runs, so that finished runs are read only once."""

    def __init__(self, folder: SweepFolder, planned: Sequence[PlannedProgram], listener: Listener):
        """Read what is finished, and write the table of it."""
        self._folder, self._listener = folder, listener
        self._names = [run.name for program in planned for run in program.runs]
        found = {name: folder.finished(name) for name in self._names}
        self.rows = {name: finished.result for name, finished in found.items() if finished is not None}
        self._write()
        listener.begin(len(self.rows), len(self._names))

    def add(self, job: Job, done: Done) -> None:
        """Keep what a job has brought, and write the table anew."""
        for run, records in zip(job.runs, done.records, strict=True):
            if run.name not in self.rows:
                row = result(run, records, done.where, len(job.runs))
                self._folder.finish(run.name, records, row)
                self.rows[run.name] = row
        self._write()
        self._folder.drop(job.folder)
        self._listener.finished(job, len(self.rows))

    def _write(self) -> None:
        self._folder.write_results([self.rows[name] for name in self._names if name in self.rows])


def jobs_left(folder: SweepFolder, planned: Sequence[PlannedProgram], *, finished: Set[str]) -> list[Job]:
    """Return what is left: first what was begun together and is not finished, then the rest of each program.

    What was begun goes on in the company it began with, unless that is more than a program may now hold.
    """
    known = {run.name: (run, len(program.runs)) for program in planned for run in program.runs}
    left = known.keys() - finished
    jobs = []
    for path, names in folder.begun():
        if left & set(names) and set(names) <= known.keys() and len(names) <= max(known[name][1] for name in names):
            jobs.append(Job(tuple(known[name][0] for name in names), path))
            left -= set(names)
        else:
            folder.drop(path)
    for program in planned:
        rest = tuple(run for run in program.runs if run.name in left)
        if rest:
            jobs.append(Job(rest, folder.place_of([run.name for run in rest])))
    return jobs


def result(run: Run, records: Records, where: dict[str, Any], together: int) -> dict[str, Any]:
    """Return a run's row of the table."""
    last: dict[str, Any] = {}
    for record in records:
        last |= record
    return {
        "run": run.name,
        "environment": run.config.environment,
        "source": run.source,
        "seed": run.config.seed,
        "return": last.get(RETURN, last.get(TRAINING_RETURN)),
        "return_std": last.get("eval/episode_reward_std"),
        "steps": last.get("step", 0),
        "seconds": round(last.get("training/walltime", 0.0) + last.get("eval/walltime", 0.0), 3),
        "runs_in_program": together,
        **where,
        **{f"config.{name}": value for name, value in fields_of(run.config).items()},
    }
