"""Conjugate gradients against numpy's direct solver and a textbook loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trpo_jax.solver.conjugate_gradient import conjugate_gradient

N = 6
CASE = {
    "seed": st.integers(0, 2**32 - 1),
    "condition": st.floats(1, 1e4),
    "scale_a": st.sampled_from([1e-6, 1.0, 1e6]),
    "scale_b": st.sampled_from([1e-9, 1.0, 1e9]),
}


def split(flat):
    return {"w": flat[:4].reshape(2, 2), "b": (flat[4:],)}


def join(tree):
    return jnp.concatenate([tree["w"].reshape(-1), tree["b"][0]])


@functools.partial(jax.jit, static_argnames="max_iterations")
def solve(matrix, b, x0=None, inverse=None, tolerance=0.0, *, max_iterations=40):
    """Solve on a pytree of two leaves; `inverse` is the preconditioner's matrix."""

    def product(m):
        return None if m is None else lambda v: split(m.astype(v["w"].dtype) @ join(v))

    start = None if x0 is None else split(x0)
    x, info = conjugate_gradient(
        product(matrix), split(b), max_iterations=max_iterations, tolerance=tolerance, x0=start, preconditioner=product(inverse)
    )
    return join(x), info


def random_system(seed, condition, scale_a=1.0, scale_b=1.0):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(N, N)))
    eigenvalues = np.concatenate([[1.0, condition], rng.uniform(1, condition, N - 2)])
    return scale_a * (basis * eigenvalues) @ basis.T, scale_b * rng.normal(size=N)


def textbook(matrix, b, iterations):
    """Hestenes and Stiefel's method, in numpy, with a copy wherever a buffer could be shared."""
    x, residual = np.zeros_like(b), b.copy()
    direction = residual.copy()
    for _ in range(iterations):
        alpha = residual @ residual / (direction @ matrix @ direction)
        x = x + alpha * direction
        new_residual = residual - alpha * (matrix @ direction)
        direction = new_residual + (new_residual @ new_residual) / (residual @ residual) * direction
        residual = new_residual
    return x


@given(**CASE)
@settings(max_examples=60)
def test_the_solution_equals_numpy_for_any_positive_definite_matrix(x64, seed, condition, scale_a, scale_b):
    matrix, b = random_system(seed, condition, scale_a, scale_b)
    expected = np.linalg.solve(matrix, b)
    x, info = solve(matrix, b, tolerance=1e-24)
    np.testing.assert_allclose(x, expected, atol=1e-12 * condition * np.abs(expected).max())
    assert not info.negative_curvature
    np.testing.assert_allclose(info.residual_norm, np.linalg.norm(b - matrix @ x), atol=1e-10 * np.linalg.norm(b))


@given(**CASE)
@settings(max_examples=30)
def test_it_stops_at_the_first_iterate_whose_relative_squared_residual_is_small_enough(x64, seed, condition, scale_a, scale_b):
    matrix, b = random_system(seed, condition, scale_a, scale_b)
    x, info = solve(matrix, b, tolerance=1e-4)

    def relative(x):
        return np.sum((b - matrix @ x) ** 2) / np.sum(b**2)

    assert relative(x) <= 1e-4 * (1 + 1e-6)
    assert relative(textbook(matrix, b, int(info.iterations) - 1)) > 1e-4 * (1 - 1e-3)


def test_every_iterate_equals_the_textbook_and_no_buffer_is_shared_bug_6(x64):
    matrix, b = random_system(3, 50.0)
    x0 = jnp.ones(N)
    given_b, given_x0 = jnp.asarray(b), x0 + 0
    for iterations in (1, 2, 3, N):
        x, info = solve(matrix, given_b, max_iterations=iterations)
        np.testing.assert_allclose(x, textbook(matrix, b, iterations), rtol=1e-8)
        assert info.iterations == iterations
    solve(matrix, given_b, given_x0)
    np.testing.assert_array_equal(given_b, b)
    np.testing.assert_array_equal(given_x0, x0)


def test_float32_reaches_float32_accuracy():
    matrix, b = random_system(0, 10.0)
    x, info = solve(matrix.astype("float32"), jnp.asarray(b, "float32"), tolerance=1e-10)
    assert (x.dtype, info.residual_norm.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=1e-4)


def test_short_floats_are_solved_in_float32():
    # The matrix holds numbers that bfloat16 represents, so only the products round: to 2⁻⁸.
    matrix, b = np.diag([1.0, 2, 4, 8, 1, 2]), np.array([1.0, -2, 3, 0.5, 8, -4])
    x, _ = solve(jnp.asarray(matrix, "float32"), jnp.asarray(b, "bfloat16"), tolerance=1e-6)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, np.linalg.solve(matrix, b), atol=2**-8)


def test_a_start_at_the_solution_is_kept_and_any_other_leads_there(x64):
    matrix, b = random_system(1, 20.0)
    expected = np.linalg.solve(matrix, b)
    x, info = solve(matrix, b, jnp.asarray(expected), tolerance=1e-20)
    np.testing.assert_array_equal(x, expected)
    assert info.iterations == 0
    x, info = solve(matrix, b, jnp.linspace(-5.0, 5.0, N), tolerance=1e-20)
    np.testing.assert_allclose(x, expected, rtol=1e-8)
    assert info.iterations > 0


def test_a_good_preconditioner_saves_iterations_and_leaves_the_solution(x64):
    matrix, b = random_system(2, 10.0)
    scaling = np.diag(10.0 ** np.arange(N))
    matrix, expected = scaling @ matrix @ scaling, np.linalg.solve(scaling @ matrix @ scaling, b)
    _, plain = solve(matrix, b, tolerance=1e-16)
    jacobi = np.diag(1 / np.diag(matrix))
    x, info = solve(matrix, b, None, jacobi, tolerance=1e-16)
    np.testing.assert_allclose(x, expected, rtol=1e-5)
    assert info.iterations < plain.iterations
    _, info = solve(matrix, b, None, np.linalg.inv(matrix), tolerance=1e-10)
    assert info.iterations == 1


def test_as_many_iterations_as_there_are_distinct_eigenvalues_are_enough(x64):
    b = np.linspace(1.0, 2.0, N)
    x, info = solve(np.diag([2.0, 2, 2, 5, 5, 5]), b, tolerance=1e-20)
    assert info.iterations == 2
    np.testing.assert_allclose(x, b / [2, 2, 2, 5, 5, 5], rtol=1e-12)


def test_zero_has_the_solution_zero_at_no_cost(x64):
    x, info = solve(np.eye(N), np.zeros(N), tolerance=1e-10)
    np.testing.assert_array_equal(x, np.zeros(N))
    assert (info.iterations, info.residual_norm, bool(info.negative_curvature)) == (0, 0, False)


@pytest.mark.parametrize(
    ("eigenvalues", "iterations", "is_zero"),
    [
        ([-1.0, -2, -3, -4, -5, -6], 1, True),
        ([0.0, 0, 0, 0, 0, 0], 1, True),
        ([4.0, 4, 4, 4, 4, -1], 2, False),  # bᵀAb > 0: a first step, then the negative direction shows
    ],
)
def test_negative_curvature_is_reported_and_keeps_the_iterate_before_it_bug_11(x64, eigenvalues, iterations, is_zero):
    b = np.ones(N)
    matrix = np.diag(eigenvalues)
    x, info = solve(matrix, b)
    assert bool(info.negative_curvature)
    assert info.iterations == iterations
    np.testing.assert_allclose(x, np.zeros(N) if is_zero else b * (b @ b) / (b @ matrix @ b), rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["matrix", "b"])
def test_what_is_not_finite_does_not_raise_and_cannot_be_taken_for_a_solution(x64, bad, where):
    matrix, b = random_system(0, 10.0)
    (matrix if where == "matrix" else b)[..., 0] = bad
    x, info = solve(matrix, b, tolerance=1e-10)
    assert not (np.isfinite(x).all() and np.isfinite(info.residual_norm))


def test_a_batch_of_systems_equals_one_after_another(x64):
    systems = [random_system(seed, condition) for seed, condition in ((0, 1.5), (1, 100.0), (2, 3.0))]
    matrices, vectors = (np.stack(part) for part in zip(*systems, strict=True))
    xs, infos = jax.vmap(lambda m, b: solve(m, b, tolerance=1e-12))(matrices, vectors)
    assert len(set(infos.iterations.tolist())) > 1  # else the batch would stop at once, and prove nothing
    for i, (matrix, b) in enumerate(systems):
        x, info = solve(matrix, b, tolerance=1e-12)
        np.testing.assert_allclose(xs[i], x, rtol=1e-10)
        assert infos.iterations[i] == info.iterations


def test_what_cannot_be_used_is_refused_by_name(own_errors):
    with pytest.raises(ValueError, match="max_iterations: got 0, allowed: an integer >= 1"):
        conjugate_gradient(lambda v: v, jnp.ones(2), max_iterations=0)
    with pytest.raises(TypeError, match=r"b\['n'\]: got dtype int32, allowed: a floating dtype"):
        conjugate_gradient(lambda v: v, {"n": jnp.arange(2)})


@pytest.mark.parametrize("scale", [1e-36, 1e-25, 1e25, 1e37, 1e38])
def test_the_solution_scales_with_b_where_its_squared_norm_leaves_float32(scale):
    matrix, b = random_system(1, 20.0)
    matrix, b = jnp.asarray(matrix, jnp.float32), jnp.asarray(b, jnp.float32)
    matvec = lambda v: matrix @ v  # noqa: E731
    expected, _ = conjugate_gradient(matvec, b)
    x, info = conjugate_gradient(matvec, scale * b)
    np.testing.assert_allclose(np.asarray(x) / np.float32(scale), expected, rtol=2e-2)
    assert jnp.isfinite(info.residual_norm)


def test_the_solution_is_differentiable_in_b_and_in_the_matrix(x64):
    matrix, b = (jnp.asarray(x) for x in random_system(3, 50.0))
    matrix, weights = (matrix + matrix.T) / 2, jnp.cos(jnp.arange(float(N)))

    def by_iteration(matrix, b):
        return weights @ solve(matrix, b, max_iterations=50)[0]

    def directly(matrix, b):
        return weights @ jnp.linalg.solve((matrix + matrix.T) / 2, b)

    gradients, expected = (jax.jit(jax.grad(fn, argnums=(0, 1)))(matrix, b) for fn in (by_iteration, directly))
    # Of a symmetric matrix only the symmetric part of the gradient is defined.
    np.testing.assert_allclose((gradients[0] + gradients[0].T) / 2, expected[0], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(gradients[1], expected[1], rtol=1e-6)
    jvp = jax.jvp(by_iteration, (matrix, b), (jnp.zeros_like(matrix), weights))[1]
    np.testing.assert_allclose(jvp, expected[1] @ weights, rtol=1e-6)
