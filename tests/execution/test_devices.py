"""Which devices are used, and what of a training is computed where."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from probes import Target
from trainings import SHARDED
from trpo_jax import ConfigError, make_trpo
from trpo_jax.execution.devices import all_devices, num_cores, num_cores_to_use, put
from trpo_jax.execution.placement import OneTraining
from trpo_jax.execution.runner import Runner


@pytest.mark.parametrize(
    ("num_envs", "num_cores", "expected"),
    [
        (64, 2, 2),
        (64, 3, 2),  # a divisor
        (64, 16, 4),  # sixteen environments each
        (96, 5, 4),
        (4096, 1, 1),
        (8, 8, 1),
        (1, 64, 1),
        (4099, 64, 1),  # a prime
    ],
)
def test_cores_divide_the_environments_and_have_enough_of_them(num_envs, num_cores, expected):
    assert num_cores_to_use(num_envs, num_cores) == expected


def run_apart(program, **variables):
    """Run a program in a process that only these variables tell of devices and threads."""
    unset = {"JAX_NUM_CPU_DEVICES": "", "NPROC": "", "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    environ = {name: value for name, value in (os.environ | unset | variables).items() if value}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("variables", "before", "expected"),
    [
        ({}, "", "min(2, cores)"),
        ({"JAX_NUM_CPU_DEVICES": "3"}, "", "3"),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, "", "3"),
        ({}, "jax.devices()", "1"),  # too late, and no error
    ],
)
def test_cores_are_shown_as_devices_unless_the_user_has_said_otherwise(variables, before, expected):
    program = f"""
import jax, os
from trpo_jax.execution.devices import show_cores_as_devices
{before}
show_cores_as_devices(32)
cores = len(os.sched_getaffinity(0))
assert jax.device_count() == {expected}, jax.device_count()
"""
    run_apart(program, **variables)


SOLVING = """
import jax
import jax.numpy as jnp
from trpo_jax.execution.devices import show_cores_as_devices

show_cores_as_devices()
mesh = jax.make_mesh((len(jax.devices()),), ("cores",), axis_types=(jax.sharding.AxisType.Auto,))
matrices = jnp.broadcast_to(2 * jnp.eye(6), (2048 * mesh.size, 6, 6))
matrices = jax.device_put(matrices, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("cores")))

@jax.jit
def solve(matrices):
    def step(solved, _):
        factor = jnp.linalg.cholesky(matrices + 1e-3 * solved)
        return jax.lax.linalg.triangular_solve(factor, matrices, left_side=True, lower=True), None
    return jax.lax.scan(step, matrices, length=50)[0]

for _ in range(20):
    solve(matrices).block_until_ready()
"""


MANY = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={4 * num_cores()}"}


@pytest.mark.parametrize("devices", [{}, pytest.param(MANY, marks=pytest.mark.slow)])
def test_batched_solves_on_all_cores_at_once_come_to_an_end(devices):
    run_apart(SOLVING, **devices)  # jaxlib 0.10 hung in the first seconds


def test_so_many_devices_of_each_host():
    assert all_devices() == jax.devices()
    assert all_devices(3) == jax.devices()[:3]
    with pytest.raises(ConfigError, match="max_devices_per_host: got 0, allowed: an integer >= 1"):
        all_devices(0)


def test_one_device_takes_its_copy_of_what_is_on_all_and_gives_it_back():
    mesh = jax.make_mesh((4,), ("d",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree = {"x": jnp.arange(3.0), "key": jax.random.key(1)}
    spread = put(tree, everywhere)
    alone = put(spread, one)
    for there, where in ((spread, everywhere), (alone, one)):
        assert there["x"].sharding == where
        assert there["x"].tolist() == [0.0, 1.0, 2.0]
        assert there["key"].sharding == where
        assert jax.random.key_data(there["key"]).tolist() == jax.random.key_data(tree["key"]).tolist()
    described = put(jax.eval_shape(lambda: tree), everywhere)
    assert described["x"] == jax.ShapeDtypeStruct((3,), jnp.float32, sharding=everywhere)


def test_cores_of_one_processor_share_the_rollout_and_leave_learning_to_the_first():
    runner = Runner(make_trpo(Target(), SHARDED), OneTraining(SHARDED.num_envs, jax.devices()[:4]))
    state, metrics = runner.update(runner.init(jax.random.key(0)))
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert {leaf.sharding for leaf in jax.tree.leaves((state.learner, state.critic))} == {first}
    assert metrics["training/kl"].sharding == first
    observation = state.rollout.environments.observation
    assert [shard.data.shape[0] for shard in observation.addressable_shards] == [4] * 4
