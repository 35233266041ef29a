"""Conjugate gradients on a policy's Fisher matrix by precision of its matrix products, against float64.

    python benchmarks/precision.py [--samples 65536] [--json FILE]

TF32, the default of many accelerators, keeps ten bits of each factor. Three ways: full float32; TF32 as the default, which
the package overrules; TF32 asked for by the policy's own layers, which nothing overrules. On a CPU all three are the same.
"""

import contextlib
import dataclasses
import functools
import itertools
import statistics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from jax.flatten_util import ravel_pytree

import report
from trpo_jax import DiagonalGaussian, MatVec, conjugate_gradient, fisher_vector_product

OBSERVATION_SIZE, ACTION_SIZE = 27, 8


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure conjugate gradients by precision."""

    samples: int = 65_536
    """Batch size."""
    hidden_size: int = 256
    """Units of each of the policy's two hidden layers."""
    rounds: int = 4
    """Timed rounds."""
    json: str | None = None
    """Where to write the result."""


def main(arguments: Arguments) -> None:
    rows = measure(samples=arguments.samples, hidden_size=arguments.hidden_size, rounds=arguments.rounds)
    report.publish("conjugate gradients by precision", rows, arguments.json)


class Problem(NamedTuple):
    """A system F x = b: a policy's Fisher matrix at some observations, and a gradient."""

    weights: list[jax.Array]
    """Of the policy's layers."""
    log_std: jax.Array
    observation: jax.Array
    gradient: tuple[list[jax.Array], jax.Array]
    """Like (weights, log_std)."""


PRECISIONS = {"float32": (None, None), "TF32 by default": ("tensorfloat32", None), "TF32 in layers": (None, "tensorfloat32")}
"""Name -> (default precision of matrix products, precision that the policy's layers ask for)."""


def measure(*, samples: int, hidden_size: int, rounds: int) -> list[dict[str, Any]]:
    """Solve the same damped systems by each precision; hold the solutions against float64.

    Args:
        samples: observations that the Fisher matrix is a mean over.
        hidden_size: units of each of the policy's two hidden layers.
        rounds: timed rounds.
    """
    with jax.enable_x64(True):
        problem = make_problem(samples, hidden_size)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), problem)
    rows = []
    for damping, iterations in ((0.1, 10), (0.001, 50)):
        competitors = {name: functools.partial(solve_by, name, single, damping, iterations) for name in PRECISIONS}
        seconds = report.alternate(competitors, rounds=rounds)
        with jax.enable_x64(True):
            exact = solve(problem, damping, iterations=1000, tolerance=1e-24)
            judged = {name: judge(problem, damping, competitor(), exact) for name, competitor in competitors.items()}
        for name, (residual, cosine) in judged.items():
            row = {"matrix products": name, "damping": damping, "iterations": iterations}
            row |= {"residual": float(residual), "cosine": float(cosine)}
            rows.append(row | {"ms": 1e3 * statistics.median(seconds[name])})
    return rows


def make_problem(samples: int, hidden_size: int) -> Problem:
    """Draw a policy with two tanh layers, observations, and the policy gradient of random advantages, in float64."""
    sizes = (OBSERVATION_SIZE, hidden_size, hidden_size, ACTION_SIZE)
    *layer_keys, observation_key, action_key, advantage_key = jax.random.split(jax.random.key(0), len(sizes) + 2)
    shapes = zip(layer_keys, itertools.pairwise(sizes), strict=True)
    weights = [jax.random.normal(key, shape) / shape[0] ** 0.5 for key, shape in shapes]
    observation = jax.random.normal(observation_key, (samples, OBSERVATION_SIZE))
    params = (weights, jnp.zeros(ACTION_SIZE))
    action = policy(params, observation, None).sample(action_key)
    advantage = jax.random.normal(advantage_key, (samples,))
    gradient = jax.grad(lambda params: jnp.mean(advantage * policy(params, observation, None).log_prob(action)))(params)
    return Problem(*params, observation, gradient)


def policy(params: Any, observation: jax.Array, precision: str | None) -> DiagonalGaussian:
    weights, log_std = params
    *hidden, last = weights
    for weight in hidden:
        observation = jnp.tanh(jnp.matmul(observation, weight, precision=precision))
    mean = jnp.matmul(observation, last, precision=precision)
    return DiagonalGaussian(mean, jnp.broadcast_to(log_std, mean.shape))


def solve_by(name: str, problem: Problem, damping: float, iterations: int) -> Any:
    """Solve by one of `PRECISIONS`."""
    default, layers = PRECISIONS[name]
    with jax.default_matmul_precision(default) if default else contextlib.nullcontext():
        return solve(problem, damping, iterations=iterations, tolerance=0.0, precision=layers)


@functools.partial(jax.jit, static_argnames=("iterations", "precision"))
def solve(problem: Problem, damping: float, *, iterations: int, tolerance: float, precision: str | None = None) -> Any:
    """Return x with (F + damping·1) x = gradient, like the gradient."""
    matvec = functools.partial(damped_product, fisher_product(problem, precision), damping)
    solution, _ = conjugate_gradient(matvec, problem.gradient, max_iterations=iterations, tolerance=tolerance)
    return solution


def fisher_product(problem: Problem, precision: str | None = None) -> MatVec:
    distribution_fn = functools.partial(policy, observation=problem.observation, precision=precision)
    return fisher_vector_product(distribution_fn, (problem.weights, problem.log_std))


def damped_product(product: MatVec, damping: float, vector: Any) -> Any:
    return jax.tree.map(lambda image, leaf: image + damping * leaf, product(vector), vector)


@jax.jit
def judge(problem: Problem, damping: float, solution: Any, exact: Any) -> tuple[jax.Array, jax.Array]:
    """Return a solution's true residual over the gradient, and the cosine of its angle to the exact solution."""
    image = damped_product(fisher_product(problem), damping, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), solution))
    gradient, image, solution, exact = (ravel_pytree(tree)[0] for tree in (problem.gradient, image, solution, exact))
    norm = jnp.linalg.norm
    cosine = jnp.vdot(solution, exact) / (norm(solution) * norm(exact))
    return norm(gradient - image) / norm(gradient), cosine


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
