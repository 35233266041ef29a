"""The contract between an agent and the algorithm that improves its policy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from trpo_jax.objective.surrogate import Batch, mean_and_max_kl
from trpo_jax.policy.distributions import Distribution
from trpo_jax.weights import average, unit_weight

PolicyFn = Callable[[Any, Any], Distribution]
"""(parameters, observation `[..., *]`) -> distribution with batch axes `[...]`."""

Metrics = dict[str, Float[Array, ""]]
"""Scalars by name."""


class PolicyUpdate(NamedTuple):
    """How an algorithm improves a policy: two pure functions that work under jit, vmap and automatic sharding."""

    init: Callable[[Any, Any], Any]
    """init(params, config) -> state: what one update hands to the next, a pytree of arrays."""
    update: Callable[[PolicyFn, Any, Any, Batch, Any, jax.Array], tuple[Any, Any, Metrics]]
    """update(policy_fn, params, state, batch, config, key) -> (params, state, metrics).

    `batch` has the axes `[T, N]`: T steps of N environments. Observations are normalized, advantages standardized if the
    config says so, and the weight is 0 for samples that are lost. `config` is the algorithm's, with its
    scheduled values. Params and state keep their avals. Metrics are logged under "training/NAME"; all algorithms report
    "kl" and "max_kl", mean and largest KL(old ‖ new) of any state in nats, and "entropy", that of the new policy. Plots also
    draw "accepted", 1 or 0 for whether the policy has moved, and "kl_bound", what the KL may not exceed, if they are reported.
    """
    sample_means: tuple[str, ...] = ("kl", "max_kl", "entropy")
    """Metrics that are averages over samples, and so unknown where all were lost."""


def policy_change(old: Distribution, new: Distribution, weight: Float[Array, "..."] | None) -> Metrics:
    """Return the metrics that all algorithms report, for the policy before and after an update."""
    unit = None if weight is None else unit_weight(weight)
    kl, max_kl = mean_and_max_kl(old, new, unit)
    return {"kl": kl, "max_kl": max_kl, "entropy": average(new.entropy(), unit)}
