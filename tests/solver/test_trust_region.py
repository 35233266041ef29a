"""The trust-region step on quadratics, whose solution is known."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.errors import ConfigError
from trpo_jax.solver.outcome import StepOutcome
from trpo_jax.solver.step_config import StepConfig, TrustRegionState, init_trust_region_state
from trpo_jax.solver.trust_region import stateful_trust_region_step, trust_region_step
from trpo_jax.solver.vector_step import AIM, LONGEST, SLACK

N = 4
_BASIS, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(N, N)))
CURVATURE = (_BASIS * np.array([0.5, 1.0, 3.0, 8.0])) @ _BASIS.T
GRADIENT = np.array([1.0, -2.0, 0.5, 3.0])
PARAMS = np.array([0.1, -0.7, 2.0, -0.0])
CONFIG = StepConfig(max_kl=0.02, damping=0.5, cg_iterations=20, cg_tolerance=0.0, max_backtracks=8)


def split(flat):
    return {"w": flat[:3].reshape(3, 1), "b": flat[3]}


def join(tree):
    return jnp.concatenate([tree["w"][:, 0], tree["b"][None]])


@functools.partial(jax.jit, static_argnames="dtype")
def step(config, *, bend=0.0, scale=1.0, kl_scale=1.0, kl_offset=0.0, curvature=CURVATURE, params=PARAMS, dtype="float32"):
    """Step on the objective scale·(gᵀd - ½·bend·(gᵀd)²/gᵀs) under the KL kl_scale·½dᵀAd + kl_offset, with d = params - PARAMS.

    s is the full step, so that the fraction f of it improves by (1 - ½·bend·f) times what is predicted.
    """
    gradient, origin = jnp.asarray(GRADIENT, dtype), jnp.asarray(PARAMS, dtype)
    full = jnp.asarray(GRADIENT @ natural_step(), dtype)
    matrix = jnp.asarray(curvature, dtype)

    def objective_fn(params):
        rise = gradient @ (join(params) - origin)
        return jnp.asarray(scale, dtype) * (rise - 0.5 * jnp.asarray(bend, dtype) * rise**2 / full)

    def kl_fn(params):
        d = join(params) - origin
        return kl_scale * 0.5 * d @ (jnp.asarray(CURVATURE, dtype) @ d) + jnp.where((d != 0).any(), kl_offset, 0.0)

    new, info = trust_region_step(
        objective_fn, kl_fn, lambda v: split(matrix @ join(v)), split(jnp.asarray(params, dtype)), config
    )
    return join(new), info


def natural_step(max_kl=CONFIG.max_kl, damping=CONFIG.damping, shape=np.ones(N)):
    """sqrt(2δ / xᵀFx)·x with x = (F + λD)⁻¹g, in numpy; a hair shorter, as the step is."""
    x = np.linalg.solve(CURVATURE + damping * np.diag(shape), GRADIENT)
    return np.sqrt(2 * max_kl / ((1 + SLACK) * (x @ CURVATURE @ x))) * x


def same_bits(a, b):
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_the_step_on_a_quadratic_is_the_analytic_one(dtype):
    new, info = step(CONFIG, dtype=dtype.name)
    tolerance = 100 * float(jnp.finfo(dtype).eps)
    full = natural_step()
    np.testing.assert_allclose(new - PARAMS, full, atol=tolerance)
    assert info.outcome == StepOutcome.ACCEPTED
    assert bool(info.accepted)
    for reported, expected in [
        (info.improvement, GRADIENT @ full),
        (info.expected_improvement, GRADIENT @ full),
        (info.constraint, 0.5 * full @ CURVATURE @ full),
        (info.gradient_norm, np.linalg.norm(GRADIENT)),
        (info.step_norm, np.linalg.norm(full)),
        (info.step_fraction, 1.0),
        (info.backtracks, 0),
    ]:
        np.testing.assert_allclose(reported, expected, rtol=tolerance, atol=tolerance)
    assert info.cg_residual < 1e-5
    assert info.cg_iterations <= CONFIG.cg_iterations
    assert new.dtype == dtype


@pytest.mark.parametrize("damping", [0.0, 0.25, 4.0])
@pytest.mark.parametrize("max_kl", [1e-6, 0.01, 3.0])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_step_ends_just_inside_the_constraint_whatever_the_damping(max_kl, damping, precision):
    with jax.enable_x64(precision == "float64"):
        new, info = step(dataclasses.replace(CONFIG, max_kl=max_kl, damping=damping), dtype=precision)
        if precision == "float64":
            np.testing.assert_allclose(new - PARAMS, natural_step(max_kl, damping), rtol=1e-6)
        assert info.backtracks == 0
        assert (1 - 2 * SLACK) * max_kl < info.constraint <= max_kl


def test_without_a_line_search_the_length_is_the_cautious_one_of_the_damped_quadratic(x64):
    new, _ = step(dataclasses.replace(CONFIG, line_search=False), dtype="float64")
    matrix = CURVATURE + CONFIG.damping * np.eye(N)
    x = np.linalg.solve(matrix, GRADIENT)
    np.testing.assert_allclose(new - PARAMS, np.sqrt(2 * CONFIG.max_kl / (x @ matrix @ x)) * x, rtol=1e-9)


def test_backtracks_beyond_the_range_of_floats_are_as_good_as_many():
    new, info = step(dataclasses.replace(CONFIG, backtrack_factor=0.1, max_backtracks=400))
    assert info.accepted
    chex.assert_trees_all_equal(new, step(dataclasses.replace(CONFIG, backtrack_factor=0.1, max_backtracks=30))[0])


@pytest.mark.parametrize(("backtrack_factor", "max_backtracks"), [(0.8, 15), (0.8, 8), (0.8, 5), (0.9, 8), (0.5, 1), (0.8, 0)])
def test_a_direction_that_the_curvature_does_not_see_goes_no_further_than_the_line_search_can_come_back(
    backtrack_factor, max_backtracks
):
    """F is zero and the true KL is that of the damping, so that the damped length is right, and at most `LONGEST` is tried."""
    config = dataclasses.replace(CONFIG, max_backtracks=max_backtracks, backtrack_factor=backtrack_factor, damping=0.5)

    def kl_fn(p):
        return 0.25 * jnp.sum(p**2)

    _, info = trust_region_step(lambda p: p @ jnp.ones(2), kl_fn, jnp.zeros_like, jnp.zeros(2), config)
    needed = math.ceil(math.log(LONGEST, 1 / backtrack_factor))  # 0.8⁸ = 0.17
    assert info.accepted
    assert info.backtracks == min(needed, max_backtracks)
    longest = min(LONGEST, backtrack_factor**-max_backtracks)
    np.testing.assert_allclose(
        info.constraint, (longest * backtrack_factor ** int(info.backtracks)) ** 2 * config.max_kl, rtol=2e-3
    )


@pytest.mark.parametrize(("kl_scale", "fraction"), [(1.02, AIM / np.sqrt(1.02)), (1.5, AIM / np.sqrt(1.5)), (1.55, 0.8)])
def test_a_first_trial_that_was_just_too_long_is_shortened_by_as_much_as_its_kl_asks_for(kl_scale, fraction):
    _, info = step(CONFIG, kl_scale=kl_scale / (1 - SLACK))
    assert info.backtracks == 1
    np.testing.assert_allclose(info.step_fraction, fraction, rtol=1e-3)
    np.testing.assert_allclose(info.constraint, kl_scale * fraction**2 * CONFIG.max_kl, rtol=2e-3)


def test_without_backtracks_the_damped_step_is_taken_and_none_that_is_too_long():
    config = dataclasses.replace(CONFIG, max_backtracks=0)
    _, damped = step(dataclasses.replace(CONFIG, line_search=False))
    _, inside = step(config)
    assert inside.accepted
    np.testing.assert_allclose(inside.constraint, damped.constraint, rtol=2 * SLACK)
    new, info = step(config, kl_scale=1.1 * config.max_kl / damped.constraint)
    assert info.outcome == StepOutcome.KL_TOO_LARGE
    assert same_bits(new, np.float32(PARAMS))


@pytest.mark.parametrize("exponent", [-120, -60, -1, 1, 60, 100, 125])  # 1e-36 … 4e37
def test_the_step_does_not_depend_on_the_scale_of_the_gradient(exponent):
    # A power of two scales without rounding, so that nothing at all may change.
    reference, unscaled = step(CONFIG)
    new, info = step(CONFIG, scale=2.0**exponent)
    assert same_bits(new, reference)
    assert info.cg_iterations == unscaled.cg_iterations
    np.testing.assert_allclose(info.expected_improvement, unscaled.expected_improvement * 2.0**exponent)
    np.testing.assert_allclose(info.gradient_norm, unscaled.gradient_norm * 2.0**exponent)


def test_the_expected_improvement_is_shrunk_once_with_the_step_bug_2():
    # The KL of the fraction f is f² · 6 times that of the full step, so f = 0.8^k must fall below its square root.
    full = natural_step()
    kl_scale = 6 * CONFIG.max_kl / (0.5 * full @ CURVATURE @ full)
    new, info = step(CONFIG, kl_scale=kl_scale)
    assert info.backtracks == 5  # 0.8⁴ = 0.41 > 1/√6 = 0.408 > 0.8⁵ = 0.33
    np.testing.assert_allclose(info.step_fraction, 0.8**5, rtol=1e-5)
    np.testing.assert_allclose(info.expected_improvement, 0.8**5 * GRADIENT @ full, rtol=1e-5)
    np.testing.assert_allclose(new - PARAMS, 0.8**5 * full, rtol=1e-4)
    np.testing.assert_allclose(info.step_norm, 0.8**5 * np.linalg.norm(full), rtol=1e-5)


def test_actual_and_predicted_improvement_are_compared_at_the_same_fraction_bug_2():
    # actual/predicted = 1 - 1.2f reaches 0.5 at f = 0.417: at k = 4 (0.410). Compared with the full step's prediction no f
    # would pass (f(1 - 1.2f) <= 0.21); with a prediction shrunk twice k = 3 would (1 - 1.2f >= 0.5f up to f = 0.59).
    _, info = step(dataclasses.replace(CONFIG, accept_ratio=0.5), bend=2.4)
    assert info.outcome == StepOutcome.ACCEPTED
    assert info.backtracks == 4
    np.testing.assert_allclose(info.improvement / info.expected_improvement, 1 - 1.2 * 0.8**4, rtol=1e-4)


def test_a_step_accepted_at_the_very_last_backtrack_is_kept_bug_4():
    new, info = step(dataclasses.replace(CONFIG, accept_ratio=0.5, max_backtracks=4), bend=2.4)
    assert bool(info.accepted)
    np.testing.assert_allclose(new - PARAMS, 0.8**4 * natural_step(), rtol=1e-4)


REJECTIONS = {
    "zero gradient": (StepOutcome.ZERO_GRADIENT, {"scale": 0.0}),
    "negative curvature": (StepOutcome.NEGATIVE_CURVATURE, {"curvature": -10 * np.eye(N)}),
    "no improvement": (StepOutcome.NO_IMPROVEMENT, {"bend": 1e6}),
    "kl just above": (StepOutcome.KL_TOO_LARGE, {"kl_offset": CONFIG.max_kl * 1.0001}),
    "kl at 1.4 δ (bug 12)": (StepOutcome.KL_TOO_LARGE, {"kl_offset": CONFIG.max_kl * 1.4}),
    "kl infinite": (StepOutcome.NOT_FINITE, {"kl_offset": np.inf}),
    "kl nan": (StepOutcome.NOT_FINITE, {"kl_scale": np.nan}),
    "gradient nan": (StepOutcome.NOT_FINITE, {"scale": np.nan}),
    "gradient infinite": (StepOutcome.NOT_FINITE, {"scale": np.inf}),
    "curvature nan": (StepOutcome.NOT_FINITE, {"curvature": np.full((N, N), np.nan)}),
    "parameters nan": (StepOutcome.NOT_FINITE, {"params": np.array([0.1, np.nan, 2.0, -0.0])}),
    "parameters infinite": (StepOutcome.NOT_FINITE, {"params": np.array([0.1, 1.0, -np.inf, -0.0])}),
}


@pytest.mark.parametrize("case", REJECTIONS)
def test_a_rejected_step_returns_the_parameters_bit_for_bit_and_says_why_bugs_5_11(case):
    outcome, change = REJECTIONS[case]
    change = {name: np.float32(value) for name, value in change.items()}
    new, info = step(CONFIG, **change)
    assert StepOutcome(int(info.outcome)) == outcome
    assert same_bits(new, np.asarray(change.get("params", PARAMS), np.float32))
    assert not bool(info.accepted)
    assert (info.improvement, info.constraint, info.step_fraction, info.step_norm) == (0, 0, 0, 0)


def test_a_step_that_overflows_a_parameter_is_not_taken_even_if_objective_and_kl_are_finite():
    params = jnp.float32(3.2e38)
    config = StepConfig(max_kl=1e38, damping=0.0, max_backtracks=0)  # a step of 4.5e37
    new, info = trust_region_step(
        lambda p: jnp.minimum(p * 1e-37, 40.0), lambda p: jnp.zeros(()), lambda v: 1e-37 * v, params, config
    )
    assert info.outcome == StepOutcome.NOT_FINITE
    assert same_bits(new, params)
    _, shorter = trust_region_step(
        lambda p: jnp.minimum(p * 1e-37, 40.0), lambda p: jnp.zeros(()), lambda v: 1e-37 * v, params / 2, config
    )
    assert bool(shorter.accepted)


def test_curvature_that_turns_negative_later_still_gives_a_checked_step_bug_11():
    # gᵀAg > 0, so the first direction stands; the Hessian is indefinite all the same.
    matrix = np.float32(np.diag([5.0, 5.0, 5.0, -1.0]))
    new, info = step(dataclasses.replace(CONFIG, damping=0.0), curvature=matrix)
    assert info.outcome == StepOutcome.ACCEPTED
    d = np.asarray(new - PARAMS, np.float64)
    assert 0.5 * d @ CURVATURE @ d <= CONFIG.max_kl
    assert GRADIENT @ d > 0


def test_steps_under_vmap_over_the_trust_region_equal_steps_one_by_one():
    sizes = jnp.asarray([1e-4, 0.01, 0.3, 1.0])

    def one(max_kl):
        return step(dataclasses.replace(CONFIG, max_kl=max_kl), kl_offset=1e-3, kl_scale=1.3)

    # The constant in the KL makes the lanes backtrack unequally, and the smallest fail.
    batched, infos = jax.vmap(one)(sizes)
    assert len(set(infos.backtracks.tolist())) > 1
    assert infos.accepted.tolist() == [False, True, True, True]
    for i, size in enumerate(sizes):
        alone, info = one(size)
        np.testing.assert_allclose(batched[i], alone, rtol=1e-5)
        assert infos.backtracks[i] == info.backtracks


def test_steps_under_scan_equal_steps_one_by_one():
    end, infos = jax.lax.scan(lambda p, _: step(CONFIG, params=p), jnp.asarray(PARAMS, "float32"), None, length=3)
    params = jnp.asarray(PARAMS, "float32")
    for _ in range(3):
        params, info = step(CONFIG, params=params)
    np.testing.assert_allclose(end, params, rtol=1e-5)
    np.testing.assert_allclose(infos.improvement[-1], info.improvement, rtol=1e-4)


def test_integer_parameters_are_refused_by_name(own_errors):
    with pytest.raises(TypeError, match=r"params\['n'\]: got dtype int32, allowed: a floating dtype"):
        trust_region_step(lambda p: 0.0, lambda p: 0.0, lambda v: v, {"n": jnp.arange(2)}, CONFIG)


@pytest.mark.parametrize("narrow", ["float16", "float32"])
def test_a_leaf_of_a_narrower_dtype_is_never_accepted_with_an_infinity(x64, narrow):
    """The step of all parameters fits the widest dtype; that of one leaf overflows its own, unseen by objective and KL."""
    params = {"a": jnp.ones(1, narrow), "b": jnp.ones(1, "float64")}
    far = 1e3 * float(jnp.finfo(narrow).max)

    def objective(params):
        return jnp.tanh(params["a"][0].astype("float64")) + params["b"][0]

    config = StepConfig(max_kl=0.5 * far**2, damping=0.0, line_search=False)
    new, info = trust_region_step(objective, lambda _: jnp.zeros(()), lambda v: v, params, config)
    assert info.outcome == StepOutcome.NOT_FINITE
    for name, leaf in params.items():
        assert new[name].dtype == leaf.dtype
        np.testing.assert_array_equal(new[name], leaf)


def transposed(v):
    return {"w": v["w"].T, "b": v["b"]}


def renamed(v):
    return {"W": v["w"], "b": v["b"]}


@pytest.mark.parametrize("wrong", [transposed, renamed])
def test_a_vector_of_another_structure_is_refused_by_name(wrong):
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}
    pattern = r"^the result of matvec: got PyTreeDef\(.*\) of shapes .*, allowed: PyTreeDef\(.*, as in params"
    with pytest.raises(ValueError, match=pattern):
        trust_region_step(lambda p: jnp.sum(p["w"]), lambda p: jnp.sum(p["w"] ** 2), wrong, params, CONFIG)


# --- shaped damping -------------------------------------------------------------------------------------

SHAPED = dataclasses.replace(CONFIG, damping_shape="gradient", gradient_decay=0.9)
AVERAGE = np.array([4.0, 0.25, 0.0, 1e-6])


@jax.jit
def shaped_step(config, average, gradient=GRADIENT, curvature=CURVATURE):
    """Step from zero on the objective gᵀp under the KL ½pᵀFp, with such an average of squared gradients before."""
    gradient, curvature = (jnp.asarray(each, jnp.result_type(float)) for each in (gradient, curvature))
    average = None if average is None else split(jnp.asarray(average, gradient.dtype))
    new, state, info = stateful_trust_region_step(
        lambda p: gradient @ join(p),
        lambda p: 0.5 * join(p) @ curvature @ join(p),
        lambda v: split(curvature @ join(v)),
        split(jnp.zeros(N)),
        TrustRegionState(average),
        config,
    )
    return join(new), None if average is None else join(state.squared_gradient), info


def shape(average):
    """D, by its definition."""
    return np.sqrt(average) / np.sqrt(average).mean() + 1e-4


@pytest.mark.parametrize("damping", [1e-3, 0.5, 3.0])
def test_shaped_damping_solves_the_system_that_it_names(x64, damping):
    new, average, info = shaped_step(dataclasses.replace(SHAPED, damping=damping), AVERAGE)
    expected = 0.9 * AVERAGE + 0.1 * GRADIENT**2
    np.testing.assert_allclose(average, expected, rtol=1e-12)
    np.testing.assert_allclose(new, natural_step(damping=damping, shape=shape(expected)), rtol=1e-6)
    assert info.cg_residual < 1e-9


def test_little_shaped_damping_leaves_the_natural_gradient_and_much_of_it_is_adams_direction(x64):
    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    average = 0.9 * AVERAGE + 0.1 * GRADIENT**2
    for damping, direction in ((1e-7, np.linalg.solve(CURVATURE, GRADIENT)), (1e7, GRADIENT / np.sqrt(average))):
        new, _, info = shaped_step(dataclasses.replace(SHAPED, damping=damping), AVERAGE)
        assert cosine(new, direction) > 1 - 1e-6
        assert 0 < info.constraint <= CONFIG.max_kl
    equal, _, _ = shaped_step(SHAPED, GRADIENT**2 / GRADIENT**2, gradient=np.ones(N))
    plain, _, _ = shaped_step(dataclasses.replace(CONFIG, damping=CONFIG.damping * (1 + 1e-4)), None, gradient=np.ones(N))
    np.testing.assert_allclose(equal, plain, rtol=1e-9)


@pytest.mark.parametrize("unit", [0.01, 3.0])
def test_other_units_of_all_parameters_are_undone_by_the_square_of_the_unit_in_the_damping(x64, unit):
    """In p = unit·q the gradient is unit·g, F is unit²·F and D stays: so λ takes the place of unit²·λ."""
    new, _, _ = shaped_step(SHAPED, AVERAGE)
    other = dataclasses.replace(SHAPED, damping=SHAPED.damping * unit**2)
    moved, _, _ = shaped_step(other, unit**2 * AVERAGE, gradient=unit * GRADIENT, curvature=unit**2 * CURVATURE)
    np.testing.assert_allclose(unit * moved, new, rtol=1e-8)


def test_the_shape_does_not_depend_on_the_scale_of_the_gradients():
    reference, _, _ = shaped_step(SHAPED, AVERAGE)
    for exponent in (-40, 40):
        scale = np.float32(2.0) ** exponent
        new, _, _ = shaped_step(SHAPED, scale**2 * np.float32(AVERAGE), gradient=scale * np.float32(GRADIENT))
        np.testing.assert_allclose(new, reference, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_gradient_that_cannot_be_squared_leaves_the_average_as_it_was(bad):
    _, average, info = shaped_step(SHAPED, AVERAGE, gradient=np.float32(GRADIENT) * np.float32(bad))
    np.testing.assert_array_equal(average, np.float32(AVERAGE))
    assert bool(info.accepted) == np.isfinite(bad)


def test_without_any_gradient_so_far_the_shape_is_the_identity():
    new, average, info = shaped_step(SHAPED, np.zeros(N), gradient=1e-30 * GRADIENT)
    np.testing.assert_array_equal(average, 0)
    assert info.accepted
    np.testing.assert_allclose(new, natural_step(), rtol=1e-3)
    _, average, info = shaped_step(SHAPED, AVERAGE, gradient=0 * GRADIENT)
    assert info.outcome == StepOutcome.ZERO_GRADIENT
    np.testing.assert_allclose(average, 0.9 * AVERAGE, rtol=1e-6)


def test_shaped_damping_without_a_state_is_refused_and_so_are_states_of_others():
    params = split(jnp.zeros(N))
    functions = (lambda p: jnp.sum(p["b"]), lambda p: jnp.sum(p["b"] ** 2), lambda v: v)
    with pytest.raises(ConfigError, match='damping_shape: got \'gradient\', allowed: "identity"; "gradient" needs a state'):
        trust_region_step(*functions, params, SHAPED)
    plain, shaped = (init_trust_region_state(params, config) for config in (CONFIG, SHAPED))
    for state, config in ((plain, SHAPED), (shaped, CONFIG)):
        with pytest.raises(
            ValueError,
            match=r"state.squared_gradient: got (None|an average), allowed: the result of init_trust_region_state for this",
        ):
            stateful_trust_region_step(*functions, params, state, config)
    other = init_trust_region_state({**params, "b": jnp.zeros(7)}, SHAPED)
    with pytest.raises(ValueError, match=r"state.squared_gradient: got arrays unlike params"):
        stateful_trust_region_step(*functions, params, other, SHAPED)


def test_a_gradient_that_only_a_wide_leaf_could_square_does_not_poison_the_average(x64):
    params = {"narrow": jnp.zeros(2, "float32"), "wide": jnp.zeros(2, "float64")}

    def moved(state, scale):
        def objective(p):
            return scale * (jnp.sum(p["narrow"]).astype("float64") + jnp.sum(p["wide"]))

        def kl(p):
            return 0.5 * (jnp.sum(p["narrow"].astype("float64") ** 2) + jnp.sum(p["wide"] ** 2))

        _, state, info = stateful_trust_region_step(objective, kl, lambda v: v, params, state, SHAPED)
        return state, bool(info.accepted)

    state, huge = moved(init_trust_region_state(params, SHAPED), 1e25)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(state))
    _, after = moved(state, 1.0)
    assert (huge, after) == (True, True)


def test_the_shaped_step_can_be_differentiated_where_a_parameter_has_no_gradient(x64):
    config = dataclasses.replace(SHAPED, line_search=False, cg_iterations=30, cg_tolerance=1e-28)
    dead = np.array([1.0, -2.0, 0.0, 3.0])

    def moved(max_kl, slope):
        gradient = jnp.asarray(dead) + slope * jnp.asarray([1.0, 0.0, 0.0, 0.0])
        return shaped_step(dataclasses.replace(config, max_kl=max_kl), np.zeros(N), gradient=gradient)[0].sum()

    at, h = (0.02, 0.1), 1e-6
    for i, derivative in enumerate(jax.grad(moved, argnums=(0, 1))(*at)):
        ends = [moved(*(x + sign * h * (i == j) for j, x in enumerate(at))) for sign in (1, -1)]
        np.testing.assert_allclose(derivative, (ends[0] - ends[1]) / (2 * h), rtol=1e-5)


def test_shaped_damping_of_low_precision_parameters_keeps_the_bound():
    params = split(jnp.zeros(N, "bfloat16"))
    state = init_trust_region_state(params, SHAPED)
    gradient, curvature = jnp.float32(GRADIENT), jnp.float32(CURVATURE)
    new, state, info = stateful_trust_region_step(
        lambda p: gradient @ join(p).astype("float32"),
        lambda p: 0.5 * join(p).astype("float32") @ curvature @ join(p).astype("float32"),
        lambda v: split((curvature @ join(v).astype("float32")).astype("bfloat16")),
        params,
        state,
        SHAPED,
    )
    assert info.accepted
    assert 0.5 * CONFIG.max_kl < info.constraint <= CONFIG.max_kl
    assert {leaf.dtype.name for leaf in jax.tree.leaves(new)} == {"bfloat16"}
    np.testing.assert_allclose(join(state.squared_gradient), 0.1 * GRADIENT**2, rtol=1e-2)
