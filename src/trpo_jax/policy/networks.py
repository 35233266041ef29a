"""Policy and value networks."""

from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from trpo_jax.config import config, setting
from trpo_jax.errors import ConfigError
from trpo_jax.policy.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Distribution,
    Joint,
    MultiCategorical,
    TanhGaussian,
)
from trpo_jax.policy.layers import MLP, Activation, Convolutions
from trpo_jax.spaces import ActionSpace, Box, Discrete, MultiBinary, MultiDiscrete, num_numbers, parts_of, with_parts


@runtime_checkable
class Network(Protocol):
    """A network as the package uses it: any flax linen module, or an object with the same two methods.

    One with a memory is a `memory.RecurrentNetwork`.
    """

    def init(self, key: Any, observation: Any, /) -> Any: ...

    def apply(self, params: Any, observation: Any, /) -> Any: ...


class Networks(NamedTuple):
    """Policy and critic."""

    policy: Network
    """apply(params, observation [..., O]) -> Distribution with batch axes [...]."""
    critic: Network
    """apply(params, observation [..., O]) -> value [...]."""


@config
class ImageConfig:
    """Convolutions before the other layers; they count only for images, observations `[H, W, C]`."""

    channels: tuple[int, ...] = setting(default=(16,), at_least=1)
    """Output channels of each layer."""
    kernel_sizes: tuple[int, ...] = setting(default=(3,), at_least=1)
    """Height and width of each layer's kernels."""
    strides: tuple[int, ...] = setting(default=(1,), at_least=1)
    """Strides of each layer."""
    activation: Activation = setting(default="relu")
    """Nonlinearity after each layer."""

    def encoder(self, observation: Any, field: str) -> "Convolutions | None":
        """Return the convolutions for one observation, or for its description; None if it is no image.

        Raises:
            ConfigError: layers without as many kernel sizes and strides, or larger than the image.
        """
        shape = jnp.shape(observation)
        if len(shape) != 3:
            return None
        number = len(self.channels)
        for name in ("kernel_sizes", "strides"):
            if len(getattr(self, name)) != number:
                raise ConfigError(f"{field}.{name}", getattr(self, name), f"{number} numbers, as channels has {number} layers")
        height, width = shape[:2]
        for size, stride in zip(self.kernel_sizes, self.strides, strict=True):
            height, width = ((side - size) // stride + 1 for side in (height, width))
        if min(height, width) < 1:
            raise ConfigError(f"{field}.kernel_sizes", self.kernel_sizes, f"such as fit into images of {shape[0]} × {shape[1]}")
        return Convolutions(self.channels, self.kernel_sizes, self.strides, self.activation)


NetworkKind = Literal["mlp", "gru", "lstm"]


@config
class PolicyConfig:
    """The policy network, plus one log standard deviation per dimension of continuous actions."""

    network: NetworkKind = setting(default="mlp")
    """A multilayer perceptron, or one whose last hidden layer is recurrent: gated recurrent units or long short-term memory."""
    hidden_sizes: tuple[int, ...] = setting(default=(64, 64), at_least=1)
    """Units of each hidden layer."""
    activation: Activation = setting(default="tanh")
    """Nonlinearity between layers."""
    image: ImageConfig = ImageConfig()
    init_log_std: float = setting(default=-0.5, static=True)
    """Initial log standard deviation of actions, the same in every state, for actions in units of the box [-1, 1]."""
    action_bounds: Literal["clip", "tanh"] = setting(default="clip")
    """How Gaussian samples are brought into the action box: clipped to it, or squashed by tanh."""
    observation_key: str = setting(default="state")
    """Entry that the policy sees if observations are a dict; several, with commas between them, are put side by side. If there
    is no entry "state", that stands for all entries."""
    action_mask_key: str = setting(default="action_mask")
    """Entry that tells which discrete actions are allowed, if observations are a dict that has it."""


class PolicyNetwork(nn.Module):
    """Map observations to a distribution over the actions of a space.

    The distribution is a `DiagonalGaussian` or `TanhGaussian` whose log_std is a parameter, independent of the state; a
    `Categorical`; a `MultiCategorical`; a `Bernoulli`; or, for a `Composite`, the `Joint` of its parts' distributions. The last
    layer starts small, so that the first policy has a mean of nearly zero, or is nearly uniform, everywhere.
    """

    action_space: ActionSpace
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    init_log_std: float = 0.0
    tanh: bool = False
    encoder: nn.Module | None = None
    """Maps observations to features for the other layers; None passes them."""

    @nn.compact
    def __call__(self, observation: Shaped[Array, "..."]) -> Distribution:
        features = observation if self.encoder is None else self.encoder(observation)
        outputs = MLP(self.hidden_sizes, num_numbers(self.action_space), self.activation, last_scale=0.01)(features)
        return self.distribution(self.action_space, outputs)

    @nn.nowrap
    def distribution(self, space: ActionSpace, outputs: Float[Array, "*batch F"], name: str = "log_std") -> Any:
        """Turn the last layer's outputs into a distribution; `name` is that of a Gaussian's parameter."""
        if isinstance(space, Box):
            log_std = self.param(name, nn.initializers.constant(self.init_log_std), (int(space.size),), outputs.dtype)
            return (TanhGaussian if self.tanh else DiagonalGaussian)(outputs, jnp.broadcast_to(log_std, outputs.shape))
        if isinstance(space, Discrete):
            return Categorical(outputs)
        if isinstance(space, MultiDiscrete):
            return MultiCategorical(outputs, space.sizes)
        if isinstance(space, MultiBinary):
            return Bernoulli(outputs)
        parts, first = {}, 0
        for key, part in parts_of(space).items():
            last = first + num_numbers(part)
            parts[key], first = self.distribution(part, outputs[..., first:last], f"{name}_{key}"), last
        return Joint(with_parts(space, parts))


class ValueNetwork(nn.Module):
    """Map observations to a value."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    encoder: nn.Module | None = None

    @nn.compact
    def __call__(self, observation: Shaped[Array, "..."]) -> Float[Array, "..."]:
        features = observation if self.encoder is None else self.encoder(observation)
        return MLP(self.hidden_sizes, 1, self.activation, last_scale=1.0)(features)[..., 0]
