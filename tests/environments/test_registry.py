import sys
from pathlib import Path

import pytest

from probes import Counter
from processes import several_processes
from trpo_jax import ConfigError
from trpo_jax.environments.registry import as_environment, environment_names, resolve_backend
from trpo_jax.errors import MissingPackageError


def test_an_object_behind_the_protocol_passes_as_it_is():
    environment = Counter()
    assert as_environment(environment) is environment


def test_an_unknown_name_is_answered_with_the_nearest_ones():
    with pytest.raises(ConfigError, match=r"environment: got 'hoper', allowed: .*hopper"):
        as_environment("hoper")


def test_an_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match=r"backend: got 'bullet', allowed: one of auto, spring"):
        as_environment("ant", backend="bullet")


@pytest.mark.parametrize("call", [as_environment, resolve_backend])
def test_an_unknown_suite_is_refused(call):
    with pytest.raises(ConfigError, match="suite: got 'gym', allowed: one of brax, playground"):
        call("ant", suite="gym")


def test_the_names_of_brax():
    assert {"ant", "hopper", "swimmer"} <= set(environment_names())


def test_a_suite_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "trpo_jax.environments.playground", raising=False)
    monkeypatch.delattr("trpo_jax.environments.playground", raising=False)
    monkeypatch.setitem(sys.modules, "mujoco_playground", None)  # importing it now fails as if it were not there
    message = r'the suite playground needs mujoco_playground, which is not installed: pip install "trpo-jax\[playground\]"'
    for call in (as_environment, resolve_backend):
        with pytest.raises(MissingPackageError, match=message):
            call("CartpoleBalance", suite="playground")
    assert as_environment(Counter())  # objects of other kinds need no suite


def test_an_object_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="environment: got a int, allowed: a name, a Brax Env"):
        as_environment(3)


def test_each_of_several_processes_loads_environments_onto_its_own_devices():
    several_processes(Path(__file__).with_name("loading_worker.py"), (), ())
