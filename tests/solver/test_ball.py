"""A linear function in a ball with linear limits, against a solver of convex programs."""

import clarabel
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse

from trpo_jax.solver.ball import MOST_LIMITS, maximize_in_ball


def convex_solution(gradient, slopes, excess, curvature, radius):
    """Solve the same problem as a second-order cone program; None if it is infeasible."""
    size, number = gradient.size, excess.size
    root = np.linalg.cholesky(curvature).T  # ‖root y‖² = yᵀGy
    rows = np.vstack([slopes, np.zeros((1, size)), -root])
    bounds = np.concatenate([-excess, [np.sqrt(2 * radius)], np.zeros(size)])
    cones = [clarabel.NonnegativeConeT(number), clarabel.SecondOrderConeT(size + 1)]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
    empty = sparse.csc_matrix((size, size))
    solution = clarabel.DefaultSolver(empty, -gradient, sparse.csc_matrix(rows), bounds, cones, settings).solve()
    solved = solution.status in (clarabel.SolverStatus.Solved, clarabel.SolverStatus.AlmostSolved)
    return np.array(solution.x) if solved else None


def draw(seed, number):
    """Draw a problem: limits that are far away, near, exceeded a little or a lot."""
    rng = np.random.default_rng([seed, number])
    size = number + 1 + int(rng.integers(0, 3))
    basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
    curvature = (basis * 10 ** rng.uniform(-1, 1, size)) @ basis.T
    gradient, slopes = rng.normal(size=size), rng.normal(size=(number, size)) * 10 ** rng.uniform(-1, 1, (number, 1))
    radius = 10 ** rng.uniform(-3, 0)
    reach = np.sqrt(2 * radius * np.einsum("ki,ij,kj->k", slopes, np.linalg.inv(curvature), slopes))
    return gradient, slopes, rng.uniform(-1.3, 1.2, number) * reach, curvature, radius


@pytest.mark.parametrize("number", [1, 2, 3, 4, MOST_LIMITS])
def test_the_solution_is_that_of_a_convex_solver(x64, number):
    solve = jax.jit(maximize_in_ball)
    kinds = set()
    for seed in range(340):
        problem = draw(seed, number)
        gradient, slopes, excess, curvature, radius = problem
        expected = convex_solution(*problem)
        got = solve(*map(jnp.asarray, problem))
        kinds.add((bool(got.feasible), tuple(np.asarray(got.active).tolist())))
        assert bool(got.feasible) == (expected is not None), seed
        point = np.asarray(got.point)
        assert 0.5 * point @ curvature @ point <= radius * (1 + 1e-6)
        if expected is not None:
            reach = np.sqrt(2 * radius * gradient @ np.linalg.solve(curvature, gradient))
            np.testing.assert_allclose(gradient @ point, gradient @ expected, atol=2e-4 * reach)
            scale = np.sqrt(2 * radius * np.einsum("ki,ij,kj->k", slopes, np.linalg.inv(curvature), slopes))
            assert np.all(excess + slopes @ point <= 2e-4 * scale)
    assert len(kinds) >= 1 + 2 * number  # cases are met: no limit at work, some of them, none that can be kept


@pytest.mark.parametrize("number", [0, MOST_LIMITS + 1])
def test_a_number_of_limits_that_cannot_be_solved_is_refused(number):
    with pytest.raises(ValueError, match=rf"slopes: got {number} limits, allowed: 1 to {MOST_LIMITS}"):
        maximize_in_ball(jnp.ones(8), jnp.ones((number, 8)), jnp.ones(number), jnp.eye(8), 0.1)


def test_nearly_parallel_limits_are_solved_in_float32():
    """Where their inverse loses most digits; the origin keeps all limits, so each problem has a solution."""
    solve = jax.jit(maximize_in_ball)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        gradient, other = rng.normal(size=3), rng.normal(size=(2, 3))
        slopes = np.array([[1.0], [rng.choice([-1.0, 1.0])]]) * gradient + 10 ** rng.uniform(-4, -1) * other
        excess = -rng.uniform(0, 0.3, 2) * (seed % 4 > 0)
        problem = gradient, slopes, excess, np.diag([1.0, 0.1, 1e-3]), 0.01
        got = solve(*(jnp.asarray(each, jnp.float32) for each in problem))
        assert got.feasible
        reach = np.sqrt(2 * 0.01 * np.einsum("ki,ij,kj->k", slopes, np.linalg.inv(problem[3]), slopes))
        assert np.all(excess + slopes @ np.asarray(got.point) <= 2e-3 * reach)
        gain = gradient @ np.asarray(got.point)
        most = np.sqrt(2 * 0.01 * gradient @ np.linalg.inv(problem[3]) @ gradient)
        assert gain >= gradient @ convex_solution(*problem) - 3e-3 * most


def test_units_do_not_matter_within_the_range_of_floats():
    problem = gradient, slopes, excess, curvature, radius = [jnp.asarray(each, jnp.float32) for each in draw(5, 2)]
    alike = maximize_in_ball(*problem)
    for size in (1e-18, 1e18):
        unit = jnp.asarray([1.0] + [size] * (len(gradient) - 1), jnp.float32)  # of all coordinates but the first
        scaled = gradient * unit, slopes * unit[None, :], excess, curvature * unit[:, None] * unit[None, :], radius
        np.testing.assert_allclose(maximize_in_ball(*scaled).point * unit, alike.point, rtol=1e-4, atol=1e-5)
        scaled = size * gradient, size * slopes, size * excess, curvature, radius
        np.testing.assert_allclose(maximize_in_ball(*scaled).point, alike.point, rtol=1e-4, atol=1e-5)


def test_a_limit_that_no_step_changes_and_an_infinite_one_are_none():
    gradient, curvature = jnp.asarray([1.0, 0.0]), jnp.eye(2)
    slopes = jnp.asarray([[0.0, 0.0], [1.0, 1.0]])
    got = maximize_in_ball(gradient, slopes, jnp.asarray([5.0, -jnp.inf]), curvature, 0.5)
    assert got.feasible & ~got.active.any()
    np.testing.assert_allclose(got.point, [1.0, 0.0], atol=1e-6)


def test_recovery_lowers_all_that_is_exceeded_and_breaks_no_other_limit():
    slopes, curvature = jnp.asarray([[1.0, 0.0], [-0.9, 0.5]]), jnp.eye(2)
    got = maximize_in_ball(jnp.asarray([0.0, 1.0]), slopes, jnp.asarray([10.0, -1e-3]), curvature, 0.5)
    change = slopes @ got.point
    assert not got.feasible
    assert (change[0] < -0.1) & (change[1] <= 1e-3)
    np.testing.assert_allclose(jnp.linalg.norm(got.point), 1.0, rtol=1e-5)
    slopes = jnp.asarray([[1.0, 0.0], [1.0, 0.01]])  # not to where both hold with equality, which is far along the second axis
    got = maximize_in_ball(jnp.asarray([0.0, 1.0]), slopes, jnp.asarray([10.0, 2.0]), curvature, 0.5)
    np.testing.assert_allclose(got.point, [-1.0, 0.0], atol=1e-5)


def test_where_nothing_can_be_gained_the_point_is_the_origin():
    gradient = jnp.asarray([1.0, 2.0])
    got = maximize_in_ball(gradient, gradient[None], jnp.zeros(1), jnp.eye(2), 0.5)
    assert got.feasible
    np.testing.assert_array_equal(got.point, jnp.zeros(2))
