"""The policy update under JAX's transformations, on several devices, and in other precisions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from trpo_jax.objective.constrained_update import init_constrained_state, stateful_constrained_trust_region_update
from trpo_jax.objective.surrogate import Batch
from trpo_jax.objective.trust_region_update import stateful_trust_region_update, trust_region_update
from trpo_jax.solver.step_config import TrustRegionState, init_trust_region_state
from update_problems import CONFIG, draw, examine, gaussian_fn, update

pytestmark = pytest.mark.quick_compilation

DEVICES = 4
OPTIONS = {
    "plain": {},
    "microbatches and largest KL": {"num_microbatches": 3, "kl_constraint": "max"},
    "microbatches and empirical Fisher": {"num_microbatches": 3, "fisher": "empirical"},
    "shaped damping": {"damping_shape": "gradient"},
    "natural gradient": {"line_search": False},
}


def problem(dtype="float64", repeats=4):
    """A batch of 48 samples of uneven weight, some of them zero."""
    params, batch = draw("gaussian", dtype, seed=1)
    rng = np.random.default_rng(2)
    batch = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * repeats), batch)
    observation = batch.observation + jnp.asarray(rng.normal(size=batch.observation.shape), dtype)
    policy = gaussian_fn(params, observation)
    weight = jnp.asarray(rng.random(len(observation)) * (rng.random(len(observation)) > 0.2), dtype)
    return params, batch._replace(observation=observation, log_prob=policy.log_prob(batch.action), weight=weight)


def step(params, state, batch, *, config, axis_name=None):
    return stateful_trust_region_update(gaussian_fn, params, batch, state, config, axis_name=axis_name)


def assert_close(one, other, rtol=1e-8):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


@pytest.fixture
def mesh():
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:DEVICES])


@pytest.mark.parametrize(
    "option", [pytest.param(name, marks=pytest.mark.slow if name == "microbatches and largest KL" else ()) for name in OPTIONS]
)
def test_a_batch_split_over_devices_by_shard_map_gives_the_update_of_the_whole(x64, mesh, option):
    params, batch = problem()
    config = dataclasses.replace(CONFIG, **OPTIONS[option])
    state = init_trust_region_state(params, config)
    whole = jax.jit(step, static_argnames="axis_name")(params, state, batch, config=config)
    assert whole[-1].accepted
    for check_vma in (True, False):
        split = jax.shard_map(
            functools.partial(step, config=config, axis_name="data"),
            mesh=mesh,
            in_specs=(P(), P(), P("data")),
            out_specs=P(),
            check_vma=check_vma,
        )
        assert_close(jax.jit(split)(params, state, batch), whole)


def test_limited_costs_of_a_split_batch_give_the_update_of_the_whole(x64, mesh):
    params, batch = problem()
    rng = np.random.default_rng(1)
    cost = 0.5 * batch.advantage[:, None] + jnp.asarray(rng.normal(size=(*batch.advantage.shape, 2)))
    batch, excess = batch._replace(cost_advantage=cost), jnp.asarray([-1e-3, 1e-3])

    def update_fn(params, batch, axis_name=None):
        """The second of two updates of the same parameters, whose averages are not those of the batch alone."""
        state, kwargs = init_constrained_state(params, CONFIG, 2), {"cost_gradient_decay": 0.9, "axis_name": axis_name}
        other = batch._replace(cost_advantage=batch.cost_advantage + 0.1 * batch.action[:, :1])
        _, state, _ = stateful_constrained_trust_region_update(gaussian_fn, params, other, excess, state, CONFIG, **kwargs)
        return stateful_constrained_trust_region_update(gaussian_fn, params, batch, excess, state, CONFIG, **kwargs)

    whole = jax.jit(update_fn, static_argnames="axis_name")(params, batch)
    assert whole[2].accepted
    split = functools.partial(update_fn, axis_name="data")
    split = jax.shard_map(split, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=False)
    assert_close(jax.jit(split)(params, batch), whole, rtol=1e-7)


def test_sharded_arrays_under_jit_give_the_update_of_one_device(x64, mesh):
    params, batch = problem()
    sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
    for config in (CONFIG, dataclasses.replace(CONFIG, num_microbatches=3, curvature_fraction=0.5)):
        update_fn = jax.jit(functools.partial(trust_region_update, gaussian_fn, config=config))
        one, several = update_fn(params, batch), update_fn(params, sharded)
        assert one[1].accepted
        assert len(several[1].kl.sharding.device_set) == DEVICES
        assert_close(several, one)


def test_a_named_axis_of_vmap_splits_the_batch_too(x64):
    params, batch = problem()
    pieces = jax.tree.map(lambda leaf: leaf.reshape(DEVICES, -1, *leaf.shape[1:]), batch)
    update_fn = functools.partial(trust_region_update, gaussian_fn, config=CONFIG, axis_name="i")
    new, info = jax.jit(jax.vmap(update_fn, in_axes=(None, 0), axis_name="i"))(params, pieces)
    whole = update("gaussian", params, batch, CONFIG)
    for i in range(DEVICES):
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], (new, info)), whole)


def test_the_natural_step_is_differentiable_in_hyperparameters_and_data(x64):
    params, batch = problem(repeats=1)
    config = dataclasses.replace(CONFIG, line_search=False, cg_iterations=60, cg_tolerance=1e-28)

    def moved(max_kl, damping, advantage):
        options = dataclasses.replace(config, max_kl=max_kl, damping=damping)
        new, _ = trust_region_update(gaussian_fn, params, batch._replace(advantage=advantage), options)
        return ravel_pytree(new)[0] @ jnp.sin(jnp.arange(ravel_pytree(new)[0].size))

    at = (jnp.asarray(0.01), jnp.asarray(0.1), batch.advantage)
    gradients = jax.jit(jax.grad(moved, argnums=(0, 1, 2)))(*at)
    value = jax.jit(moved)
    for i, h in ((0, 1e-6), (1, 1e-6)):
        shifted = [value(*(x + sign * h * (j == i) for j, x in enumerate(at))) for sign in (1, -1)]
        np.testing.assert_allclose(gradients[i], (shifted[0] - shifted[1]) / (2 * h), rtol=1e-4)
    h = 1e-6
    bump = h * jnp.eye(len(batch.advantage))[3]
    difference = (value(*at[:2], at[2] + bump) - value(*at[:2], at[2] - bump)) / (2 * h)
    np.testing.assert_allclose(gradients[2][3], difference, rtol=1e-4)


def test_buffers_can_be_donated_and_the_result_has_the_avals_that_came_in():
    params, batch = problem("float32")
    expected, _ = update("gaussian", params, batch, CONFIG)
    donating = jax.jit(functools.partial(trust_region_update, gaussian_fn, config=CONFIG), donate_argnums=0)
    given = jax.tree.map(jnp.copy, params)
    new, _ = donating(given, batch)  # a donation that cannot be used warns, and warnings are errors
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, params)
    assert_close(new, expected, rtol=1e-5)


@pytest.mark.parametrize("num_microbatches", [1, 3])
def test_bfloat16_parameters_keep_the_promise_and_come_close_to_float32(num_microbatches):
    params, batch = problem("float32")
    config = dataclasses.replace(CONFIG, num_microbatches=num_microbatches)
    low = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params)
    rounded = jax.tree.map(lambda leaf: leaf.astype("float32"), low)

    def low_policy(params, observation):
        return gaussian_fn(params, observation.astype("bfloat16"))

    batch = batch._replace(log_prob=low_policy(low, batch.observation).log_prob(batch.action))
    new, info = jax.jit(functools.partial(trust_region_update, low_policy, config=config))(low, batch)
    assert info.accepted
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in (info.kl, info.surrogate_improvement, info.cg_residual)} == {jnp.dtype("float32")}
    assert info.kl <= CONFIG.max_kl
    reference, _ = update("gaussian", rounded, batch, CONFIG)
    one, other = (np.asarray(ravel_pytree(p)[0], "float64") for p in (new, reference))
    start = np.asarray(ravel_pytree(rounded)[0], "float64")
    cosine = (one - start) @ (other - start) / np.linalg.norm(one - start) / np.linalg.norm(other - start)
    assert cosine > 0.98


def test_mixed_precision_params_are_updated_each_in_its_own_dtype(x64):
    params, batch = draw("gaussian", "float64", seed=3)
    params["bias"] = params["bias"].astype("float32")
    new, info = update("gaussian", params, batch, CONFIG)
    assert info.accepted
    assert (new["bias"].dtype, new["in"].dtype) == (jnp.dtype("float32"), jnp.dtype("float64"))
    kl, _, improvement, _ = examine("gaussian", params, new, batch, 0.0)
    np.testing.assert_allclose([info.kl, info.surrogate_improvement], [kl, improvement], rtol=1e-6)


def test_a_population_is_vmapped_over_parameters_batches_and_every_float_of_the_config(x64):
    members = [draw("gaussian", "float64", seed=seed) for seed in (4, 5, 6)]
    params, batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    floats = {
        "max_kl": [1e-3, 0.01, 0.3],
        "damping": [0.1, 0.01, 1.0],
        "cg_tolerance": [1e-20, 1e-3, 1e-6],
        "backtrack_factor": [0.5, 0.8, 0.7],
        "accept_ratio": [0.0, 0.5, 0.9],
        "gradient_decay": [0.0, 0.5, 0.9],
    }

    def configured(**values):
        return dataclasses.replace(CONFIG, damping_shape="gradient", **values)

    def updated(params, batch, config):
        state = TrustRegionState(jax.tree.map(jnp.square, params))
        return stateful_trust_region_update(gaussian_fn, params, batch, state, config)

    config = configured(**{name: jnp.asarray(values) for name, values in floats.items()})
    assert len(jax.tree.leaves(config)) == len(floats)
    together = jax.jit(jax.vmap(updated))(params, batch, config)
    compiled = jax.jit(updated)
    for i, member in enumerate(members):
        alone = compiled(*member, configured(**{name: values[i] for name, values in floats.items()}))
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, rtol=1e-6)


def test_the_batch_may_hold_any_structure_of_observations_and_actions():
    params, batch = problem("float32")
    nested = Batch(
        {"a": batch.observation[:, :1], "b": (batch.observation[:, 1:],)},
        batch.action,
        batch.log_prob,
        batch.advantage,
        batch.weight,
    )

    def policy_fn(params, observation):
        return gaussian_fn(params, jnp.concatenate([observation["a"], observation["b"][0]], axis=-1))

    updated = jax.jit(trust_region_update, static_argnums=0)(policy_fn, params, nested, CONFIG)
    assert_close(updated, update("gaussian", params, batch, CONFIG), rtol=1e-4)
