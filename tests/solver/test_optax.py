"""The trust-region step as an optax transformation, against `trust_region_step`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trpo_jax.solver.optax import trust_region
from trpo_jax.solver.outcome import StepOutcome
from trpo_jax.solver.step_config import StepConfig, init_trust_region_state
from trpo_jax.solver.trust_region import stateful_trust_region_step, trust_region_step

MATRIX = np.diag([1.0, 4.0, 0.5])
SLOPE = np.array([1.0, -2.0, 0.3])
CONFIG = StepConfig(max_kl=0.02, damping=0.3, cg_iterations=10, cg_tolerance=1e-20)


def problem(dtype):
    params = {"a": jnp.asarray([0.5, -1.0], dtype), "b": jnp.asarray(2.0, dtype)}
    origin = params

    def flat(tree):
        return jnp.concatenate([tree["a"], tree["b"][None]])

    def objective_fn(p):
        return jnp.asarray(SLOPE, dtype) @ flat(p)

    def kl_fn(p):
        d = flat(p) - flat(origin)
        return 0.5 * d @ (jnp.asarray(MATRIX, dtype) @ d)

    def matvec(v):
        image = jnp.asarray(MATRIX, dtype) @ flat(v)
        return {"a": image[:2], "b": image[2]}

    return params, {"objective_fn": objective_fn, "kl_fn": kl_fn, "matvec": matvec}


def test_the_transformation_takes_the_trust_region_step(dtype):
    params, functions = problem(dtype)
    transformation = trust_region(CONFIG)
    gradient = jax.grad(functions["objective_fn"])(params)
    updates, state = transformation.update(gradient, transformation.init(params), params, **functions)
    new = optax.apply_updates(params, updates)
    expected, info = trust_region_step(*functions.values(), params, CONFIG)
    tolerance = 10 * float(jnp.finfo(dtype).eps)
    for key in params:
        np.testing.assert_allclose(new[key], expected[key], rtol=tolerance)
    assert state.info.outcome == StepOutcome.ACCEPTED
    np.testing.assert_allclose(state.info.constraint, info.constraint, rtol=tolerance)


def test_it_composes_in_a_chain_under_jit_and_scan_and_its_state_keeps_its_avals(dtype):
    params, functions = problem(dtype)
    config = dataclasses.replace(CONFIG, damping_shape="gradient", gradient_decay=0.5)
    chain = optax.chain(optax.clip_by_global_norm(1e-3), trust_region(config), optax.scale(0.5))

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(functions["objective_fn"])(params)
        updates, state = chain.update(gradient, state, params, **functions)
        return (optax.apply_updates(params, updates), state), state[1].info

    (end, state), infos = jax.lax.scan(step, (params, chain.init(params)), length=2)
    # The clipped gradient has the direction of the whole one, which is all that a step takes from it.
    start = init_trust_region_state(params, config)
    whole, _, _ = stateful_trust_region_step(*functions.values(), params, start, config)
    (first, _), _ = jax.jit(step)((params, chain.init(params)), None)
    for key in params:
        np.testing.assert_allclose(first[key], params[key] + 0.5 * (whole[key] - params[key]), rtol=1e-5)
    assert infos.gradient_norm[0] < 1.01e-3
    assert infos.accepted.all()
    for average in jax.tree.leaves(state[1].carried.squared_gradient):
        assert (average > 0).all()
        assert (average < 0.75 * 1e-6).all()  # of two gradients that are clipped to a norm of 1e-3
    assert functions["objective_fn"](end) > functions["objective_fn"](params)


def test_a_rejected_step_is_an_update_of_zeros():
    params, functions = problem("float32")
    gradient = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params)
    transformation = trust_region(CONFIG)
    updates, state = transformation.update(gradient, transformation.init(params), params, **functions)
    assert state.info.outcome == StepOutcome.NOT_FINITE
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))


def test_before_the_first_step_the_report_is_zero_with_the_avals_of_later_ones():
    params, functions = problem("float32")
    transformation = trust_region(CONFIG)
    state = transformation.init(params)
    assert not state.info.accepted
    _, after = jax.eval_shape(functools.partial(transformation.update, **functions), params, state, params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), after
    )


def test_misuse_is_refused_by_name(own_errors):
    params, functions = problem("float32")
    transformation = trust_region(CONFIG)
    state = transformation.init(params)
    with pytest.raises(ValueError, match="params: got None, allowed: the parameters at which the gradient was taken"):
        transformation.update(params, state, None, **functions)
    with pytest.raises(TypeError, match="matvec"):
        transformation.update(params, state, params, objective_fn=functions["objective_fn"], kl_fn=functions["kl_fn"])
    with pytest.raises(TypeError, match=r"params\['a'\]: got dtype int32"):
        transformation.init({"a": jnp.arange(3)})
