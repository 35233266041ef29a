"""Programs as tasks of a Ray cluster of several processes, one of which is killed."""

import itertools
import signal
import subprocess
import time

import pytest

from sweep.sweeps import TINY, TWO_CELLS, Silent, plan, records, sweep
from trpo_jax import ConfigError
from trpo_jax.sweep.folder import SweepFolder

ray = pytest.importorskip("ray", reason='needs the extra "ray"')
from ray.cluster_utils import Cluster  # noqa: E402

from trpo_jax.sweep.ray_executor import RayExecutor  # noqa: E402

# Long enough to be killed in; two programs, for two workers.
MAPPING = TINY | {"environments": ["fast"], "seeds": 4, "num_timesteps": 16 * 120}
MAPPING |= {"config": TINY["config"] | {"checkpoint_interval": 10}}


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


# Ray forks where it connects; here JAX has threads by then, and says so.
pytestmark = [
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def executor(address, **options):
    return RayExecutor(**{"address": address, "device": "cpu"} | options)


def workers():
    """Return the processes in which programs are trained, as Ray names them."""
    found = subprocess.run(["pgrep", "-f", "ray::_train_remotely"], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


class Killer(Silent):
    """Kills a worker in the middle of its program, once."""

    def __init__(self, unfinished):
        super().__init__()
        self.unfinished, self.killed = unfinished, None
        self.steps = []

    def iteration(self, job, step, metrics):
        assert len(metrics["training/episode_reward"]) == len(job.runs)
        self.steps.append((job.folder, step))

    def start(self, job):
        super().start(job)
        deadline = time.monotonic() + 240
        while self.killed is None and time.monotonic() < deadline:
            lines = [path.read_text().count("\n") for path in self.unfinished.glob("*/metrics.jsonl")]
            if lines and 20 < max(lines) < 90 and workers():
                self.killed = workers()[0]
                subprocess.run(["kill", f"-{int(signal.SIGKILL)}", str(self.killed)], check=True)
            time.sleep(0.02)


@pytest.mark.slow
def test_every_run_is_finished_once_though_a_worker_is_killed(cluster, tmp_path):
    sweep(tmp_path / "here", MAPPING, most=2)
    killer = Killer(tmp_path / "there" / "unfinished")
    with executor(cluster.address) as ours:
        sweep(tmp_path / "there", MAPPING, ours, progress=killer, most=2)
    assert killer.killed is not None
    assert len(killer.begun) == 2
    assert killer.steps  # progress is told, too
    assert all(0 < step <= MAPPING["num_timesteps"] for _, step in killer.steps)
    for folder in {folder for folder, _ in killer.steps}:
        steps = [step for where, step in killer.steps if where == folder]
        assert all(one != next_one for one, next_one in itertools.pairwise(steps))  # each iteration once
    assert records(tmp_path / "there") == records(tmp_path / "here")
    assert len((tmp_path / "there" / "results.csv").read_text().splitlines()) == 5


@pytest.mark.slow
def test_a_program_that_fails_where_it_is_trained_keeps_no_other_from_being_trained(cluster, tmp_path):
    folder = SweepFolder(tmp_path)
    first, _ = plan(TWO_CELLS)
    folder.unfinished.mkdir()
    folder.place_of([run.name for run in first.runs]).write_text("no folder can be made here")
    folder.plan.write_text("[]")
    with executor(cluster.address) as ours, pytest.raises(ExceptionGroup, match="1 of 2 programs failed") as error:
        sweep(tmp_path, TWO_CELLS, ours)
    (failure,) = error.value.exceptions
    assert isinstance(failure, FileExistsError)
    assert "_train_remotely" in failure.__notes__[0]  # the worker's own traceback
    assert len(records(tmp_path)) == 4


def test_what_the_cluster_has_not_got_is_named(cluster):
    with pytest.raises(ConfigError, match=r"gpus_per_program: got 1\.0, allowed: what a node .* has: 1 CPU, 0 GPU$"):
        executor(cluster.address, gpus_per_program=1.0)


def test_a_tpu_that_no_node_has_is_named(cluster):
    with pytest.raises(ConfigError, match=r"tpus_per_program: got 4, allowed: what a node .* has: 1 CPU, 0 TPU$"):
        executor(cluster.address, device="tpu", tpus_per_program=4)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "ray://127.0.0.1:1", "nowhere.invalid:6379"])
def test_an_address_where_no_cluster_listens_is_refused_at_once(address):
    start = time.monotonic()
    with pytest.raises(ConfigError, match=f"ray_address: got '{address}', allowed: HOST:PORT or ray://HOST:PORT") as error:
        executor(address)
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 20  # not the minutes that Ray itself would try
