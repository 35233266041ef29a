"""The contract between an agent and the algorithm that improves its policy."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from trpo_jax.objective.surrogate import mean_and_max_kl
from trpo_jax.policy.distributions import Distribution
from trpo_jax.weights import average, unit_weight

PolicyFn = Callable[[Any, Any], Distribution]
"""(parameters, observation `[..., *]`) -> distribution with batch axes `[...]`."""

Metrics = dict[str, Float[Array, ""]]
"""Scalars by name."""


POLICY_MEANS = ("kl", "max_kl", "entropy")
"""Metrics that all algorithms report."""


class PolicyUpdate(NamedTuple):
    """How an algorithm improves a policy: two pure functions that work under jit, vmap and automatic sharding."""

    init: Callable[..., Any]
    """init(params, config) -> state, a pytree of arrays that each update passes to the next."""
    update: Callable[..., tuple[Any, Any, Metrics]]
    """update(policy_fn, params, state, batch, config, key) -> (params, state, metrics).

    `batch` has the axes `[T, N]`: T steps of N environments. Observations are normalized, and advantages are standardized if
    the config says so. Unusable samples have weight 0. `config` is the algorithm's configuration with its scheduled values.
    Params and state keep their avals. Metrics are logged under "training/NAME". All algorithms report "kl" and "max_kl", the
    mean and the largest KL(old ‖ new) over states in nats, and "entropy", the new policy's. If reported, plots also draw
    "accepted" (1 if the policy has moved, else 0) and "kl_bound" (the upper limit of the KL). From
    "surrogate_improvement", the mean of (r - 1)·advantage with r the ratio of new and old probability, the agent computes
    `improvement_bound`.
    """
    limits_costs: bool = False
    """Whether the algorithm limits costs. If so, the environment must have some, `batch.cost_advantage` `[T, N, K]` holds their
    advantages (see `CostEstimates`), and two functions take a last argument: `init` the number of costs, `update` the
    `episode_cost` `[K]`, the expected cost of an episode."""
    most_costs: int | None = None
    """How many costs the algorithm can limit; None for any number."""
    takes_vines: bool = False
    """Whether `update` keeps samples of a batch together that follow each other along its first axis, as `in_rows` does; the
    sampler "vine" needs that."""
    sample_means: tuple[str, ...] = POLICY_MEANS
    """Metrics that are averages over samples, and therefore unknown if all samples are faulty. "expected_cost" also stands for
    "expected_cost_0", "expected_cost_1", …"""


def policy_change(old: Distribution, new: Distribution, weight: Float[Array, "..."] | None) -> Metrics:
    """Return the metrics that all algorithms report, for the policy before and after an update."""
    unit = None if weight is None else unit_weight(weight)
    kl, max_kl = mean_and_max_kl(old, new, unit)
    return {"kl": kl, "max_kl": max_kl, "entropy": average(new.entropy(), unit)}
