"""The method of conjugate gradients on pytrees."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from trpo_jax.tree import MatVec, Params, add_scaled, cast_like, check_floating, max_abs, scaled, upcast, vdot
from trpo_jax.weights import power_of_two


class CGInfo(NamedTuple):
    """Report on a conjugate-gradient solve."""

    iterations: Int[Array, ""]
    """Number of matrix-vector products, not counting the one that a starting point `x0` costs."""
    residual_norm: Float[Array, ""]
    """‖b - A x‖, from the recurrence, not recomputed from x."""
    negative_curvature: Bool[Array, ""]
    """True if the iteration stopped at a search direction p with pᵀ A p <= 0, without a step along p."""


def conjugate_gradient(
    matvec: MatVec,
    b: Params,
    *,
    max_iterations: int = 10,
    tolerance: float | Float[Array, ""] = 1e-10,
    x0: Params | None = None,
    preconditioner: MatVec | None = None,
) -> tuple[Params, CGInfo]:
    """Solve A x = b for a symmetric positive definite A, given only as the product v -> A v.

    Each iteration moves x along a direction p until the residual r = b - A x is orthogonal to p, and makes the next p
    conjugate to all previous ones:

        α = rᵀM⁻¹r / pᵀAp,    x += α p,    r -= α A p,    p = M⁻¹r + (rᵀM⁻¹r / its last value) p

    Stops when ‖b - A x‖² <= tolerance · ‖b‖², after `max_iterations`, or at a direction p of non-positive curvature
    pᵀ A p <= 0. Then the iterate reached so far is returned, which is still a descent direction of ½xᵀAx - bᵀx.

    Args:
        matvec: v -> A v, called with vectors in the dtypes of `b`; the iteration itself runs in at least float32.
        b: pytree of floating arrays, any shapes.
        max_iterations: largest number of products; static.
        tolerance: on the *relative squared* residual, dimensionless; may be traced.
        x0: starting point like `b`; None starts at zero and saves a product.
        preconditioner: v -> M⁻¹ v, an approximation of A⁻¹, symmetric positive definite.

    Returns:
        (x, CGInfo): x has the structure of `b`, in its dtypes or float32, whichever is wider. Non-finite products
        lead to a non-finite x or residual_norm, never to an exception. b = 0 gives x = 0 after 0 iterations. x can be
        differentiated with respect to `b` and to arrays that `matvec` closes over, as the exact solution of the system: by
        another solve, not through the iterations (but not inside `jax.shard_map`).

    Raises:
        TypeError: a leaf of `b` is not floating.
        ValueError: max_iterations < 1.

    Reference:
        Hestenes and Stiefel 1952; Nocedal and Wright 2006, algorithm 5.3 (preconditioned), 7.2 (negative curvature).
    """
    solution, _, info = solve_with_residual(
        matvec, b, max_iterations=max_iterations, tolerance=tolerance, x0=x0, preconditioner=preconditioner
    )
    return solution, info


def solve_with_residual(
    matvec: MatVec,
    b: Params,
    *,
    max_iterations: int,
    tolerance: float | Float[Array, ""],
    x0: Params | None = None,
    preconditioner: MatVec | None = None,
) -> tuple[Params, Params, CGInfo]:
    """Run `conjugate_gradient` and also return the residual b - A x, which gives xᵀAx without another product."""
    check_floating(b, "b")
    if max_iterations < 1:
        raise ValueError(f"max_iterations: got {max_iterations}, allowed: an integer >= 1")
    # Scale b to about unit size, so that squared norms neither overflow nor vanish, and scale the solution back. The scale
    # is a power of two, so that scaling does not round.
    size = power_of_two(max_abs(b))

    def product(v: Params) -> Params:
        with jax.default_matmul_precision("highest"):
            return cast_like(matvec(cast_like(v, b)), v)

    def solve(product: MatVec, target: Params) -> tuple[Params, tuple[Params, CGInfo]]:
        start = _start(product, target, None if x0 is None else cast_like(scaled(1.0 / size, upcast(x0)), target))
        return _iterate(product, target, *start, max_iterations, tolerance, preconditioner)

    target = scaled(1.0 / size, upcast(b))
    if jax.sharding.get_abstract_mesh().manual_axes:  # shard_map rejects linear_solve with replicated arrays
        solution, (residual, info) = solve(product, target)
    else:
        solution, (residual, info) = jax.lax.custom_linear_solve(product, target, solve, symmetric=True, has_aux=True)
    return scaled(size, solution), scaled(size, residual), info._replace(residual_norm=size * info.residual_norm)


def _start(product: MatVec, target: Params, x0: Params | None) -> tuple[Params, Params]:
    """Return the first iterate and its residual."""
    if x0 is None:
        return jax.tree.map(jnp.zeros_like, target), target
    return x0, add_scaled(target, jnp.float32(-1), product(x0))


class _State(NamedTuple):
    x: Params
    residual: Params
    direction: Params
    residual_dot: Float[Array, ""]  # rᵀ M⁻¹ r
    residual_norm2: Float[Array, ""] | None  # None without a preconditioner: equals residual_dot
    curvature: Float[Array, ""]  # pᵀ A p of the last direction p
    iterations: Int[Array, ""]


def _iterate(
    product: MatVec,
    target: Params,
    x: Params,
    residual: Params,
    max_iterations: int,
    tolerance: float | Float[Array, ""],
    preconditioner: MatVec | None,
) -> tuple[Params, tuple[Params, CGInfo]]:
    """Iterate from `x` and its residual; return (solution, (residual, report))."""
    target_norm2 = vdot(target, target)

    def precondition(residual: Params) -> tuple[Params, Float[Array, ""], Float[Array, ""] | None]:
        """Return M⁻¹r, rᵀM⁻¹r, and ‖r‖² (None without a preconditioner: equals rᵀM⁻¹r)."""
        norm2 = vdot(residual, residual)
        if preconditioner is None:
            return residual, norm2, None
        preconditioned = cast_like(preconditioner(residual), residual)
        return preconditioned, vdot(residual, preconditioned), norm2

    def norm2(state: _State) -> Float[Array, ""]:
        return state.residual_dot if state.residual_norm2 is None else state.residual_norm2

    def unfinished(state: _State) -> Bool[Array, ""]:
        wanted = norm2(state) > tolerance * target_norm2  # false for NaN, which ends the loop
        return wanted & (state.iterations < max_iterations) & ~(state.curvature <= 0)

    def iterate(state: _State) -> _State:
        a_direction = product(state.direction)
        curvature = vdot(state.direction, a_direction)
        negative = curvature <= 0
        step = jnp.where(negative, 0.0, state.residual_dot / jnp.where(negative, 1.0, curvature))
        x = add_scaled(state.x, step, state.direction)
        residual = add_scaled(state.residual, -step, a_direction)
        preconditioned, residual_dot, residual_norm2 = precondition(residual)
        direction = add_scaled(preconditioned, residual_dot / state.residual_dot, state.direction)
        return _State(x, residual, direction, residual_dot, residual_norm2, curvature, state.iterations + 1)

    direction, residual_dot, residual_norm2 = precondition(residual)
    start = _State(x, residual, direction, residual_dot, residual_norm2, jnp.ones_like(residual_dot), jnp.int32(0))
    end = jax.lax.while_loop(unfinished, iterate, start)
    return end.x, (end.residual, CGInfo(end.iterations, jnp.sqrt(norm2(end)), end.curvature <= 0))
