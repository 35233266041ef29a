"""Layers that networks are made of."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from trpo_jax.tree import upcast

Activation = Literal["tanh", "relu", "elu", "swish"]
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"tanh": nn.tanh, "relu": nn.relu, "elu": nn.elu, "swish": nn.swish}


def orthogonal(scale: float) -> nn.initializers.Initializer:
    """Return an initializer that draws orthogonal weights; under vmap, for one member after another."""
    draw = nn.initializers.orthogonal(scale)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        # JAX 0.10 runs a batched QR on the same CPU threads that wait for it, so that two at once hang.
        return jax.custom_batching.sequential_vmap(lambda key: draw(key, shape, dtype))(key)

    return init


def hidden_layers(x: Shaped[Array, "*batch O"], sizes: tuple[int, ...], activation: str) -> Shaped[Array, "*batch F"]:
    """Apply dense layers with an activation after each; they belong to the module that calls this."""
    for size in sizes:
        x = ACTIVATIONS[activation](nn.Dense(size, kernel_init=orthogonal(2**0.5))(x))
    return x


class MLP(nn.Module):
    """A multilayer perceptron. Initial weights are orthogonal times √2, in the last layer times `last_scale`; biases are 0."""

    hidden_sizes: tuple[int, ...]
    output_size: int
    activation: str
    last_scale: float

    @nn.compact
    def __call__(self, x: Shaped[Array, "*batch O"]) -> Float[Array, "*batch F"]:
        x = hidden_layers(x, self.hidden_sizes, self.activation)
        return nn.Dense(self.output_size, kernel_init=orthogonal(self.last_scale))(x)


class Convolutions(nn.Module):
    """Map images `[..., H, W, C]`, of numbers, bytes or flags, to features: convolutions with an activation after each.

    Bytes are divided by 255, flags become 0 and 1. The initial weights are those of `MLP`. Convolutions are matrix products of
    patches: XLA's own are slow on CPUs if several trainings share a program, and each has its own kernels.
    """

    channels: tuple[int, ...] = (16,)
    kernel_sizes: tuple[int, ...] = (3,)
    strides: tuple[int, ...] = (1,)
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Shaped[Array, "*batch H W C"]) -> Float[Array, "*batch F"]:
        x = x / 255.0 if x.dtype == jnp.uint8 else upcast(x)
        for features, size, stride in zip(self.channels, self.kernel_sizes, self.strides, strict=True):
            convolution = nn.Dense(features, kernel_init=orthogonal(2**0.5))
            x = ACTIVATIONS[self.activation](convolution(patches(x, size, stride)))
        return x.reshape(*x.shape[:-3], -1)


def patches(x: Float[Array, "*batch H W C"], size: int, stride: int) -> Float[Array, "*batch h w P"]:
    """Return the windows of `size` × `size` pixels, without padding, their pixels one after the other along the last axis."""
    height, width = ((side - size) // stride + 1 for side in x.shape[-3:-1])

    def shifted(row: int, column: int) -> Float[Array, "*batch h w C"]:
        rows, columns = slice(row, row + stride * height, stride), slice(column, column + stride * width, stride)
        return x[..., rows, columns, :][..., :height, :width, :]

    return jnp.concatenate([shifted(row, column) for row in range(size) for column in range(size)], axis=-1)


class Hidden(nn.Module):
    """Hidden layers of a multilayer perceptron, after an encoder if there is one."""

    hidden_sizes: tuple[int, ...]
    activation: str = "tanh"
    encoder: nn.Module | None = None

    @nn.compact
    def __call__(self, x: Shaped[Array, "..."]) -> Float[Array, "... F"]:
        return hidden_layers(x if self.encoder is None else self.encoder(x), self.hidden_sizes, self.activation)
