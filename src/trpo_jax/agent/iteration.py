"""One iteration of TRPO in three stages: rollout, policy step, critic fit."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from trpo_jax.agent.critic import CriticState, Regression, explained_variance, fit_critic, init_critic
from trpo_jax.agent.estimates import estimate_advantages
from trpo_jax.agent.keys import as_typed_key
from trpo_jax.agent.metrics import Metrics, episode_metrics, init_episode_statistics, outcome_metrics, solver_metrics
from trpo_jax.agent.rollout import RolloutState, Transition, collect, num_starts
from trpo_jax.agent.stages import Stages, advance, run_stages
from trpo_jax.agent.state import Learner, TrainState
from trpo_jax.agent.trpo_config import TRPOConfig, scheduled
from trpo_jax.environments.checked import strong
from trpo_jax.environments.protocol import EnvironmentState
from trpo_jax.environments.wrappers import FreshAutoReset
from trpo_jax.errors import ConfigError
from trpo_jax.objective.surrogate import Batch, mean_and_max_kl
from trpo_jax.objective.update import stateful_trust_region_update
from trpo_jax.policy.distributions import Distribution
from trpo_jax.policy.networks import Networks, policy_distribution
from trpo_jax.policy.normalization import NormalizerState, init_normalizer, normalize, update_normalizer
from trpo_jax.solver.outcome import StepOutcome
from trpo_jax.solver.trust_region_config import init_trust_region_state
from trpo_jax.weights import average, unit_weight, variance

SAMPLES_A_ROW = 64
"""The policy step sees the batch as rows of environments, at least so many samples each: enough for an even choice of
those that curvature is taken from, few enough that rows can be spread over many devices."""


METRIC_STEPS = 8
"""Steps of a rollout, evenly spaced, from which metrics are taken that cost a forward pass."""


@dataclasses.dataclass(frozen=True)
class Iteration:
    """The stages as pure functions, each of which reads what it needs and returns what it changes."""

    environment: FreshAutoReset
    networks: Networks
    config: TRPOConfig

    def init(self, key: jax.Array, hyperparameters: TRPOConfig | None = None, num_iterations: int | Array = 0) -> TrainState:
        """Draw networks and environments; 0 iterations are a training without an end."""
        draw_key, key = jax.random.split(as_typed_key(key))
        return self.begin(key, self.draw(draw_key), hyperparameters, num_iterations)

    def draw(self, key: jax.Array) -> EnvironmentState:
        """Draw `[S, N, ...]` initial states. A program of its own: it serves the beginning and every iteration."""
        shape = num_starts(self.config.unroll_length), self.config.num_envs
        return jax.vmap(self.environment.reset)(jax.random.split(as_typed_key(key), shape))

    def begin(
        self,
        key: jax.Array,
        starts: EnvironmentState,
        hyperparameters: TRPOConfig | None = None,
        num_iterations: int | Array = 0,
    ) -> TrainState:
        """Draw networks, and put environments at the first of their initial states."""
        hyperparameters = self.config if hyperparameters is None else hyperparameters
        if len({jax.tree.structure(hyperparameters), jax.tree.structure(self.config)}) > 1:
            raise ConfigError("hyperparameters", hyperparameters, "a TRPOConfig that differs in float fields only")
        hyperparameters = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), hyperparameters)
        policy_key, critic_key, key = jax.random.split(as_typed_key(key), 3)
        rollout = self.restart(starts)
        observation = jax.tree.map(lambda leaf: leaf[0], rollout.environments.observation)
        policy = self.networks.policy.init(policy_key, observation)
        state = TrainState(
            learner=Learner(
                policy=policy,
                trust_region=init_trust_region_state(policy, hyperparameters.trust_region),
                normalizer=init_normalizer(observation) if self.config.normalize_observations else None,
                outcomes=jnp.zeros(len(StepOutcome), jnp.int32),
            ),
            critic=init_critic(self.networks.critic, critic_key, observation, hyperparameters.reward_scaling),
            rollout=rollout,
            hyperparameters=hyperparameters,
            key=key,
            iteration=jnp.int32(0),
            num_iterations=jnp.asarray(num_iterations, jnp.int32),
        )
        return strong(state)

    def restart(self, starts: EnvironmentState) -> RolloutState:
        """Put environments at the first of their initial states, out of step with each other."""
        environments, age = self.environment.out_of_step(jax.tree.map(lambda leaf: leaf[0], starts))
        return strong(RolloutState(environments, init_episode_statistics(environments.reward, age)))

    @property
    def stages(self) -> Stages:
        """The stages of `update`."""
        return Stages(advance, self.draw, self.collect, self.improve, self.fit)

    def update(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """Run one iteration."""
        return run_stages(self.stages, state)

    def collect(
        self, learner: Learner, rollout: RolloutState, starts: EnvironmentState, key: Key[Array, ""]
    ) -> tuple[RolloutState, Transition, Metrics]:
        """Let the policy act for `unroll_length` steps."""
        rollout, transition = collect(
            self.environment,
            self.networks.policy,
            learner.policy,
            learner.normalizer,
            rollout,
            starts,
            key,
            unroll_length=self.config.unroll_length,
        )
        metrics = episode_metrics(rollout.episodes, self.config.action_repeat)
        metrics["training/num_faults"] = jnp.sum(transition.fault, dtype=jnp.float32)
        return rollout, transition, metrics

    def improve(
        self,
        learner: Learner,
        critic: CriticState,
        transition: Transition,
        hyperparameters: TRPOConfig,
        key: Key[Array, ""],
        progress: Float[Array, ""],
    ) -> tuple[Learner, Regression, Metrics]:
        """Estimate advantages and take the policy step; the normalizer moves after it."""
        hyperparameters = scheduled(hyperparameters, progress)
        observation = normalize(learner.normalizer, transition.observation)
        weight = self._weight(transition)
        unit = unit_weight(weight)
        value = self.networks.critic.apply(critic.critic.params, observation)
        value_fn = functools.partial(self._value, critic.critic.params, learner.normalizer)
        advantage = estimate_advantages(value_fn, transition, value, weight=weight, hyperparameters=hyperparameters)
        policy, trust_region, info = stateful_trust_region_update(
            self._policy_of_rows,
            learner.policy,
            self._rows(Batch(observation, transition.action, transition.log_prob, self._standardize(advantage, unit), weight)),
            learner.trust_region,
            hyperparameters.trust_region,
            key=key,
        )
        normalizer = learner.normalizer
        if normalizer is not None:
            normalizer = update_normalizer(normalizer, transition.observation, weight)
        outcomes = learner.outcomes + jax.nn.one_hot(info.outcome, len(StepOutcome), dtype=jnp.int32)
        target = value + advantage
        metrics = {
            "training/explained_variance": explained_variance(advantage, target, unit),
            "training/mean_value": average(value, unit) / hyperparameters.reward_scaling,
            "training/mean_return": average(target, unit) / hyperparameters.reward_scaling,
        }
        metrics |= solver_metrics(info) | outcome_metrics(outcomes)
        metrics["training/kl_bound"] = jnp.asarray(hyperparameters.trust_region.max_kl)
        metrics |= self._policy_metrics(policy, normalizer, observation, transition.observation, weight)
        return Learner(policy, trust_region, normalizer, outcomes), Regression(observation, target, weight), metrics

    def fit(
        self,
        critic: CriticState,
        regression: Regression,
        hyperparameters: TRPOConfig,
        key: Key[Array, ""],
        progress: Float[Array, ""],
    ) -> tuple[CriticState, Metrics]:
        """Regress values on λ-returns."""
        config = scheduled(hyperparameters, progress).critic
        critic, loss = fit_critic(self.networks.critic, critic, regression, key, config)
        return critic, {"training/value_loss": loss, "training/critic_learning_rate": jnp.asarray(config.learning_rate)}

    def _value(self, params: Any, normalizer: NormalizerState | None, observation: Any) -> Float[Array, "..."]:
        """Return the critic's value of observations as the simulator gives them."""
        return self.networks.critic.apply(params, normalize(normalizer, observation))

    def _weight(self, transition: Transition) -> Float[Array, "T N"]:
        """Return 0 for faulty samples and for truncations whose final observation is hidden, else 1."""
        unusable = transition.fault
        if not self.environment.keeps_final_observation:
            unusable |= transition.truncated
        return 1.0 - unusable.astype(jnp.float32)

    def _standardize(self, advantage: Float[Array, "T N"], weight: Float[Array, "T N"]) -> Float[Array, "T N"]:
        if not self.config.normalize_advantages:
            return advantage
        spread = jnp.sqrt(variance(advantage, weight))
        return (advantage - average(advantage, weight)) / (spread + 1e-8)

    def _rows(self, tree: Any) -> Any:
        """Turn `[T, N, ...]` into `[R, B/R, ...]`, a row holding the steps of whole environments, one after another."""
        num_rows = num_batch_rows(self.config)

        def arrange(leaf: Array) -> Array:
            return jnp.swapaxes(leaf, 0, 1).reshape(num_rows, -1, *leaf.shape[2:])

        return jax.tree.map(arrange, tree)

    def _policy_of_rows(self, params: Any, observation: Any) -> Distribution:
        """Apply the policy to rows as to one long batch, since matrix products are quickest on two axes."""
        shape = jax.tree.leaves(observation)[0].shape[:2]
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), observation)
        distribution = self.networks.policy.apply(params, flat)
        return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), distribution)

    def _policy_metrics(
        self, params: Any, normalizer: NormalizerState | None, normalized: Any, observation: Any, weight: Float[Array, "T N"]
    ) -> Metrics:
        """Report a Gaussian's mean standard deviation, in units of the action box, and what moving the normalizer did.

        Some steps of the rollout tell enough.
        """
        every = slice(None, None, max(1, weight.shape[0] // METRIC_STEPS))
        normalized, observation, weight = jax.tree.map(lambda leaf: leaf[every], (normalized, observation, weight))
        before = policy_distribution(self.networks.policy, params, normalized)
        log_std = getattr(before, "log_std", None)
        metrics = {} if log_std is None else {"training/policy_std": jnp.mean(jnp.exp(log_std))}
        if normalizer is not None:
            after = policy_distribution(self.networks.policy, params, normalize(normalizer, observation))
            metrics["training/normalizer_kl"] = mean_and_max_kl(before, after, unit_weight(weight))[0]
        return metrics


def num_batch_rows(config: TRPOConfig) -> int:
    """Return R, the largest power of two that divides num_envs and leaves rows that are long enough and fit microbatches."""
    rows = 1
    while config.num_envs % (2 * rows) == 0 and _row_fits(config, 2 * rows):
        rows *= 2
    return rows


def _row_fits(config: TRPOConfig, num_rows: int) -> bool:
    length = config.num_envs * config.unroll_length // num_rows
    return length >= SAMPLES_A_ROW and length % config.trust_region.num_microbatches == 0
