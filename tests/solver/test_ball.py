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


@pytest.mark.parametrize("number", [1, 2, 3])
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
