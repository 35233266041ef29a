"""Trust Region Policy Optimization."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.policy_update import Metrics, PolicyFn, PolicyUpdate
from trpo_jax.agent.schedule import ScheduleConfig, share_left
from trpo_jax.algorithms.reported import counted, reported
from trpo_jax.config import config, setting
from trpo_jax.errors import ConfigError
from trpo_jax.objective.rows import in_rows, on_rows
from trpo_jax.objective.surrogate import Batch
from trpo_jax.objective.trust_region_config import TrustRegionConfig
from trpo_jax.objective.trust_region_update import stateful_trust_region_update
from trpo_jax.solver.outcome import StepOutcome
from trpo_jax.solver.step_config import TrustRegionState, init_trust_region_state


@config
class TRPOScheduleConfig(ScheduleConfig):
    """Values that decay linearly over a training; see `ScheduleConfig`."""

    max_kl_at_end: float = setting(default=0.1, above=0.0, at_most=1.0)
    """Final value of `trust_region.max_kl`, as a fraction of its configured value."""


@config
class TRPOConfig(AgentConfig):
    """Everything that decides how TRPO learns."""

    trust_region: TrustRegionConfig = TrustRegionConfig(
        max_kl=0.1, damping=1.0, damping_shape="gradient", curvature_fraction=0.1
    )
    schedule: TRPOScheduleConfig = TRPOScheduleConfig()

    def at(self, progress: Float[Array, ""]) -> "TRPOConfig":
        """Return the configuration with its scheduled values at this progress (0 to 1)."""
        max_kl: Any = self.trust_region.max_kl * share_left(self.schedule.max_kl_at_end, progress)
        return dataclasses.replace(super().at(progress), trust_region=dataclasses.replace(self.trust_region, max_kl=max_kl))

    def check_batch(self) -> None:
        """Raise ConfigError if the batch size does not fit the other settings."""
        super().check_batch()
        if self.batch_size % self.trust_region.num_microbatches:
            allowed = f"a divisor of num_envs·unroll_length = {self.batch_size}"
            raise ConfigError("trust_region.num_microbatches", self.trust_region.num_microbatches, allowed)
        if self.sampler == "vine" and self.trust_region.fisher == "empirical":
            raise ConfigError("trust_region.fisher", "empirical", "analytic with the sampler vine")
        if self.sampler == "vine" and self.trust_region.num_microbatches > 1:
            allowed = "1 with the sampler vine, which needs the actions of a state in the same microbatch"
            raise ConfigError("trust_region.num_microbatches", self.trust_region.num_microbatches, allowed)


class TRPOState(NamedTuple):
    """State that each update passes to the next."""

    trust_region: TrustRegionState
    outcomes: Int[Array, "6"]
    """How many updates have ended in each `StepOutcome`."""


def init(params: Any, config: TRPOConfig) -> TRPOState:
    """Return the state before the first update."""
    return TRPOState(init_trust_region_state(params, config.trust_region), jnp.zeros(len(StepOutcome), jnp.int32))


def update(
    policy_fn: PolicyFn, params: Any, state: TRPOState, batch: Batch, config: TRPOConfig, key: jax.Array
) -> tuple[Any, TRPOState, Metrics]:
    """Take `stateful_trust_region_update` on the whole batch; see `PolicyUpdate`."""
    params, trust_region, info = stateful_trust_region_update(
        on_rows(policy_fn),
        params,
        in_rows(batch, config.trust_region.num_microbatches),
        state.trust_region,
        config.trust_region,
        key=key,
    )
    outcomes, counts = counted(state.outcomes, info.outcome, StepOutcome)
    metrics = reported(info) | counts
    metrics["kl_bound"] = jnp.asarray(config.trust_region.max_kl)
    return params, TRPOState(trust_region, outcomes), metrics


TRPO = PolicyUpdate(init, update, takes_vines=True)
