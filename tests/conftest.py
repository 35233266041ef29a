"""Fixtures and hypothesis settings that the numerical tests share."""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import tempfile
from pathlib import Path

import hypothesis
import jax
import jaxtyping
import pytest

# Derandomized, so that a failure belongs to the commit that shows it.
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],  # they only set JAX's modes
)
hypothesis.settings.load_profile("repeatable")


def pytest_configure(config):
    """Let the tests of one run, in all its processes, share compiled programs: many build the same one."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="trpo_jax-tests-", ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        # For processes that tests start.
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job; tests press Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.set_threshold(100_000, 20, 20)  # thousands of compiled programs are long-lived, and slow to look through
    if jax.__version_info__ < (0, 11):  # a later XLA does not know the flag; an earlier one compiles in two thirds of the time
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"
    jax.config.update("jax_num_cpu_devices", 8)  # for the tests of sharding; all others use the first
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


LARGEST_WORKER = 1 << 30
"""Bytes that a process may take before it forgets its compiled programs."""


@pytest.fixture(autouse=True, scope="module")
def little_memory():
    """After a module, have a process that has grown large forget its compiled programs. Few are used by another module."""
    yield
    if sys.platform == "linux" and resident_bytes() > LARGEST_WORKER:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # or the memory stays the process's


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


MATHEMATICAL_FLOORS = ("solver", "policy", "objective")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Leave out XLA's optimizations where programs are many and small, and what they round is not what is tested."""
    is_mathematical = item.path.parent.name in MATHEMATICAL_FLOORS
    quick = not is_mathematical or item.get_closest_marker("quick_compilation") is not None
    jax.config.update("jax_disable_most_optimizations", quick)


@pytest.fixture(autouse=True)
def no_silent_broadcasting(request):
    """Arrays of different rank do not broadcast, on the floors that hold mathematics."""
    with jax.numpy_rank_promotion("raise" if request.path.parent.name in MATHEMATICAL_FLOORS else "allow"):
        yield


@pytest.fixture
def x64():
    """Run the test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Run the test once in each precision."""
    with jax.enable_x64(request.param == "float64"):
        yield jax.numpy.dtype(request.param)


@pytest.fixture(scope="session")
def spawn():
    """Processes that start quickly: forked from one that has imported the package."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["processes"])

    def start(target, *arguments):
        process = context.Process(target=target, args=arguments)
        process.start()
        return process

    return start


@pytest.fixture
def own_errors():
    """Switch jaxtyping's checks off, so that the library's own message is what a wrong shape meets."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
