"""Backtracking: the largest of a geometric series of step fractions that passes a test."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class LineSearchResult(NamedTuple):
    """Result of a backtracking line search."""

    accepted: Bool[Array, ""]
    """Whether any trial passed."""
    fraction: Float[Array, ""]
    """The step fraction of the last trial: the accepted one, or the smallest that failed."""
    backtracks: Int[Array, ""]
    """How often the fraction was shrunk, 0 … max_backtracks."""
    trial: Any
    """The second value that `trial_fn` returned for the last trial."""


def backtracking_line_search(
    trial_fn: Callable[[Float[Array, ""]], tuple[Bool[Array, ""], Any]],
    *,
    backtrack_factor: float | Float[Array, ""] = 0.8,
    max_backtracks: int = 10,
    first_factor_fn: Callable[[Any], Float[Array, ""]] | None = None,
) -> LineSearchResult:
    """Try the step fractions 1, c, c², …, c^max_backtracks in turn and stop at the first that is accepted.

    The last fraction may be accepted like any other. With `first_factor_fn` the fractions are 1, c₁, c₁c, c₁c², …, and c₁ is
    computed from the first trial.

    Args:
        trial_fn: fraction -> (accepted, trial). `trial` is any pytree of arrays, for example the candidate parameters.
            The trial of the last fraction is returned, so that the caller can use bit for bit what was tested.
        backtrack_factor: c in (0, 1); may be traced.
        max_backtracks: largest number of backtracks, so that at most max_backtracks + 1 fractions are tried; static.
        first_factor_fn: trial of the whole step -> c₁ in (0, 1); None for c₁ = c.

    Returns:
        LineSearchResult; `accepted` is False when every fraction failed.

    Raises:
        ValueError: max_backtracks < 0.

    Reference:
        Nocedal and Wright 2006, algorithm 3.1; Schulman et al. 2015 (arXiv 1502.05477), appendix C.
    """
    if max_backtracks < 0:
        raise ValueError(f"max_backtracks: got {max_backtracks}, allowed: an integer >= 0")
    factor = jnp.asarray(backtrack_factor, jnp.float32)

    def unfinished(carry):
        accepted, attempt, *_ = carry
        return ~accepted & (attempt <= max_backtracks)

    def attempt_next(carry):
        _, attempt, _, fraction, _ = carry
        accepted, trial = trial_fn(fraction)
        shrink = factor if first_factor_fn is None else jnp.where(attempt == 0, first_factor_fn(trial), factor)
        return accepted, attempt + 1, fraction, fraction * shrink.astype(jnp.float32), trial

    whole = jnp.float32(1)
    trial_shape = jax.eval_shape(lambda: trial_fn(whole)[1])
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), trial_shape)
    start = (jnp.zeros((), bool), jnp.int32(0), whole, whole, nothing)
    accepted, attempts, fraction, _, trial = jax.lax.while_loop(unfinished, attempt_next, start)
    return LineSearchResult(accepted, fraction, attempts - 1, trial)
