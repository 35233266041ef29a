"""What curvature costs: a Fisher product against the least work it can be, and memory with and without microbatches.

    python benchmarks/curvature_costs.py [--samples 50000] [--rounds 9] [--json FILE]

"product ÷ floor": the time of a product of a policy with two tanh layers, in a scan of several, divided by the time that
the matrix work of four forward passes takes at the rate that this machine reaches on matrices of the same shape (a product
has at least two passes forward and two backward). "memory ratio": the memory that the compiler reserves for one policy
update in 16 microbatches, arguments and results included, over that of one that takes the batch whole.
"""

import dataclasses
import functools
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import tyro

import report
import trpo_jax
from policy_update import ACTION_SIZE, OBSERVATION_SIZE, make_problem
from trpo_jax import Box, PolicyNetwork, TrustRegionConfig, fisher_vector_product

PRODUCTS = 10
MULTIPLICATIONS = 10


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure Fisher products and memory."""

    samples: int = 50_000
    """Batch size of the products."""
    memory_samples: int = 200_000
    """Batch size of the updates whose memory is measured."""
    num_microbatches: int = 16
    """Pieces of the batch in the update that saves memory."""
    hidden_sizes: tuple[int, ...] = (64, 256)
    """Units of each of the policy's two hidden layers."""
    rounds: int = 9
    """Timed rounds."""
    json: str | None = None
    """Where to write the result."""


def main(arguments: Arguments) -> None:
    rows = [measure(size, arguments) for size in arguments.hidden_sizes]
    report.publish("curvature costs", rows, arguments.json)


def measure(hidden_size: int, arguments: Arguments) -> dict[str, Any]:
    samples = arguments.samples
    network = PolicyNetwork(Box(ACTION_SIZE), (hidden_size, hidden_size))
    params, batch = make_problem(network, samples)
    layer = jax.random.normal(jax.random.key(0), (samples, hidden_size))
    square = jax.random.normal(jax.random.key(1), (hidden_size, hidden_size)) / hidden_size**0.5
    competitors = {
        "many": lambda: products(network, params, batch.observation, PRODUCTS + 1),
        "one": lambda: products(network, params, batch.observation, 1),
        "matrices": lambda: multiply(layer, square, MULTIPLICATIONS),
    }
    seconds = {name: statistics.median(times) for name, times in report.alternate(competitors, rounds=arguments.rounds).items()}
    rate = MULTIPLICATIONS * 2 * samples * hidden_size**2 / seconds["matrices"]
    forward_work = 2 * samples * (OBSERVATION_SIZE * hidden_size + hidden_size**2 + hidden_size * ACTION_SIZE)
    product = (seconds["many"] - seconds["one"]) / PRODUCTS
    whole, pieces = (memory_of_an_update(network, arguments.memory_samples, parts) for parts in (1, arguments.num_microbatches))
    return {
        "network": f"{hidden_size}-{hidden_size}",
        "samples": samples,
        "GFLOP/s": 1e-9 * rate,
        "product, ms": 1e3 * product,
        "floor, ms": 1e3 * 4 * forward_work / rate,
        "product ÷ floor": product * rate / (4 * forward_work),
        "memory samples": arguments.memory_samples,
        "whole, MB": 1e-6 * whole,
        f"in {arguments.num_microbatches}, MB": 1e-6 * pieces,
        "memory ratio": pieces / whole,
    }


@functools.partial(jax.jit, static_argnames="number")
def multiply(layer: jax.Array, square: jax.Array, number: int) -> jax.Array:
    """Multiply a layer's activations `number` times by a square matrix, one product after another."""

    def step(layer: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jnp.matmul(layer, square, precision="highest"), None

    return jax.lax.scan(step, layer, length=number)[0]


@functools.partial(jax.jit, static_argnames=("network", "number"))
def products(network: PolicyNetwork, params: Any, observation: jax.Array, number: int) -> Any:
    """Multiply `number` times, each product normalized and fed to the next."""
    matvec = fisher_vector_product(lambda params: network.apply(params, observation), params)

    def step(vector: Any, _: None) -> tuple[Any, None]:
        product = matvec(vector)
        return jax.tree.map(lambda x: x / (1e-9 + jnp.max(jnp.abs(x))), product), None

    return jax.lax.scan(step, params, length=number)[0]


def memory_of_an_update(network: PolicyNetwork, samples: int, num_microbatches: int) -> int:
    """Return the bytes of arguments, results and everything between, without running the update."""
    config = TrustRegionConfig(cg_tolerance=0.0, num_microbatches=num_microbatches)
    problem = jax.eval_shape(lambda: make_problem(network, samples))
    update = jax.jit(lambda params, batch: trpo_jax.trust_region_update(network.apply, params, batch, config))
    memory = update.lower(*problem).compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
