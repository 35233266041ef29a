"""One TRPO policy update, as a pure function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from trpo_jax.errors import ConfigError
from trpo_jax.objective.partition import (
    Partition,
    local,
    map_parts,
    max_of_parts,
    mean_of_parts,
    mean_over_parts,
    partition,
    samples_for_curvature,
)
from trpo_jax.objective.surrogate import Batch, check_batch, mask_unweighted, mean_and_max_kl, surrogate_objective
from trpo_jax.objective.trust_region_config import TrustRegionConfig, TrustRegionInfo
from trpo_jax.policy.distributions import Distribution
from trpo_jax.solver.curvature import (
    curvature_of_states,
    unit_empirical_fisher_vector_product,
    unit_fisher_vector_product,
)
from trpo_jax.solver.outcome import ConstrainedStepInfo, StepInfo
from trpo_jax.solver.step_config import TrustRegionState, check_stateless, init_trust_region_state
from trpo_jax.solver.trust_region import step_along_gradient
from trpo_jax.solver.vector_step import Evaluation, Problem
from trpo_jax.tree import MatVec, Params, cast_like, check_floating
from trpo_jax.weights import AxisName, average, unit_weight

PolicyFn = Callable[[Params, Any], Distribution]


def trust_region_update(
    policy_fn: PolicyFn,
    params: Params,
    batch: Batch,
    config: TrustRegionConfig = TrustRegionConfig(),  # noqa: B008 - frozen
    *,
    key: PRNGKeyArray | None = None,
    axis_name: AxisName | None = None,
) -> tuple[Params, TrustRegionInfo]:
    """Improve a policy on one batch of experience, within a bound on its KL to the old policy.

        maximize  mean exp(log π_θ(a|s) - log_prob)·A   subject to   mean KL(π_old(·|s) ‖ π_θ(·|s)) <= max_kl

    with π_old = `policy_fn(params, ·)`, by one natural-gradient step and a backtracking line search
    (`trust_region_step`) on the whole batch. Pure: works under jit, vmap, scan, shard_map and automatic sharding.

    Guarantees, for every input:
        - if accepted: KL(old ‖ new) <= max_kl (its mean, or with `kl_constraint="max"` that of every state), the surrogate
          has improved, and every parameter is finite. With `line_search=False` only the last of these holds;
        - otherwise: the parameters returned are the ones passed in, bit for bit, and `info.outcome` says why.

    Args:
        policy_fn: (params, observation `[..., *]`) -> Distribution with batch axes `[...]`. Anything that must not be
            optimized (a frozen trunk, a normalizer) is closed over. With axes `[T, N]` it may be recurrent over T.
        params: pytree of floating arrays.
        batch: `Batch` whose leaves share the leading axes `[...]`. Advantages are used as given.
        config: `TrustRegionConfig`; its float fields may be traced. `curvature_fraction` and `num_microbatches` divide
            the last batch axis.
        key: consumed if `curvature_sampling` is "random", else not needed.
        axis_name: named axes of `jax.shard_map` or `jax.vmap` over which the batch is split: every device gets its part
            of the batch and the same `params` and `key`, and returns the result of the whole batch. Leave it None under
            `jit` with sharded arrays.

    Returns:
        (params, `TrustRegionInfo`). The info's scalars are all finite in a healthy step.

    Raises:
        TypeError: a leaf of `params` is not floating, or `policy_fn` returns no `Distribution`.
        ValueError: leaves of the batch, or the distribution's log_prob, disagree in shape.
        ConfigError: `num_microbatches` does not divide the last batch axis; a key or a state is missing.
        All before compilation. Numerical trouble never raises.

    Reference:
        Schulman et al. 2015 (arXiv 1502.05477), equation 14 and appendix C. The step is rejected, not shrunk further,
        after `max_backtracks`; the KL of the constraint is KL(old ‖ new), as in the paper.
    """
    check_stateless(config)
    check_floating(params, "params")
    state = init_trust_region_state(params, config)
    params, _, info = stateful_trust_region_update(policy_fn, params, batch, state, config, key=key, axis_name=axis_name)
    return params, info


def stateful_trust_region_update(
    policy_fn: PolicyFn,
    params: Params,
    batch: Batch,
    state: TrustRegionState,
    config: TrustRegionConfig,
    *,
    key: PRNGKeyArray | None = None,
    axis_name: AxisName | None = None,
) -> tuple[Params, TrustRegionState, TrustRegionInfo]:
    """Run `trust_region_update` with a state that is carried from update to update.

    `state` is a running average of squared gradients, which shapes the damping. This update's gradient is included before
    use. Start with `init_trust_region_state(params, config)`. All other arguments are those of `trust_region_update`.
    Returns (params, state, `TrustRegionInfo`).

    Raises:
        ValueError: besides what `trust_region_update` raises, a state of another config or of other parameters.
    """
    check_floating(params, "params")
    check_batch(batch)
    check_policy(policy_fn, params, batch)
    check_config(config, batch, key)
    with jax.default_matmul_precision("highest"):
        problem, objective, gradient = _policy_problem(policy_fn, params, mask_unweighted(batch), config, key, axis_name)
        params, state, step, report = step_along_gradient(problem, objective, gradient, params, state, config)
    return params, state, TrustRegionInfo(**fields_of_info(step, report))


class Samples(NamedTuple):
    batch: Batch
    old: Distribution


class Report(NamedTuple):
    """Report on new parameters, over the whole batch."""

    kl: Float[Array, ""]
    max_kl: Float[Array, ""]
    entropy: Float[Array, ""]

    def constraint(self, config: TrustRegionConfig) -> Float[Array, ""]:
        """Return the KL that the config bounds."""
        return self.max_kl if config.kl_constraint == "max" else self.kl


def fields_of_info(step: StepInfo | ConstrainedStepInfo, report: Report) -> dict[str, Any]:
    """Return the fields of an update's info: those of its step, and the report in place of the constraint."""
    told = step._asdict()
    del told["constraint"]
    told["surrogate_improvement"] = told.pop("improvement")
    return told | {"kl": jnp.where(step.accepted, report.kl, 0.0), "max_kl": report.max_kl, "entropy": report.entropy}


def _policy_problem(
    policy_fn: PolicyFn,
    params: Params,
    batch: Batch,
    config: TrustRegionConfig,
    key: PRNGKeyArray | None,
    axis_name: AxisName | None,
) -> tuple[Problem, Float[Array, ""], Params]:
    """Return the constrained maximization for a batch, and the surrogate and its gradient at `params`."""
    mine = local(params, axis_name)
    divided = divide(batch, config, axis_name)
    whole = map_parts(lambda part: Samples(part, jax.lax.stop_gradient(policy_fn(mine, part.observation))), divided)

    def surrogate(params: Params, batch: Batch) -> Float[Array, ""]:
        return surrogate_objective(policy_fn(params, batch.observation), batch)

    objective, gradient = mean_over_parts(lambda part: jax.value_and_grad(surrogate)(mine, part), divided)
    key = key if config.curvature_sampling == "random" else None
    states = samples_for_curvature(batch, config.curvature_fraction, num_parts=config.num_microbatches, key=key)
    problem = Problem(
        evaluate_fn=_evaluation(policy_fn, whole, config),
        matvec=fisher(policy_fn, mine, divided if states is batch else divide(states, config, axis_name), config),
        curvature_floor_fn=largest_curvature(policy_fn, mine, divided) if config.kl_constraint == "max" else None,
    )
    return problem, objective, gradient


def divide(batch: Batch, config: TrustRegionConfig, axis_name: AxisName | None) -> Partition:
    """Divide a batch into microbatches, with weights that have a sum of 1 over the whole batch."""
    weight = None if batch.weight is None else unit_weight(batch.weight, axis_name=axis_name)
    return partition(
        batch._replace(weight=weight),
        batch.log_prob.shape,
        weighted=weight is not None,
        num_parts=config.num_microbatches,
        axis_name=axis_name,
    )


def _evaluation(policy_fn: PolicyFn, whole: Partition, config: TrustRegionConfig) -> Callable[[Params], Evaluation]:
    """Return the map from parameters to surrogate, KL and entropy."""
    evaluate_batch = evaluation_of_batch(policy_fn, whole, surrogate_objective)

    def evaluate(params: Params) -> Evaluation:
        objective, report = evaluate_batch(params)
        return Evaluation(objective, report.constraint(config), report)

    return evaluate


def evaluation_of_batch(
    policy_fn: PolicyFn, whole: Partition, surrogate_fn: Callable[[Distribution, Batch], Array]
) -> Callable[[Params], tuple[Array, Report]]:
    """Return the map from parameters to the mean of `surrogate_fn` and the report: one forward pass over the batch."""

    def evaluate(params: Params) -> tuple[Array, Report]:
        mine = local(params, whole.axis_name)

        def of_part(part: Samples) -> tuple[tuple[Array, ...], Float[Array, ""]]:
            new = policy_fn(mine, part.batch.observation)
            kl, largest = mean_and_max_kl(part.old, new, part.batch.weight)
            return (surrogate_fn(new, part.batch), kl, average(new.entropy(), part.batch.weight)), largest

        parts = map_parts(of_part, whole)
        means, largest = parts.parts
        surrogate, kl, entropy = mean_of_parts(parts._replace(parts=means))
        return surrogate, Report(kl, max_of_parts(parts._replace(parts=largest)), entropy)

    return evaluate


def fisher(policy_fn: PolicyFn, params: Params, states: Partition, config: TrustRegionConfig) -> MatVec:
    """Return v -> F v over the states. One part is linearized once; several parts are linearized again for each product."""

    def linearize(batch: Batch) -> MatVec:
        if config.fisher == "empirical":
            return unit_empirical_fisher_vector_product(
                lambda params: policy_fn(params, batch.observation).log_prob(batch.action), params, batch.weight
            )
        return unit_fisher_vector_product(lambda params: policy_fn(params, batch.observation), params, batch.weight)

    of_one_part = linearize(states.parts) if states.num_parts == 1 else None

    def matvec(vector: Params) -> Params:
        mine = local(vector, states.axis_name)
        return mean_over_parts(lambda part: (of_one_part or linearize(part))(mine), states)

    return matvec


def largest_curvature(policy_fn: PolicyFn, params: Params, whole: Partition) -> Callable[[Params], Float[Array, ""]]:
    """Return the map x -> max over states of xᵀF_i x, the second derivative of the state's KL along x."""

    def largest(x: Params) -> Float[Array, ""]:
        mine = local(cast_like(x, params), whole.axis_name)

        def of_part(part: Batch) -> Float[Array, ""]:
            curvature = curvature_of_states(lambda params: policy_fn(params, part.observation), params, mine)
            return jnp.max(curvature if part.weight is None else jnp.where(part.weight > 0, curvature, 0.0))

        return max_of_parts(map_parts(of_part, whole))

    return largest


def check_config(config: TrustRegionConfig, batch: Batch, key: PRNGKeyArray | None) -> None:
    """Raise TypeError for another config; raise ConfigError if a setting does not fit the batch or a key is missing."""
    if not isinstance(config, TrustRegionConfig):
        raise TypeError(f"config: got a {type(config).__name__}, allowed: a TrustRegionConfig")
    size = batch.log_prob.shape[-1]
    if size % config.num_microbatches:
        raise ConfigError("num_microbatches", config.num_microbatches, f"a divisor of {size}, the size of the last batch axis")
    if config.curvature_sampling == "random" and config.curvature_fraction < 1 and key is None:
        raise ConfigError("key", None, 'a PRNG key, since curvature_sampling is "random"')


def check_policy(policy_fn: Callable[[Params, Any], Distribution], params: Params, batch: Batch) -> None:
    """Trace the policy once, abstractly, and raise if it does not return a distribution over the batch's actions."""
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
        raise ValueError(f"batch.action: got shape {shapes[0]}, allowed: {shapes[1]}, the shape of the policy's actions")
    for (path, action), like in zip(jax.tree_util.tree_leaves_with_path(batch.action), jax.tree.leaves(mode), strict=True):
        if _is_floating(action) != _is_floating(like):
            where, dtypes = f"batch.action{jax.tree_util.keystr(path)}", (jnp.result_type(action), like.dtype)
            raise TypeError(f"{where}: got dtype {dtypes[0]}, allowed: the same kind as {dtypes[1]}, the policy's dtype")
    for name, value in zip(("log_prob", "kl", "entropy"), values, strict=True):
        if value.shape != axes:
            raise ValueError(f"policy_fn: {name} has shape {value.shape}, allowed: {axes}, the shape of batch.log_prob")


def _is_floating(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)
