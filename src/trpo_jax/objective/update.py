"""One TRPO policy update, as a pure function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from trpo_jax.objective.surrogate import (
    Batch,
    check_batch,
    curvature_samples,
    mask_unweighted,
    mean_and_max_kl,
    surrogate_objective,
)
from trpo_jax.policy.distributions import Distribution
from trpo_jax.solver.curvature import fisher_vector_product, weighted_mean
from trpo_jax.solver.tree import Params, check_floating
from trpo_jax.solver.trust_region import TrustRegionConfig, TrustRegionInfo, trust_region_step


def trust_region_update(
    policy_fn: Callable[[Params, Any], Distribution],
    params: Params,
    batch: Batch,
    config: TrustRegionConfig = TrustRegionConfig(),  # noqa: B008 - frozen
) -> tuple[Params, TrustRegionInfo]:
    """Improve a policy as far as a bound on its KL to the old one allows, on one batch of experience.

        maximize  mean exp(log π_θ(a|s) - log_prob)·A   subject to   mean KL(π_old(·|s) ‖ π_θ(·|s)) <= max_kl

    with π_old = `policy_fn(params, ·)`, by one natural-gradient step and a backtracking line search
    (`trust_region_step`) on the whole batch. Pure: works under jit, vmap, scan and sharding.

    What it guarantees, for every input:
        - accepted: mean KL(old ‖ new) <= max_kl, the surrogate has improved, every parameter is finite;
        - otherwise: the parameters returned are the ones passed in, bit for bit, and `info.outcome` says why.

    Args:
        policy_fn: (params, observation `[..., *]`) -> Distribution with batch axes `[...]`. Anything that must not be
            optimized (a frozen trunk, a normalizer) is closed over.
        params: pytree of floating arrays.
        batch: `Batch` whose leaves share the leading axes `[...]`. Advantages are used as they come.
        config: `TrustRegionConfig`; its float fields may be traced.

    Returns:
        (params, `TrustRegionInfo`), the info in scalars, which are all finite in a healthy step.

    Raises:
        TypeError: a leaf of `params` is not floating, or `policy_fn` returns no `Distribution`.
        ValueError: leaves of the batch, or the distribution's log_prob, disagree in shape.
        All before compilation. Numerical trouble never raises.

    Reference:
        Schulman et al. 2015 (arXiv 1502.05477), equation 14 and appendix C. The step is rejected, not shrunk further,
        after `max_backtracks`; the KL of the constraint is KL(old ‖ new), as in the paper.
    """
    check_floating(params, "params")
    check_batch(batch)
    _check_policy(policy_fn, params, batch)
    batch = mask_unweighted(batch)
    with jax.default_matmul_precision("highest"):
        old = jax.lax.stop_gradient(policy_fn(params, batch.observation))

        def new(params: Params) -> Distribution:
            return policy_fn(params, batch.observation)

        states = curvature_samples(batch, config.curvature_fraction)
        # Three functions of one forward pass: XLA finds the common part and computes it once.
        return trust_region_step(
            lambda params: surrogate_objective(new(params), batch),
            lambda params: mean_and_max_kl(old, new(params), batch.weight)[0],
            fisher_vector_product(lambda params: policy_fn(params, states.observation), params, weight=states.weight),
            params,
            config,
            diagnostics_fn=lambda params: (
                mean_and_max_kl(old, new(params), batch.weight)[1],
                weighted_mean(new(params).entropy(), batch.weight),
            ),
        )


def _check_policy(policy_fn: Callable[[Params, Any], Distribution], params: Params, batch: Batch) -> None:
    """Trace the policy once, abstractly, and raise if it does not give a distribution over the batch's actions."""
    axes = jnp.shape(batch.log_prob)

    def probe(params, observation, action):
        distribution = policy_fn(params, observation)
        if not isinstance(distribution, Distribution):
            kind = type(distribution).__name__
            raise TypeError(
                f"policy_fn: got a return value of type {kind}, "
                "allowed: a Distribution with log_prob, kl, entropy, sample and mode"
            )
        values = distribution.log_prob(action), distribution.kl(distribution), distribution.entropy()
        return distribution.mode(), values

    mode, values = jax.eval_shape(probe, params, batch.observation, batch.action)
    if jax.tree.map(jnp.shape, mode) != jax.tree.map(jnp.shape, batch.action):
        shapes = jax.tree.map(jnp.shape, batch.action), jax.tree.map(jnp.shape, mode)
        raise ValueError(f"batch.action: got shape {shapes[0]}, allowed: {shapes[1]}, that of the policy's actions")
    for name, value in zip(("log_prob", "kl", "entropy"), values, strict=True):
        if value.shape != axes:
            raise ValueError(f"policy_fn: {name} has shape {value.shape}, allowed: {axes}, the shape of batch.log_prob")
