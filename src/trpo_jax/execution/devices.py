"""The devices of a training, and the compiler options for them."""

import contextlib
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import jaxlib.version

from trpo_jax.errors import ConfigError

FEWEST_ENVS_A_DEVICE = 16
"""With fewer environments, a CPU core used as a device spends more time on starting operations than it saves."""


def is_accelerated() -> bool:
    """Tell whether JAX's default device is not a CPU; initializes the device."""
    return jax.default_backend() != "cpu"


def all_devices(max_devices_per_host: int | None = None) -> list[jax.Device]:
    """Return the devices of all processes, at most `max_devices_per_host` of each. Raises ConfigError for a number below 1."""
    if max_devices_per_host is None:
        return jax.devices()
    if max_devices_per_host < 1:
        raise ConfigError("max_devices_per_host", max_devices_per_host, "an integer >= 1")
    hosts = range(jax.process_count())
    return [device for host in hosts for device in jax.local_devices(host)[:max_devices_per_host]]


def show_cores_as_devices(num_envs: int | None = None, max_devices: int | None = None) -> None:
    """Make JAX present CPU cores as devices, so that a rollout keeps all of them busy.

    Uses `num_cores_to_use` cores for `num_envs` environments, or all cores if that is None, but at most `max_devices`.
    The user's own settings (`jax_num_cpu_devices`, XLA_FLAGS) are kept, and so are devices that JAX has already initialized.
    """
    chosen: int = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
    forced = re.findall(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if chosen >= 0 or forced:
        widen_thread_pool(max([chosen, *map(int, forced)]))
        return
    cores = min(num_cores(), max_devices or num_cores())
    with contextlib.suppress(RuntimeError):
        show_cpu_devices(cores if num_envs is None else num_cores_to_use(num_envs, cores))


def show_cpu_devices(num_devices: int) -> None:
    """Make JAX present this many CPU devices; raises RuntimeError if it has already initialized others."""
    widen_thread_pool(num_devices)
    jax.config.update("jax_num_cpu_devices", num_devices)


def widen_thread_pool(num_devices: int) -> None:
    """Make jaxlib 0.10 start two threads per core or per device, whichever are more; a user's own `NPROC` is kept.

    In jaxlib 0.10, a batched LAPACK call, such as the solves of Brax's generalized physics, occupies one of these threads and
    waits for others to do its work. With one thread per device, all of them may wait forever.
    """
    if jaxlib.version.__version_info__ < (0, 11):
        os.environ.setdefault("NPROC", str(2 * max(num_cores(), num_devices)))


def num_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_cores_to_use(num_envs: int, num_cores: int) -> int:
    """Return the largest number of cores that divides `num_envs` and gives each core enough environments."""
    most = max(1, min(num_cores, num_envs // FEWEST_ENVS_A_DEVICE))
    return max(count for count in range(1, most + 1) if num_envs % count == 0)


def are_cores_of_one_processor(devices: Sequence[jax.Device]) -> bool:
    """Tell whether devices share one memory, and take longer to synchronize for a sum than to compute it."""
    return devices[0].platform == "cpu" and jax.process_count() == 1


def compiler_options(devices: Sequence[jax.Device], *, for_fit: bool = False) -> dict[str, Any]:
    """Return the compiler options of the package's own programs for these devices.

    On a GPU, matrix products are left to cuBLAS. XLA's own kernels for them take most of a policy step's compilation time,
    even before XLA tries many versions of each on the GPU, and save no launches.

    Args:
        devices: all of one kind.
        for_fit: whether the program is the critic fit, which does use XLA's own kernels: in a minibatch of thousands of
            samples cuBLAS takes 38 µs for the gradient of one layer's weights, almost half of a gradient step (on an H200).
    """
    is_gpu = devices[0].platform in ("gpu", "cuda")
    return {"xla_gpu_enable_triton_gemm": False} if is_gpu and not for_fit else {}


def put(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Move arrays to a sharding; `jax.ShapeDtypeStruct`s only record it."""
    leaves = jax.tree.leaves(tree)
    if leaves and isinstance(leaves[0], jax.ShapeDtypeStruct):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)
    return jax.device_put(tree, sharding)
