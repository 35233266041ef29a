"""An agent: one iteration of on-policy learning in three stages, rollout, policy step and critic fit."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.critic import (
    CriticParams,
    CriticState,
    Regression,
    cost_values,
    explained_variance,
    fit_critic,
    init_critic,
    rescaled,
)
from trpo_jax.agent.estimates import CostEstimates, estimate_advantages, estimate_costs
from trpo_jax.agent.inference import PolicyMaker
from trpo_jax.agent.keys import as_typed_key
from trpo_jax.agent.metrics import episode_metrics, expected_length, forget, init_episode_statistics
from trpo_jax.agent.policy_update import Metrics, PolicyFn, PolicyUpdate
from trpo_jax.agent.rollout import RolloutState, Transition, collect, num_starts
from trpo_jax.agent.stages import Stages, advance, run_stages
from trpo_jax.agent.state import Learner, TrainState
from trpo_jax.agent.vine import (
    Branches,
    branch_advantages,
    branch_values,
    collect_vine,
    grow,
    num_vine_starts,
    tries_every_action,
    vine_batch,
)
from trpo_jax.environments.checked import strong
from trpo_jax.environments.protocol import Environment, EnvironmentState
from trpo_jax.environments.wrappers import FreshAutoReset
from trpo_jax.errors import ConfigError
from trpo_jax.objective.improvement_bound import improvement_bound
from trpo_jax.objective.surrogate import Batch, mean_and_max_kl
from trpo_jax.policy.distributions import Distribution
from trpo_jax.policy.memory import Memory, RecurrentNetwork, Sequence, initial_carry, policy_distribution
from trpo_jax.policy.networks import Networks
from trpo_jax.policy.normalization import NormalizerState, init_normalizer, normalize, update_normalizer
from trpo_jax.weights import average, unit_weight, variance

METRIC_STEPS = 8
"""Metrics that cost a forward pass use about this many evenly spaced steps of a rollout."""


@dataclasses.dataclass(frozen=True)
class Agent:
    """One algorithm that learns in one environment: pure functions that return the new state.

    `init` and `update` run whole iterations. The separate stages are for callers that overlap them.
    """

    environment: Environment
    """Includes the time limit, but no automatic resets."""
    networks: Networks
    config: AgentConfig
    policy_update: PolicyUpdate

    @property
    def steps_per_iteration(self) -> int:
        """Simulator steps of one iteration: each repeat of an action counts."""
        return self.config.actions_per_iteration * self.config.action_repeat

    @property
    def most_actions(self) -> int:
        """Number of actions after which an episode is over, if the environment tells; else what the configuration says."""
        return getattr(self.environment, "most_actions", self.config.most_actions)

    @functools.cached_property
    def make_policy(self) -> PolicyMaker:
        """Make a policy from parameters: `make_policy(params, deterministic=False)(observation, key) -> (action, extras)`.

        `make_policy.value_fn(params)(observation) -> value` is the value function.
        """
        return PolicyMaker(self.networks, self.environment.action_space)

    @functools.cached_property
    def init(self) -> Callable[..., TrainState]:
        """Start a training: `init(key, hyperparameters=None, num_iterations=0) -> TrainState`, jitted."""
        return jax.jit(self._init)

    @functools.cached_property
    def update(self) -> Callable[[TrainState], tuple[TrainState, Metrics]]:
        """Run one iteration: `update(state) -> (state, metrics)`, jitted."""
        return jax.jit(self._update)

    @property
    def stages(self) -> Stages:
        """The stages of `update`."""
        return Stages(advance, self.draw, self.collect, self.improve, self.fit)

    def _init(self, key: jax.Array, hyperparameters: AgentConfig | None = None, num_iterations: int | Array = 0) -> TrainState:
        draw_key, key = jax.random.split(as_typed_key(key))
        return self.begin(key, self.draw(draw_key), hyperparameters, num_iterations)

    def _update(self, state: TrainState) -> tuple[TrainState, Metrics]:
        return run_stages(self.stages, state)

    def draw(self, key: jax.Array) -> EnvironmentState:
        """Draw `[S, N, ...]` initial states. A separate program, because both initialization and every iteration use it."""
        config = self.config
        vine = config.sampler == "vine"
        count = num_vine_starts(config.unroll_length, config.vine) if vine else num_starts(config.unroll_length)
        return jax.vmap(self._resetting.reset)(jax.random.split(as_typed_key(key), (count, config.num_envs)))

    def begin(
        self,
        key: jax.Array,
        starts: EnvironmentState,
        hyperparameters: AgentConfig | None = None,
        num_iterations: int | Array = 0,
    ) -> TrainState:
        """Initialize networks, and put environments in the first of their initial states; `num_iterations` 0 means no end."""
        hyperparameters = self.config if hyperparameters is None else hyperparameters
        if len({jax.tree.structure(hyperparameters), jax.tree.structure(self.config)}) > 1:
            kind = type(self.config).__name__
            raise ConfigError("hyperparameters", hyperparameters, f"the agent's {kind}, in which only float fields may differ")
        hyperparameters = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), hyperparameters)
        policy_key, critic_key, key = jax.random.split(as_typed_key(key), 3)
        rollout = self.restart(starts)
        observation = jax.tree.map(lambda leaf: leaf[0], rollout.environments.observation)
        policy = self.networks.policy.init(policy_key, observation)
        cost = rollout.environments.cost
        num_costs = 0 if cost is None or not self.policy_update.limits_costs else cost.shape[-1]
        state = TrainState(
            learner=Learner(
                policy=policy,
                update=self.policy_update.init(policy, hyperparameters, *((num_costs,) if num_costs else ())),
                normalizer=init_normalizer(observation) if self.config.normalize_observations else None,
            ),
            critic=init_critic(
                self.networks.critic,
                critic_key,
                observation,
                hyperparameters.reward_scaling,
                num_envs=self.config.num_envs,
                num_costs=num_costs,
                normalize_rewards=self.config.normalize_rewards,
            ),
            rollout=rollout,
            hyperparameters=hyperparameters,
            key=key,
            iteration=jnp.int32(0),
            num_iterations=jnp.asarray(num_iterations, jnp.int32),
        )
        return strong(state)

    def restart(self, starts: EnvironmentState) -> RolloutState:
        """Put environments in the first of their initial states, with staggered time limits."""
        environments, age = self._resetting.out_of_step(jax.tree.map(lambda leaf: leaf[0], starts))
        episodes = init_episode_statistics(environments.reward, age, environments.cost, most_actions=self.most_actions)
        return strong(RolloutState(environments, episodes, self._no_memory()))

    def collect(
        self, learner: Learner, rollout: RolloutState, starts: EnvironmentState, key: Key[Array, ""]
    ) -> tuple[RolloutState, Transition, Metrics]:
        """Let the policy act for `unroll_length` steps."""
        rollout = rollout._replace(episodes=forget(rollout.episodes, self.config.unroll_length))
        policy, steps, vine = self.networks.policy, self.config.unroll_length, self.config.vine
        branches = self.config.sampler == "vine"
        collect_fn = functools.partial(
            collect,
            *(self._resetting, policy, learner.policy, learner.normalizer),
            unroll_length=steps // vine.num_states if branches else steps,
        )
        if branches:

            def act(observation: Any) -> Distribution:
                return policy_distribution(policy, learner.policy, normalize(learner.normalizer, observation))

            grow_fn = functools.partial(grow, self._resetting, act, vine=vine)
            rollout, transition = collect_vine(collect_fn, grow_fn, rollout, starts, key, num_states=vine.num_states)
        else:
            rollout, transition = collect_fn(rollout, starts, key)
        return self.summarized(rollout, transition)

    def summarized(self, rollout: RolloutState, transition: Transition) -> tuple[RolloutState, Transition, Metrics]:
        """Return the results of `collect`: add the expected length of an episode, if there are costs, and metrics."""
        if transition.cost is not None:
            length = jnp.minimum(expected_length(rollout.episodes), self.most_actions)
            transition = transition._replace(episode_length=jnp.broadcast_to(length, (1, self.config.num_envs)))
        metrics = episode_metrics(rollout.episodes, self.config.action_repeat)
        metrics["num_faults"] = jnp.sum(transition.fault, dtype=jnp.float32)
        if transition.branches is not None:
            metrics["num_lost_states"] = jnp.sum(transition.branches.fault, dtype=jnp.float32)
        return rollout, transition, _named(metrics)

    def improve(
        self,
        learner: Learner,
        critic: CriticState,
        transition: Transition,
        hyperparameters: AgentConfig,
        key: Key[Array, ""],
        progress: Float[Array, ""],
    ) -> tuple[Learner, Regression, Metrics]:
        """Estimate advantages, take the policy step, then update the normalizer."""
        config = hyperparameters.at(progress)
        observation = normalize(learner.normalizer, transition.observation)
        for_policy, for_critic = self._seen(observation, transition.memory, critic)
        weight = self._weight(transition)
        unit = unit_weight(weight)
        value, value_fn, remembered = self._values(critic.critic.params, learner.normalizer, for_critic, transition)
        scaling = critic.critic.reward_scaling
        reward = transition.reward * scaling
        advantage = estimate_advantages(value_fn, remembered, reward, value, weight=weight, hyperparameters=config)
        costs = self._estimate_costs(learner, critic.critic, transition, observation, weight, config)
        batch = Batch(for_policy, transition.action, transition.log_prob, advantage, weight)
        policy_fn: PolicyFn = functools.partial(policy_distribution, self.networks.policy)
        if transition.branches is not None:
            policy_fn, batch = self._vine(policy_fn, value_fn, learner.normalizer, transition.branches, config, scaling)
        step = functools.partial(self.policy_update.update, policy_fn, learner.policy, learner.update)
        assert batch.weight is not None
        of_batch = unit if transition.branches is None else unit_weight(batch.weight)
        standardized = batch._replace(advantage=self._standardize(batch.advantage, of_batch))
        if costs is None:
            policy, update, metrics = step(standardized, config, key)
        else:
            with_costs = standardized._replace(cost_advantage=costs.advantage)
            policy, update, metrics = step(with_costs, config, key, costs.episode_cost)
        normalizer = learner.normalizer
        if normalizer is not None:
            normalizer = update_normalizer(normalizer, transition.observation, weight)
        target = value + advantage
        own = {
            "explained_variance": explained_variance(advantage, target, unit),
            "mean_value": average(value, unit) / scaling,
            "mean_return": average(target, unit) / scaling,
        }
        own |= self._policy_metrics(policy, normalizer, for_policy, transition.observation, weight)
        own |= self._bound_metrics(metrics, batch.advantage, of_batch, config.discounting, scaling)
        _check_metrics(metrics, own)
        metrics = metrics | own
        regression = Regression(for_critic, target, weight, None if costs is None else costs.target)
        return Learner(policy, update, normalizer), regression, _named(metrics)

    def fit(
        self,
        critic: CriticState,
        regression: Regression,
        hyperparameters: AgentConfig,
        key: Key[Array, ""],
        progress: Float[Array, ""],
    ) -> tuple[CriticState, Metrics]:
        """Regress values on λ-returns."""
        config = hyperparameters.at(progress).critic
        if self.config.normalize_rewards:
            critic, regression = rescaled(critic, regression, hyperparameters.reward_scaling)
        critic, metrics = fit_critic(self.networks.critic, critic, regression, key, config)
        return critic, _named(metrics | {"critic_learning_rate": jnp.asarray(config.learning_rate)})

    @functools.cached_property
    def _resetting(self) -> FreshAutoReset:
        return FreshAutoReset(self.environment)

    def _no_memory(self) -> Memory | None:
        """Return what a rollout remembers before the first step."""
        shape = (self.config.num_envs,)
        if not any(isinstance(network, RecurrentNetwork) for network in self.networks):
            return None
        return Memory(initial_carry(self.networks.policy, shape), jnp.ones(shape, bool))

    def _seen(self, observation: Any, memory: Memory | None, critic: CriticState) -> tuple[Any, Any]:
        """Return a rollout's normalized observations as policy and critic see them: `Sequence`s for networks with memory."""
        for_policy = for_critic = observation
        if memory is not None:
            if memory.carry is not None:
                for_policy = Sequence(observation, memory.begins, memory.carry)
            if critic.carry is not None:
                shape = memory.begins.shape[:1]
                every = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*shape, *leaf.shape)), critic.carry)
                for_critic = Sequence(observation, memory.begins, every)
        return for_policy, for_critic

    def _values(
        self, params: Any, normalizer: NormalizerState | None, for_critic: Any, transition: Transition
    ) -> tuple[Float[Array, "T N"], Callable[[Any], Array], Transition]:
        """Return the critic's values, a function to value next observations, and a transition with these as it takes them."""
        critic: Any = self.networks.critic
        if not isinstance(for_critic, Sequence):
            value_fn = functools.partial(self._value, params, normalizer)
            return critic.apply(params, for_critic), value_fn, transition
        after, value = critic.unroll(params, for_critic)

        def value_after(remembered: tuple[Any, Any]) -> Array:
            observation, carry = remembered
            return critic.step(params, carry, normalize(normalizer, observation))[1]

        return value, value_after, transition._replace(next_observation=(transition.next_observation, after))

    def _value(self, params: Any, normalizer: NormalizerState | None, observation: Any) -> Float[Array, "..."]:
        """Return the critic's value of unnormalized observations."""
        return self.networks.critic.apply(params, normalize(normalizer, observation))

    def _vine(
        self,
        policy_fn: PolicyFn,
        value_fn: Callable[[Any], Array],
        normalizer: NormalizerState | None,
        branches: Branches,
        config: AgentConfig,
        scaling: Float[Array, ""],
    ) -> tuple[PolicyFn, Batch]:
        """Return the policy and the batch of the sampler "vine"."""
        value = branch_values(value_fn, branches, reward_scaling=scaling, discounting=config.discounting)
        every_action = tries_every_action(self.environment.action_space, self.config.vine)
        advantage = branch_advantages(branches, value, every_action=every_action)
        return vine_batch(policy_fn, normalizer, branches, advantage)

    def _estimate_costs(
        self,
        learner: Learner,
        critic: CriticParams,
        transition: Transition,
        observation: Any,
        weight: Float[Array, "T N"],
        config: AgentConfig,
    ) -> CostEstimates | None:
        """Return the estimates for costs, if the algorithm limits them; `observation` is normalized."""
        if not self.policy_update.limits_costs:
            return None
        value_of = functools.partial(cost_values, self.networks.critic, critic.cost_params)
        return estimate_costs(
            lambda observation: value_of(normalize(learner.normalizer, observation)),
            transition,
            value_of(observation),
            weight=weight,
            hyperparameters=config,
        )

    def _weight(self, transition: Transition) -> Float[Array, "T N"]:
        """Return 0 for faulty samples and for truncations whose final observation is hidden, else 1."""
        unusable = transition.fault
        if not self._resetting.keeps_final_observation:
            unusable |= transition.truncated
        return 1.0 - unusable.astype(jnp.float32)

    def _standardize(self, advantage: Float[Array, "T N"], weight: Float[Array, "T N"]) -> Float[Array, "T N"]:
        if not self.config.normalize_advantages:
            return advantage
        spread = jnp.sqrt(variance(advantage, weight))
        return (advantage - average(advantage, weight)) / (spread + 1e-8)

    def _bound_metrics(
        self, metrics: Metrics, advantage: Float[Array, "T N"], unit: Float[Array, "T N"], discounting: Any, scaling: Any
    ) -> Metrics:
        """Report `improvement_bound` as the batch estimates it, if the algorithm reports how the surrogate has changed."""
        if "surrogate_improvement" not in metrics:
            return {}
        spread = jnp.sqrt(variance(advantage, unit)) if self.config.normalize_advantages else 1.0
        bound = improvement_bound(
            metrics["surrogate_improvement"] * spread / scaling,
            jnp.max(jnp.where(unit > 0, jnp.abs(advantage), 0.0)) / scaling,
            metrics["max_kl"],
            discounting=discounting,
        )
        return {f"bound_{name}": value for name, value in bound._asdict().items()}

    def _policy_metrics(
        self, params: Any, normalizer: NormalizerState | None, normalized: Any, observation: Any, weight: Float[Array, "T N"]
    ) -> Metrics:
        """Report a Gaussian's mean standard deviation, in units of the action box, and the KL that the new normalizer causes.

        A sample of the rollout's steps is enough.
        """
        of_sequences = isinstance(normalized, Sequence)
        few = max(1, weight.shape[0] // METRIC_STEPS)
        every = (slice(None), slice(None, None, min(few, weight.shape[1]))) if of_sequences else slice(None, None, few)
        normalized, observation, weight = jax.tree.map(lambda leaf: leaf[every], (normalized, observation, weight))
        before = policy_distribution(self.networks.policy, params, normalized)
        log_std = getattr(before, "log_std", None)
        metrics = {} if log_std is None else {"policy_std": jnp.mean(jnp.exp(log_std))}
        if normalizer is not None:
            anew = normalize(normalizer, observation)
            anew = normalized._replace(observation=anew) if of_sequences else anew
            after = policy_distribution(self.networks.policy, params, anew)
            metrics["normalizer_kl"] = mean_and_max_kl(before, after, unit_weight(weight))[0]
        return metrics


def _check_metrics(metrics: Metrics, own: Metrics) -> None:
    """Raise ValueError, during tracing, if an algorithm omits a required metric or reuses the name of an agent's metric."""
    missing, taken = {"kl", "max_kl", "entropy"} - metrics.keys(), metrics.keys() & own.keys()
    if missing or taken:
        allowed = "at least kl, max_kl and entropy, as policy_change returns them, but none of " + ", ".join(sorted(own))
        raise ValueError(f"metrics of the policy update: got {', '.join(sorted(metrics))}, allowed: {allowed}")


def _named(metrics: Metrics) -> Metrics:
    """Return an iteration's metrics under their logged names."""
    return {f"training/{name}": value for name, value in metrics.items()}
