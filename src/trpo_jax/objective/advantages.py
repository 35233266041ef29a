"""Generalized advantage estimation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from trpo_jax.tree import upcast


def generalized_advantage_estimation(
    reward: Float[Array, "T *batch"],
    value: Float[Array, "T *batch"],
    next_value: Float[Array, "T *batch"],
    terminated: Float[Array, "T *batch"] | Bool[Array, "T *batch"],
    done: Float[Array, "T *batch"] | Bool[Array, "T *batch"],
    *,
    discounting: float | Float[Array, ""],
    gae_lambda: float | Float[Array, ""],
) -> Float[Array, "T *batch"]:
    """Estimate advantages from time-major experience that may span several episodes.

        δ_t = r_t + γ(1 - terminated_t)·V(s'_t) - V(s_t),    A_t = δ_t + γλ(1 - done_t)·A_{t+1},    A_T = 0

    A time limit is not a termination: it sets `done`, so that nothing leaks from the next episode, but not
    `terminated`, so that the value of the observation reached still counts.

    Args:
        reward: r, `[T, ...]`.
        value: V(s_t), `[T, ...]`, in units of the discounted sum of `reward`.
        next_value: V(s'_t), `[T, ...]`: the value of the observation reached *before* any reset.
        terminated: `[T, ...]`, bool or 0/1: the episode ended in a terminal state.
        done: `[T, ...]`, bool or 0/1: the episode ended, by termination or truncation.
        discounting: γ; may be traced.
        gae_lambda: λ; may be traced.

    Returns:
        A, `[T, ...]`, in at least float32. Adding `value` gives the λ-return, the critic's target.

    Raises:
        ValueError: the shapes differ.

    Reference:
        Schulman et al. 2016 (arXiv 1506.02438), equation 16. Computed by a parallel scan (Blelloch 1990), in a few
        operations on whole arrays instead of T on single steps.
    """
    for name, array in (("value", value), ("next_value", next_value), ("terminated", terminated), ("done", done)):
        if array.shape != reward.shape:
            raise ValueError(f"{name}: got shape {array.shape}, allowed: {reward.shape}, the shape of reward")
    reward, value, next_value = (upcast(numbers) for numbers in (reward, value, next_value))
    delta = reward + discounting * jnp.where(terminated, 0.0, next_value) - value
    decay = jnp.where(done, 0.0, discounting * gae_lambda).astype(delta.dtype)

    def combine(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> tuple[Array, Array]:
        (later_decay, later_advantage), (decay, advantage) = later, earlier
        # Values after an episode's end do not count, even if they are infinite or NaN.
        reaches = jnp.where(decay == 0, 0.0, decay * later_advantage)
        return decay * later_decay, advantage + reaches

    return jax.lax.associative_scan(combine, (decay, delta), reverse=True)[1]
