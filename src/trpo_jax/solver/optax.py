"""The trust-region step as an optax gradient transformation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from trpo_jax.solver.outcome import StepInfo
from trpo_jax.solver.step_config import StepConfig, TrustRegionState, init_trust_region_state
from trpo_jax.solver.trust_region import bare_problem, step_along_gradient
from trpo_jax.tree import MatVec, Params, check_floating, upcast, vdot


class TrustRegionOptState(NamedTuple):
    """State of the transformation `trust_region`."""

    carried: TrustRegionState
    """State that the next step starts from."""
    info: StepInfo
    """What happened in the last step; zeros before the first."""


def trust_region(config: StepConfig = StepConfig()) -> optax.GradientTransformationExtraArgs:  # noqa: B008
    """Return `trust_region_step` as an optax transformation, for optax chains and training loops.

    `update(grads, state, params, *, objective_fn, kl_fn, matvec)` takes the gradient at `params` of `objective_fn`, the
    function to *maximize*, and returns updates for `optax.apply_updates`. Mind the sign if the rest of a program minimizes.
    A rejected step returns zeros. In an `optax.chain`, transformations before this one change the gradient and so the
    direction. Transformations after it change the step after its KL was checked, and can break the bound.

    Args:
        config: StepConfig, as for `trust_region_step`; the average of `damping_shape="gradient"` is kept in the state.

    Returns:
        optax.GradientTransformationExtraArgs. `state.info` is the `StepInfo` of the last step. optax computes
        new parameters as params + updates: in rare cases their last bit differs from the candidate that was tested.

    Raises:
        ValueError: `update` is called without `params`.
        TypeError: a leaf of `params` is not floating; `objective_fn`, `kl_fn` or `matvec` is missing.

    Reference:
        Schulman et al. 2015 (arXiv 1502.05477), section 6 and appendix C.
    """

    def init(params: Params) -> TrustRegionOptState:
        carried = init_trust_region_state(params, config)
        info = jax.eval_shape(lambda: _step(params, params, carried, config, _squares, _squares, lambda v: v)[2])
        return TrustRegionOptState(carried, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), info))

    def update(
        grads: Params,
        state: TrustRegionOptState,
        params: Params | None = None,
        *,
        objective_fn: Callable[[Params], Float[Array, ""]],
        kl_fn: Callable[[Params], Float[Array, ""]],
        matvec: MatVec,
        **_: Any,
    ) -> tuple[Params, TrustRegionOptState]:
        if params is None:
            raise ValueError("params: got None, allowed: the parameters at which the gradient was taken")
        check_floating(params, "params")
        new_params, carried, info = _step(grads, params, state.carried, config, objective_fn, kl_fn, matvec)
        updates = jax.tree.map(lambda new, old: new - old, new_params, params)
        return updates, TrustRegionOptState(carried, info)

    return optax.GradientTransformationExtraArgs(init, update)


def _step(grads, params, carried, config, objective_fn, kl_fn, matvec):
    with jax.default_matmul_precision("highest"):
        problem = bare_problem(objective_fn, kl_fn, matvec)
        return step_along_gradient(problem, objective_fn(params), grads, params, carried, config)[:3]


def _squares(params: Params) -> Float[Array, ""]:
    """Stand in for objective and constraint when only shapes and dtypes are needed."""
    return vdot(upcast(params), upcast(params))
