"""Keywords and networks of Brax's PPO: which are renamed, translated or ignored here."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from trpo_jax.algorithms.registry import ALGORITHMS
from trpo_jax.errors import ConfigError
from trpo_jax.policy.distributions import DiagonalGaussian, TanhGaussian
from trpo_jax.policy.networks import Networks
from trpo_jax.policy.normalization import init_normalizer

RENAMED = {"normalize_advantage": "normalize_advantages"}
"""Keywords of `brax.training.agents.ppo.train` that have another name here."""

PPO_ONLY = frozenset(
    {
        *("learning_rate", "entropy_cost", "batch_size", "num_minibatches", "num_updates_per_batch", "max_grad_norm"),
        *("clipping_epsilon", "clipping_epsilon_value", "vf_loss_coefficient", "desired_kl", "learning_rate_schedule"),
        *("learning_rate_schedule_min_lr", "learning_rate_schedule_max_lr", "use_pmap_on_reset", "bootstrap_on_timeout"),
        *("normalize_observations_std_eps", "normalize_observations_mode", "normalize_until_count"),
    }
)
"""Keywords for features that other algorithms lack, or always have (bootstrapping at time limits)."""

UNSUPPORTED = ("vision", "augment_pixels", "use_distributional_critic")
"""Keywords for networks that do not exist here."""


def translate(options: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
    """Translate options to our names, and warn about those that have no effect on an algorithm.

    Raises:
        ConfigError: an option that is not supported here.
    """
    for name in UNSUPPORTED:
        if options.get(name):
            raise ConfigError(name, options[name], "false; pass networks of your own instead")
    known = ALGORITHMS[algorithm]
    fields_of_its_own = {field.name for field in dataclasses.fields(known.config)}
    without_meaning = PPO_ONLY - known.brax_keywords.keys() - fields_of_its_own
    ignored = sorted(without_meaning & options.keys())
    if ignored:
        kind = known.config.__name__
        warnings.warn(
            f"{', '.join(ignored)}: only for Brax's PPO, without effect here; see {kind} for the options of {algorithm}",
            stacklevel=4,
        )
    left_out = without_meaning | known.brax_keywords.keys() | set(UNSUPPORTED)
    translated = {RENAMED.get(name, name): value for name, value in options.items() if name not in left_out}
    for name, fields in known.brax_keywords.items():
        for table, _, field in (field.partition(".") for field in fields if name in options):
            given = translated.get(table, {})
            translated[table] = {field: options[name], **given} if isinstance(given, Mapping) else given
    return translated


def networks_from_brax(network_factory: Callable[..., Any], observation: Any, action_size: int) -> Networks:
    """Make networks with a factory such as `brax.training.agents.ppo.networks.make_ppo_networks`.

    Args:
        network_factory: (observation size, action size, preprocess_observations_fn=…) -> Brax's `PPONetworks`, or
            `Networks`.
        observation: one observation, or its `jax.ShapeDtypeStruct`s; Brax's factories receive the shapes of its leaves.
        action_size: A.

    Raises:
        ConfigError: a factory that returns something else.
    """
    shape = jax.tree.map(lambda leaf: leaf.shape, observation)
    made = network_factory(shape, action_size, preprocess_observations_fn=_as_it_is)
    if isinstance(made, Networks):
        return made
    try:
        return Networks(_BraxPolicy(made.policy_network, made.parametric_action_distribution), _BraxNetwork(made.value_network))
    except AttributeError:
        allowed = "a function that returns Brax's PPONetworks, or trpo_jax.Networks"
        raise ConfigError("network_factory", network_factory, allowed) from None


def _as_it_is(observation: Any, _: Any) -> Any:
    """Replace Brax's normalization, since observations are normalized before they reach the networks."""
    return observation


@dataclasses.dataclass(frozen=True)
class _BraxNetwork:
    """Brax's `FeedForwardNetwork` behind our network interface."""

    network: Any

    def init(self, key: jax.Array, observation: Any) -> Any:
        """Draw parameters; Brax's network already knows the shape of its observations."""
        return self.network.init(jax.random.key_data(key))

    def apply(self, params: Any, observation: Any) -> Any:
        """Return the network's output."""
        return self.network.apply(init_normalizer(observation), params, observation)


@dataclasses.dataclass(frozen=True)
class _BraxPolicy:
    """Brax's policy network and parametric distribution as one network that returns a distribution."""

    network: Any
    distribution: Any

    def init(self, key: jax.Array, observation: Any) -> Any:
        """Draw parameters."""
        return _BraxNetwork(self.network).init(key, observation)

    def apply(self, params: Any, observation: Any) -> DiagonalGaussian | TanhGaussian:
        """Return a Gaussian, squashed by tanh if Brax's distribution is."""
        normal = self.distribution.create_dist(_BraxNetwork(self.network).apply(params, observation))
        squashes = any(kind.__name__ == "NormalTanhDistribution" for kind in type(self.distribution).__mro__)
        kind = TanhGaussian if squashes else DiagonalGaussian
        return kind(normal.loc, jnp.log(normal.scale))
