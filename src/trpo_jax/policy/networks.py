"""Flax modules that map observations to a distribution over actions, or to a value."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from trpo_jax.config import config, setting
from trpo_jax.errors import ConfigError
from trpo_jax.policy.distributions import Categorical, DiagonalGaussian, Distribution, TanhGaussian

Activation = Literal["tanh", "relu", "elu", "swish"]
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"tanh": nn.tanh, "relu": nn.relu, "elu": nn.elu, "swish": nn.swish}


@runtime_checkable
class Network(Protocol):
    """A network as the package uses it: any flax linen module, or an object with the same two methods."""

    def init(self, key: Any, observation: Any, /) -> Any: ...

    def apply(self, params: Any, observation: Any, /) -> Any: ...


class Networks(NamedTuple):
    """The two networks of an agent."""

    policy: Network
    """apply(params, observation [..., O]) -> Distribution with batch axes [...]."""
    critic: Network
    """apply(params, observation [..., O]) -> value [...]."""


@config
class PolicyConfig:
    """The policy network: a multilayer perceptron, plus one log standard deviation per dimension of continuous actions."""

    hidden_sizes: tuple[int, ...] = setting(default=(64, 64), at_least=1)
    """Units of each hidden layer."""
    activation: Activation = setting(default="tanh")
    """Nonlinearity between layers."""
    init_log_std: float = setting(default=-0.5, static=True)
    """Initial log standard deviation of actions, the same in every state, for actions in units of the box [-1, 1]."""
    action_bounds: Literal["clip", "tanh"] = setting(default="clip")
    """How Gaussian samples are brought into the action box: clipped to it, or squashed by tanh."""
    observation_key: str = setting(default="state")
    """Entry that the policy sees if observations are a dict."""


def orthogonal(scale: float) -> nn.initializers.Initializer:
    """Return an initializer that draws orthogonal weights; under vmap, for one member after another."""
    draw = nn.initializers.orthogonal(scale)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        # JAX 0.10 runs a batched QR on the same CPU threads that wait for it, so that two at once hang.
        return jax.custom_batching.sequential_vmap(lambda key: draw(key, shape, dtype))(key)

    return init


class MLP(nn.Module):
    """A multilayer perceptron. Initial weights are orthogonal times √2, in the last layer times `last_scale`; biases are 0."""

    hidden_sizes: tuple[int, ...]
    output_size: int
    activation: str
    last_scale: float

    @nn.compact
    def __call__(self, x: Shaped[Array, "*batch O"]) -> Float[Array, "*batch F"]:
        for size in self.hidden_sizes:
            x = ACTIVATIONS[self.activation](nn.Dense(size, kernel_init=orthogonal(2**0.5))(x))
        return nn.Dense(self.output_size, kernel_init=orthogonal(self.last_scale))(x)


class GaussianPolicy(nn.Module):
    """Map observations to a `DiagonalGaussian` or `TanhGaussian` whose log_std is a parameter, independent of the state.

    The last layer starts small, so that the first policy has a mean of nearly zero everywhere.
    """

    action_size: int
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    init_log_std: float = 0.0
    tanh: bool = False

    @nn.compact
    def __call__(self, observation: Shaped[Array, "*batch O"]) -> DiagonalGaussian | TanhGaussian:
        mean = MLP(self.hidden_sizes, self.action_size, self.activation, last_scale=0.01)(observation)
        log_std = self.param("log_std", nn.initializers.constant(self.init_log_std), (self.action_size,), mean.dtype)
        return (TanhGaussian if self.tanh else DiagonalGaussian)(mean, jnp.broadcast_to(log_std, mean.shape))


class CategoricalPolicy(nn.Module):
    """Map observations to a `Categorical` that is nearly uniform at first."""

    num_actions: int
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"

    @nn.compact
    def __call__(self, observation: Shaped[Array, "*batch O"]) -> Categorical:
        return Categorical(MLP(self.hidden_sizes, self.num_actions, self.activation, last_scale=0.01)(observation))


class ValueNetwork(nn.Module):
    """Map observations to a value."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"

    @nn.compact
    def __call__(self, observation: Shaped[Array, "*batch O"]) -> Float[Array, "*batch"]:
        return MLP(self.hidden_sizes, 1, self.activation, last_scale=1.0)(observation)[..., 0]


@dataclasses.dataclass(frozen=True)
class OfEntry:
    """A network that sees only one entry of a dict observation. Any other observation it sees whole."""

    network: Network
    entry: str
    field: str
    """The configuration's field that holds `entry`, to name it in the error if there is no such entry."""

    def init(self, key: Any, observation: Any) -> Any:
        """Draw parameters for observations like this one."""
        return self.network.init(key, self._seen(observation))

    def apply(self, params: Any, observation: Any) -> Any:
        """Apply the network to the entry, or to the whole observation."""
        return self.network.apply(params, self._seen(observation))

    def _seen(self, observation: Any) -> Any:
        if not isinstance(observation, Mapping):
            return observation
        if self.entry not in observation:
            raise ConfigError(self.field, self.entry, f"an entry of the observation: {', '.join(sorted(observation))}")
        return observation[self.entry]


def policy_distribution(network: Network, params: Any, observation: Any) -> Distribution:
    """Apply a policy in full matmul precision, so that every program computes the same probabilities from the same weights."""
    with jax.default_matmul_precision("highest"):
        return network.apply(params, observation)
