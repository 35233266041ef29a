import jax
import jax.numpy as jnp
import numpy as np

from trpo_jax.policy.normalization import init_normalizer, normalize, update_normalizer


def test_statistics_over_batches_equal_those_of_all_samples_at_once():
    rng = np.random.default_rng(0)
    batches = [rng.normal(3.0, 0.01, (4, 5, 2)), rng.normal(-200.0, 50.0, (1, 7, 2)), rng.normal(0.0, 1.0, (9, 1, 2))]
    state = init_normalizer(jnp.zeros(2))
    for batch in batches:
        state = update_normalizer(state, jnp.asarray(batch, jnp.float32))
    everything = np.concatenate([batch.reshape(-1, 2) for batch in batches])
    assert state.count == len(everything)
    np.testing.assert_allclose(state.mean, everything.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state.std, everything.std(0), rtol=1e-5)


def test_a_large_mean_does_not_cancel_the_variance():
    samples = 1e4 + np.random.default_rng(0).normal(size=(10_000, 1))
    state = init_normalizer(jnp.zeros(1))
    for batch in np.split(samples, 10):
        state = update_normalizer(state, jnp.asarray(batch, jnp.float32))
    np.testing.assert_allclose(state.std, samples.std(), rtol=1e-2)


def test_a_constant_feature_does_not_blow_up_a_small_change():
    state = update_normalizer(init_normalizer(jnp.zeros(1)), jnp.full((100, 1), 0.5))
    assert abs(normalize(state, jnp.asarray([0.501]))[0]) < 2


def test_outliers_are_clipped():
    state = update_normalizer(init_normalizer(jnp.zeros(1)), jnp.asarray([[0.0], [1.0]]))
    np.testing.assert_array_equal(normalize(state, jnp.asarray([[1e6], [-1e6]])), [[10.0], [-10.0]])


def test_dict_observations_are_normalized_leaf_by_leaf():
    observation = {"a": jnp.asarray([[1.0, 2.0], [3.0, 4.0]]), "b": jnp.asarray([5.0, 7.0])}
    state = init_normalizer(jax.tree.map(lambda x: x[0], observation))
    state = update_normalizer(state, observation)
    np.testing.assert_allclose(state.mean["a"], [2.0, 3.0])
    np.testing.assert_allclose(state.mean["b"], 6.0)
    np.testing.assert_allclose(normalize(state, observation)["b"], [-1.0, 1.0], rtol=1e-5)


def test_before_any_update_and_without_a_normalizer_nothing_changes():
    observation = jnp.asarray([0.3, -2.0])
    np.testing.assert_array_equal(normalize(init_normalizer(jnp.zeros(2)), observation), observation)
    assert normalize(None, observation) is observation
