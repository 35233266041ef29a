"""Curvature as a linear map: Fisher-vector and Hessian-vector products without a matrix."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from trpo_jax.tree import MatVec, Params, cast_like, check_floating, upcast
from trpo_jax.weights import average, unit_weight


def fisher_vector_product(
    distribution_fn: Callable[[Params], Any], params: Params, *, weight: Float[Array, "..."] | None = None
) -> MatVec:
    """Return the map v -> F v with the mean Fisher information F of a parametric distribution.

        F = (1/W) Σ_i w_i J_iᵀ M_i J_i,    J_i = ∂(distribution leaves of sample i)/∂params,
                                           M_i = ∂²KL(p_i ‖ q_i)/∂q² at q = p,    W = Σ_i w_i

    This is the Gauss-Newton form of the Hessian of the mean KL at the old parameters, and equal to it there, since the
    KL's gradient vanishes. It is positive semi-definite by construction. The network is linearized once; every product
    then costs one forward and one backward pass through the linearized network. M is derived from the distribution's
    `kl`, so a custom distribution needs nothing more.

    Args:
        distribution_fn: params -> distribution, a pytree with a method `kl(other) -> [...]`. Its floating leaves have
            the batch axes `[...]` first.
        params: pytree of floating arrays; the point at which F is taken.
        weight: `[...]`, non-negative, any scale; None weighs all samples equally. Weight zero leaves a sample
            out if its Jacobian is finite (0 · NaN is NaN: replace such observations by finite ones).

    Returns:
        MatVec, a map between pytrees like `params`. Matrix products run in full precision.

    Raises:
        TypeError: a leaf of `params` is not floating, or `distribution_fn` returns no distribution.

    Reference:
        Schulman et al. 2015 (arXiv 1502.05477), appendix C; Martens 2020 (arXiv 1412.1193), section 9.
    """
    return unit_fisher_vector_product(distribution_fn, params, None if weight is None else unit_weight(weight))


def unit_fisher_vector_product(
    distribution_fn: Callable[[Params], Any], params: Params, weight: Float[Array, "..."] | None
) -> MatVec:
    """Return v -> F v for weights with a sum of 1: F = Σ_i w_i J_iᵀ M_i J_i. A part's weights give the part's share of F."""
    check_floating(params, "params")
    with jax.default_matmul_precision("highest"):
        tangent, cotangent, metric = _factors(distribution_fn, params, lambda kl: average(kl, weight))

    def matvec(vector: Params) -> Params:
        return cotangent(metric(tangent(vector)))

    return matvec


def empirical_fisher_vector_product(
    log_prob_fn: Callable[[Params], Float[Array, "..."]], params: Params, *, weight: Float[Array, "..."] | None = None
) -> MatVec:
    """Return the map v -> F v with the empirical Fisher information, the mean outer product of the samples' score.

        F = (1/W) Σ_i w_i ∇log p(a_i) ∇log p(a_i)ᵀ,    W = Σ_i w_i

    Its expectation over actions is the Fisher information of `fisher_vector_product`, which needs no actions and varies less.

    Args:
        log_prob_fn: params -> log-probabilities of the actions taken, `[...]`.
        params: pytree of floating arrays; the point at which F is taken.
        weight: `[...]`, non-negative, any scale; None weighs all samples equally.

    Returns:
        MatVec, a map between pytrees like `params`. Matrix products run in full precision.

    Raises:
        TypeError: a leaf of `params` is not floating.

    Reference:
        Schulman et al. 2015 (arXiv 1502.05477), section 6, which compares the two.
    """
    return unit_empirical_fisher_vector_product(log_prob_fn, params, None if weight is None else unit_weight(weight))


def unit_empirical_fisher_vector_product(
    log_prob_fn: Callable[[Params], Float[Array, "..."]], params: Params, weight: Float[Array, "..."] | None
) -> MatVec:
    """Return v -> F v for weights with a sum of 1, or for a part of a batch its share of 1."""
    check_floating(params, "params")
    with jax.default_matmul_precision("highest"):
        log_prob, tangent, cotangent = _linearize(log_prob_fn, params)

    def matvec(vector: Params) -> Params:
        scores = tangent(vector)
        weighted = scores / scores.size if weight is None else scores * weight
        return cotangent(cast_like(weighted, log_prob))

    return matvec


def curvature_of_states(distribution_fn: Callable[[Params], Any], params: Params, x: Params) -> Float[Array, "..."]:
    """Return xᵀF_i x, `[...]`, for each state i: the second derivative of its KL along x, a vector like `params`."""
    with jax.default_matmul_precision("highest"):
        tangent, _, metric = _factors(distribution_fn, params, jnp.sum)
        moved = tangent(x)
        axes = jax.eval_shape(lambda params: distribution_fn(params).kl(distribution_fn(params)), params).ndim
        products = jax.tree.map(lambda a, b: jnp.sum(a * b, tuple(range(axes, a.ndim))), upcast(moved), metric(moved))
    return functools.reduce(jnp.add, jax.tree.leaves(products))


def _factors(
    distribution_fn: Callable[[Params], Any], params: Params, reduce: Callable[[Array], Array]
) -> tuple[MatVec, MatVec, MatVec]:
    """Return the factors of F as maps: v -> J v, u -> Jᵀ u, and u -> M u, with M the Hessian of `reduce`(KLs).

    M u is computed in at least float32.
    """
    old = distribution_fn(params)
    if not callable(getattr(old, "kl", None)):
        raise TypeError(
            f"distribution_fn: got a return value of type {type(old).__name__}, allowed: a distribution with kl(other)"
        )
    leaves, treedef = jax.tree.flatten(old)
    free = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]

    def free_leaves_fn(params):
        return [leaf for leaf, is_free in zip(jax.tree.leaves(distribution_fn(params)), free, strict=True) if is_free]

    def reduced_kl(new_leaves):
        new = iter(new_leaves)
        merged = [next(new) if is_free else leaf for leaf, is_free in zip(leaves, free, strict=True)]
        return reduce(old.kl(jax.tree.unflatten(treedef, merged)))

    outputs, tangent, cotangent = _linearize(free_leaves_fn, params)
    _, metric, _ = _linearize(jax.grad(reduced_kl), upcast(outputs))
    return tangent, lambda u: cotangent(cast_like(u, outputs)), lambda u: metric(upcast(u))


def _linearize(fn: Callable[[Any], Any], x: Any) -> tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]:
    """Return fn(x), v -> J v and u -> Jᵀ u with the Jacobian J of fn at x.

    If fn has only a reverse-mode derivative (`jax.custom_vjp`), J is computed by transposing Jᵀ.
    """
    value, product = jax.linearize(fn, x)
    if "custom_lin[" in str(jax.make_jaxpr(product)(x)):  # a custom_vjp leaves a linear map that can only be transposed
        value, transposed = jax.vjp(fn, x)
        return value, _only(jax.linear_transpose(_only(transposed), value)), _only(transposed)
    return value, product, _only(jax.linear_transpose(product, x))


def _only(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function that unpacks the one-element result of `fn`."""
    return lambda x: fn(x)[0]


def hessian_vector_product(scalar_fn: Callable[[Params], Float[Array, ""]], params: Params) -> MatVec:
    """Return the map v -> H v with the Hessian H of a smooth scalar function at `params`, by jvp of grad.

    Args:
        scalar_fn: params -> scalar. For a function such as the mean KL at the old parameters, `fisher_vector_product`
            gives the same product for less work.
        params: pytree of floating arrays.

    Returns:
        MatVec, a map between pytrees like `params`; symmetric, but not positive semi-definite in general. The gradient
        is linearized once, matrix products run in full precision.

    Raises:
        TypeError: a leaf of `params` is not floating.

    Reference:
        Pearlmutter 1994, "Fast exact multiplication by the Hessian".
    """
    check_floating(params, "params")
    with jax.default_matmul_precision("highest"):
        _, matvec, _ = _linearize(jax.grad(scalar_fn), params)
    return matvec
