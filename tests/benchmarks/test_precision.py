"""What the figures of the precision benchmark rest on."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

import precision


def dense_fisher(problem):
    """Return the mean of JᵀMJ, with the Jacobian of (mean, log_std) and the metric diag(1, 2) at log_std 0."""
    params, unravel = jax.flatten_util.ravel_pytree((problem.weights, problem.log_std))

    def outputs(params):
        distribution = precision.policy(unravel(params), problem.observation, None)
        return jnp.concatenate([distribution.mean, distribution.log_std], -1)

    jacobian = np.asarray(jax.jacobian(outputs)(params))
    metric = np.repeat([1.0, 2.0], precision.ACTION_SIZE)
    return np.einsum("bip,i,biq->pq", jacobian, metric, jacobian) / len(jacobian)


def test_the_exact_solution_is_that_of_the_dense_system(x64):
    problem = precision.make_problem(64, 4)
    gradient, _ = jax.flatten_util.ravel_pytree(problem.gradient)
    solution = precision.solve(problem, 0.1, iterations=1000, tolerance=1e-24)
    expected = np.linalg.solve(dense_fisher(problem) + 0.1 * np.eye(len(gradient)), gradient)
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(solution)[0], expected, rtol=1e-8, atol=1e-12)
    residual, cosine = precision.judge(problem, 0.1, solution, solution)
    assert residual < 1e-10
    np.testing.assert_allclose(cosine, 1.0)


def test_a_default_precision_does_not_reach_the_conjugate_gradients():
    rows = precision.measure(samples=64, hidden_size=4, rounds=1)
    assert [row["matrix products"] for row in rows] == list(precision.PRECISIONS) * 2
    for full, default, _ in (rows[:3], rows[3:]):
        assert (full["residual"], full["cosine"]) == (default["residual"], default["cosine"])
        assert 0 < full["residual"] < 0.1
        assert 0.9 < full["cosine"] <= 1 + 1e-6
