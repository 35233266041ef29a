"""Running a sweep: an executor trains the runs that are left until every run is finished."""

import warnings
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from trpo_jax.sweep.executor import Executor, Job, Listener, Outcome
from trpo_jax.sweep.folder import SweepFolder
from trpo_jax.sweep.plan import Run
from trpo_jax.sweep.programs import PlannedProgram
from trpo_jax.sweep.train_together import RETURN, TRAINING_RETURN, Records
from trpo_jax.training.fields import fields_of


def run_sweep(folder: SweepFolder, planned: Sequence[PlannedProgram], *, executor: Executor, listener: Listener) -> None:
    """Train the runs that are not finished yet. The caller has locked the folder and written the plan into it.

    Args:
        folder: the sweep's folder.
        planned: see `plan_programs`.
        executor: trains the runs.
        listener: receives the progress.

    Raises:
        ExceptionGroup: the errors of programs that failed; raised once all others are finished.
        ConfigError, CheckpointError, OSError: an error that all programs would meet; raised at once. Finished runs are kept.
    """
    results = Results(folder, planned, listener=listener)
    jobs = jobs_left(folder, planned, finished=results.rows.keys())
    executor(jobs, deliver=results.add, listener=listener)
    if results.failures:
        count = f"{len(results.failures)} of {len(jobs)} programs failed"
        raise ExceptionGroup(f"{count}, the others are finished; the same command tries them again", results.failures)
    for unfinished in folder.unfinished_programs():  # of earlier plans; other programs have trained their runs
        folder.drop(unfinished.path)


class Results:
    """The rows of the results table, kept in memory during a sweep so that finished runs are read only once."""

    def __init__(self, folder: SweepFolder, planned: Sequence[PlannedProgram], *, listener: Listener):
        """Read the finished runs and write their table."""
        self._folder, self._listener = folder, listener
        self.failures: list[Exception] = []
        self._names = [run.name for program in planned for run in program.runs]
        found = {name: folder.finished(name) for name in self._names}
        self.rows = {name: finished.result for name, finished in found.items() if finished is not None}
        self._write()
        listener.begin(len(self.rows), len(self._names))

    def add(self, job: Job, outcome: Outcome) -> None:
        """Save a job's results and rewrite the table, or record its failure."""
        if isinstance(outcome, Exception):
            outcome.add_note(f"In a program of {len(job.runs)} runs: {', '.join(run.name for run in job.runs)}")
            self.failures.append(outcome)
            self._listener.failed(job, outcome)
            return
        for run, trained in zip(job.runs, outcome.trained, strict=True):
            if run.name not in self.rows:
                row = result(run, trained.records, where=outcome.where, together=len(job.runs))
                self._folder.finish(run, trained, row)
                self.rows[run.name] = row
        self._write()
        self._folder.drop(job.folder)
        self._listener.finished(job, len(self.rows))

    def _write(self) -> None:
        self._folder.write_results([self.rows[name] for name in self._names if name in self.rows])


def jobs_left(folder: SweepFolder, planned: Sequence[PlannedProgram], *, finished: Set[str]) -> list[Job]:
    """Return the jobs that are left: first the unfinished programs, then the remaining runs of each planned one.

    An unfinished program resumes with all its runs, unless a program may now hold fewer or some are no longer planned.
    """
    runs = {run.name: run for program in planned for run in program.runs}
    capacities = {run.name: program.capacity for program in planned for run in program.runs}
    left = runs.keys() - finished
    jobs = []
    for path, names, goes_on in folder.unfinished_programs():
        wanted = left & set(names)
        if not wanted:
            folder.drop(path)
        elif not set(names) <= runs.keys():
            _begin_anew(folder, path, wanted, "other runs of their program are no longer planned")
        elif len(names) > capacities[names[0]]:
            _begin_anew(folder, path, wanted, "a program may no longer hold as many runs as theirs")
        elif goes_on:
            jobs.append(Job(tuple(runs[name] for name in names), path))
            left -= wanted
    for program in planned:
        rest = tuple(run for run in program.runs if run.name in left)
        if rest:
            jobs.append(Job(rest, folder.place_of([run.name for run in rest])))
    return jobs


def _begin_anew(folder: SweepFolder, path: Path, wanted: Set[str], why: str) -> None:
    runs = "1 run starts" if len(wanted) == 1 else f"{len(wanted)} runs start"
    warnings.warn(f"{runs} over: {why}", stacklevel=3)
    folder.drop(path)


def result(run: Run, records: Records, *, where: dict[str, Any], together: int) -> dict[str, Any]:
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
