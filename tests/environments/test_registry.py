import pytest

from probes import Counter
from trpo_jax import ConfigError
from trpo_jax.environments.registry import as_environment


def test_an_object_behind_the_protocol_passes_as_it_is():
    environment = Counter()
    assert as_environment(environment) is environment


def test_an_unknown_name_is_answered_with_the_nearest_ones():
    with pytest.raises(ConfigError, match=r"environment: got 'hoper', allowed: .*hopper"):
        as_environment("hoper")


def test_an_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match=r"backend: got 'bullet', allowed: one of spring"):
        as_environment("ant", backend="bullet")


def test_an_object_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="environment: got a int, allowed: a name, a Brax Env"):
        as_environment(3)
