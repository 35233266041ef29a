"""Units that know no environment: what the device can do at most, and the bare policy update by size."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import policy_update
import trpo_jax
from accelerator_parts.unit import Context
from trpo_jax import GaussianPolicy, TrustRegionConfig
from trpo_jax.training.devices import compiler_options

Row = dict[str, Any]


def median_seconds(run: Callable[..., Any], *arguments: Any, rounds: int = 5) -> float:
    """Return the median time of a call; the first, which may compile, is not timed."""
    jax.block_until_ready(run(*arguments))
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def ceilings(context: Context, *, size: int) -> Row:
    """Time a copy of 4·size² numbers, products of size × size matrices, a narrow product, and loops of tiny kernels."""
    large = jnp.ones(4 * size**2)
    row = {"copy TB/s": 2 * large.nbytes / median_seconds(jax.jit(lambda x: x + 1.0), large) / 1e12}
    del large
    a, b = (jax.random.normal(jax.random.key(seed), (size, size)) for seed in (1, 2))
    for name, dtype, precision in (
        ("f32", jnp.float32, "highest"),
        ("TF32", jnp.float32, "tensorfloat32"),
        ("bf16", jnp.bfloat16, "default"),
    ):
        seconds = median_seconds(product(precision), a.astype(dtype), b.astype(dtype))
        row[f"{name} TFLOP/s"] = 2 * size**3 / seconds / 1e12
    rows, width = 128 * size, min(size, 256)
    a, b = jnp.ones((rows, width)), jnp.ones((width, width))
    row["narrow f32 TFLOP/s"] = 2 * rows * width**2 / median_seconds(product("highest"), a, b) / 1e12
    trips = 2 * size
    row["loop trip µs"] = 1e6 * median_seconds(functools.partial(loop, trips), jnp.ones(4096)) / trips
    row["open loop trip µs"] = 1e6 * median_seconds(functools.partial(open_loop, trips), jnp.ones(4096)) / trips
    return row


def product(precision: str) -> Callable[..., jax.Array]:
    return jax.jit(functools.partial(jnp.matmul, precision=precision))


@functools.partial(jax.jit, static_argnums=0)
def loop(trips: int, x: jax.Array) -> jax.Array:
    """Launch one tiny kernel a trip."""
    return jax.lax.fori_loop(0, trips, lambda _, x: tiny(x), x)


@functools.partial(jax.jit, static_argnums=0)
def open_loop(trips: int, x: jax.Array) -> jax.Array:
    """Do as `loop` with an end that only the device knows, as conjugate gradients have it."""

    def goes_on(carry: Any) -> jax.Array:
        trip, x = carry
        return trip < trips - 0.5 + 0.25 * jnp.sign(x[0])

    return jax.lax.while_loop(goes_on, lambda carry: (carry[0] + 1, tiny(carry[1])), (0.0, x))[1]


def tiny(x: jax.Array) -> jax.Array:
    return jax.lax.optimization_barrier(jnp.sin(x) * 1.01)


def update(context: Context, *, samples: int, hidden_size: int, curvature_fraction: float, rounds: int) -> Row:
    """Compile and time one policy update with ten conjugate-gradient iterations, as a training compiles it."""
    network = GaussianPolicy(policy_update.ACTION_SIZE, (hidden_size, hidden_size))
    config = TrustRegionConfig(cg_tolerance=0.0, curvature_fraction=curvature_fraction)
    params, batch = policy_update.make_problem(network, samples)
    step = functools.partial(trpo_jax.trust_region_update, network.apply, config=config)
    began = time.perf_counter()
    compiled = jax.jit(step, compiler_options=compiler_options(jax.devices())).lower(params, batch).compile()
    compile_seconds = time.perf_counter() - began
    _, info = compiled(params, batch)
    return {
        "ms": 1e3 * median_seconds(compiled, params, batch, rounds=rounds),
        "compile seconds": compile_seconds,
        "temporary GB": compiled.memory_analysis().temp_size_in_bytes / 1e9,
        "conjugate gradients": int(info.cg_iterations),
    }
