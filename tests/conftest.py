"""Fixtures and hypothesis settings that the numerical tests share."""

import hypothesis
import jax
import jaxtyping
import pytest

# Derandomized, so that a failure belongs to the commit that shows it; `--hypothesis-profile=search` looks further.
_common = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.function_scoped_fixture]}
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, **_common)
hypothesis.settings.register_profile("search", max_examples=2000, **_common)
hypothesis.settings.load_profile("repeatable")

MATHEMATICAL_FLOORS = ("solver", "policy", "objective")


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


@pytest.fixture
def own_errors():
    """Switch jaxtyping's checks off, so that the library's own message is what a wrong shape meets."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
