"""Masks, and how discrete distributions contain one another."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.distribution_problems import as_float64, draw_allowed, draw_pair, everything, many_samples, scalars, textbook_kl
from trpo_jax.policy.distributions import Bernoulli, Categorical, Joint, MultiCategorical

NUM_SAMPLES = 20_000
ALLOWED = np.array([True, False, True, True, False])  # of one choice of five, or of two and three


def by_mask(logits, allowed):
    return Categorical(logits, jnp.broadcast_to(allowed, logits.shape))


def by_minus_inf(logits, allowed):
    return Categorical(jnp.where(allowed[None], logits, -jnp.inf))


def several_by_mask(logits, allowed):
    return MultiCategorical(logits, (2, 3), jnp.broadcast_to(allowed, logits.shape))


def several_by_minus_inf(logits, allowed):
    return MultiCategorical(jnp.where(allowed[None], logits, -jnp.inf), (2, 3))


MASKED = {each.__name__: each for each in (by_mask, by_minus_inf, several_by_mask, several_by_minus_inf)}
every_way_to_mask = pytest.mark.parametrize("way", MASKED)


def some_logits(dtype="float32", seed=0):
    """Logits [5, 5] of which the masked ones are the largest."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(5, 5)) + 4.0 * ~ALLOWED, dtype)


def without_the_masked(way, logits):
    """The distribution over the allowed actions only, numbered anew."""
    kept = logits[:, ALLOWED]
    return MultiCategorical(kept, (1, 2)) if way.startswith("several") else Categorical(kept)


@every_way_to_mask
def test_a_masked_distribution_is_the_distribution_over_the_allowed_actions(way, dtype):
    p, q = (MASKED[way](some_logits(dtype, seed), ALLOWED) for seed in (0, 1))
    small_p, small_q = (without_the_masked(way, some_logits(dtype, seed)) for seed in (0, 1))
    # Allowed are 0, 2 and 3 of the five; or 0 of the two, and 0 and 1 of the three.
    actions = [(0, 0), (2, 1), (3, 2)] if way.startswith("by") else [((0, 0), (0, 0)), ((0, 1), (0, 1))]
    for action, small_action in actions:
        action, small_action = (jnp.asarray([x] * 5) for x in (action, small_action))
        found, expected = scalars(p, q, action), scalars(small_p, small_q, small_action)
        for quantity, value in expected.items():
            np.testing.assert_allclose(found[quantity], value, rtol=10 * float(jnp.finfo(dtype).eps), atol=1e-7)


@every_way_to_mask
def test_a_masked_action_is_never_drawn_nor_the_mode_and_has_no_probability(way):
    p = MASKED[way](some_logits(), ALLOWED)
    sizes = p.sizes if isinstance(p, MultiCategorical) else (5,)
    samples = np.asarray(many_samples(p, jax.random.split(jax.random.key(0), NUM_SAMPLES))).reshape(NUM_SAMPLES, 5, -1)
    mode = np.asarray(p.mode()).reshape(5, -1)
    for i, allowed in enumerate(np.split(ALLOWED, np.cumsum(sizes)[:-1])):
        assert set(np.unique(samples[..., i])) == set(np.flatnonzero(allowed))
        assert allowed[mode[:, i]].all()
    for masked in (1, 4) if way.startswith("by") else ((1, 0), (0, 2)):
        log_prob = p.log_prob(jnp.asarray([masked] * 5))
        assert (log_prob < -1e30).all()
        assert np.isfinite(log_prob).all()


@every_way_to_mask
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1.0, 30.0, 1e4]))
@settings(max_examples=15)
def test_masked_logits_have_gradient_exactly_zero_and_all_gradients_are_finite(way, seed, scale):
    logits = scale * np.random.default_rng(seed).normal(size=(2, 5, 5)).astype("float32")
    p, q = (MASKED[way](jnp.asarray(each), ALLOWED) for each in logits)
    for gradient in itertools.chain.from_iterable(everything(p, q, p.mode())[k] for k in ("kl_gradients", "own_gradients")):
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[:, ~ALLOWED], np.zeros((5, 2)))
        if scale == 1.0:
            assert (gradient[:, ALLOWED][:, 1:] != 0).all()


def test_masks_by_minus_inf_and_by_mask_are_one_and_the_same():
    allowed = draw_allowed("masked_categorical", 0)
    logits = [some_logits(seed=seed) for seed in (0, 1)]
    masked = [Categorical(each, allowed) for each in logits]
    infinite = [Categorical(jnp.where(allowed, each, -jnp.inf)) for each in logits]
    action = masked[0].mode()
    found, expected = everything(*infinite, action), everything(*masked, action)
    for value, like in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(value, like, rtol=1e-6, atol=1e-7)
    key = jax.random.key(1)
    np.testing.assert_array_equal(infinite[0].sample(key), masked[0].sample(key))


@pytest.mark.parametrize("distance", [0.1, 3.0, 100.0])
def test_the_kl_to_a_distribution_that_allows_more_counts_what_only_the_other_allows(dtype, distance):
    p = by_mask(some_logits(dtype, 0), ALLOWED)
    q = Categorical(p.logits + distance * some_logits(dtype, 1))
    found = everything(p, q, p.mode())
    np.testing.assert_allclose(found["kl"], textbook_kl(p, q), rtol=1e-6)
    gradient = found["kl_gradients"][1]
    of_p, of_q = (np.asarray(jax.nn.softmax(each._allowed_logits())) for each in (p, q))
    np.testing.assert_allclose(gradient, of_q - of_p, atol=1e-5)  # the gradient of Σ p log p/q in the logits of q
    forbidding = q.kl(p)  # mathematically infinite: p excludes what q may do
    assert (forbidding > 1e6).all()
    assert np.isfinite(forbidding).all()


@pytest.mark.parametrize(
    "p",
    [
        by_mask(some_logits(), np.zeros(5, bool)),
        Categorical(jnp.full((5, 5), -jnp.inf)),
        Categorical(jnp.full((5, 5), 1e9)),  # in which noise of size one is lost
    ],
    ids=["all masked", "all minus infinite", "large together"],
)
def test_where_no_action_is_allowed_or_logits_are_large_together_all_are_equally_likely(p):
    found = everything(p, p, jnp.asarray([0, 1, 2, 3, 4]))
    np.testing.assert_allclose(found["entropy"], np.full(5, np.log(5)), rtol=1e-6)
    np.testing.assert_allclose(found["log_prob"], np.full(5, -np.log(5)), rtol=1e-6)
    for leaf in (found["kl"], *found["kl_gradients"]):
        np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))
    assert all(np.isfinite(leaf).all() for leaf in found["own_gradients"])
    samples = many_samples(p, jax.random.split(jax.random.key(3), NUM_SAMPLES))
    assert scipy.stats.chisquare(np.bincount(np.ravel(samples), minlength=5)).pvalue > 1e-3


@pytest.mark.parametrize("name", ["categorical", "masked_categorical", "multi_categorical", "bernoulli"])
def test_each_action_is_drawn_as_often_as_its_probability_says(name):
    p, _ = draw_pair(name, "float32", 2)
    sizes = getattr(p, "sizes", (p.logits.shape[-1],) if name.endswith("categorical") else (2,) * p.logits.shape[-1])
    samples = np.asarray(many_samples(p, jax.random.split(jax.random.key(2), NUM_SAMPLES))).reshape(NUM_SAMPLES, 5, len(sizes))
    for actions in itertools.product(*map(range, sizes)):
        action = np.asarray(actions)
        log_prob = p.log_prob(jnp.asarray([actions] * 5).reshape(p.mode().shape))
        expected = np.exp(log_prob)
        frequency = (samples == action).all(-1).mean(0)
        assert (np.abs(frequency - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / NUM_SAMPLES)).all()


def test_a_multi_categorical_is_a_joint_of_categoricals():
    several = draw_pair("multi_categorical", "float32", 4)
    halves = [[jnp.split(leaf, [2], axis=-1) for leaf in (each.logits, each.mask)] for each in several]
    separate = [Joint(tuple(itertools.starmap(Categorical, zip(*each, strict=True)))) for each in halves]
    action = several[0].sample(jax.random.key(0))
    drawn = tuple(action[..., i] for i in range(2))
    np.testing.assert_array_equal(np.stack(separate[0].mode(), axis=-1), several[0].mode())
    found, expected = scalars(*several, action), scalars(*separate, drawn)
    for quantity, value in expected.items():
        np.testing.assert_allclose(found[quantity], value, rtol=1e-6)


@pytest.mark.parametrize("sizes", [[2, 3], np.asarray([2, 3]), (np.int64(2), np.int32(3))])
def test_sizes_are_integers_of_any_kind_in_any_sequence(sizes):
    distribution = MultiCategorical(jnp.zeros(5), sizes)
    assert distribution.sizes == (2, 3)
    np.testing.assert_allclose(distribution.log_prob(distribution.mode()), -np.log(6), rtol=1e-6)


@pytest.mark.parametrize("sizes", [(), (2, 0)])
def test_a_choice_among_nothing_is_refused(sizes):
    with pytest.raises(ValueError, match=r"^sizes: got .*, allowed: integers >= 1, at least one"):
        MultiCategorical(jnp.zeros(2), sizes)


def test_many_choices_of_different_sizes_are_one_small_program():
    def sizes_of(count):
        return tuple(2 + i % 7 for i in range(count))

    def logits_of(count):
        return jax.random.normal(jax.random.key(0), (3, sum(sizes_of(count))))

    def use(logits, sizes):
        p, q = MultiCategorical(logits, sizes), MultiCategorical(2 * logits, sizes)
        action = p.sample(jax.random.key(1))
        return action, p.log_prob(action), p.kl(q), p.entropy(), p.mode()

    programs = [str(jax.make_jaxpr(use, static_argnums=1)(logits_of(count), sizes_of(count))) for count in (10, 1792)]
    assert programs[1].count("\n") < 1.1 * programs[0].count("\n")
    sizes, logits = sizes_of(1792), logits_of(1792)
    action, log_prob, kl, entropy, mode = jax.jit(use, static_argnums=1)(logits, sizes)
    assert (np.asarray(action) < sizes).all()
    assert (np.asarray(mode) < sizes).all()
    assert np.isfinite([log_prob, kl, entropy]).all()
    log_p = [scipy.special.log_softmax(part, axis=-1) for part in np.split(np.float64(logits), np.cumsum(sizes)[:-1], axis=-1)]
    np.testing.assert_allclose(entropy, -sum(np.sum(np.exp(each) * each, axis=-1) for each in log_p), rtol=1e-5)


def test_where_no_action_of_a_choice_is_allowed_all_of_its_own_are_alike():
    p = MultiCategorical(jnp.asarray([[1.0, 2.0, 3.0, 4.0, 5.0]]), (2, 3), jnp.asarray([[False, False, True, False, True]]))
    drawn = np.asarray(many_samples(p, jax.random.split(jax.random.key(0), NUM_SAMPLES)))[:, 0]
    assert set(drawn[:, 0]) == {0, 1}
    assert set(drawn[:, 1]) <= {0, 2}
    np.testing.assert_allclose(drawn[:, 0].mean(), 0.5, atol=0.05)


def test_a_bernoulli_is_a_categorical_of_two_for_each_bit_and_equals_scipy(x64):
    p, q = draw_pair("bernoulli", "float64", 5)
    choices = [Categorical(jnp.stack([jnp.full_like(each.logits, 7.0), each.logits + 7.0], axis=-1)) for each in (p, q)]
    action = q.mode()
    found, expected = scalars(p, q, action), scalars(*choices, action)
    reference = scipy.stats.bernoulli(1 / (1 + np.exp(-as_float64(p).logits)))
    for quantity, value in expected.items():
        np.testing.assert_allclose(found[quantity], value.sum(-1), rtol=1e-12)
    np.testing.assert_allclose(found["entropy"], reference.entropy().sum(-1), rtol=1e-12)
    np.testing.assert_allclose(found["log_prob"], reference.logpmf(action).sum(-1), rtol=1e-12)
    np.testing.assert_array_equal(p.log_prob(action.astype(bool)), p.log_prob(action))
    np.testing.assert_array_equal(p.mode(), p.logits > 0)
    np.testing.assert_array_equal(Bernoulli(jnp.zeros((1, 3))).mode(), np.zeros((1, 3)))


@pytest.mark.parametrize("width", [4, 6])
def test_logits_that_are_not_as_many_as_the_sizes_say_are_an_error_that_names_them(width):
    p = MultiCategorical(jnp.zeros((5, width)), (2, 3))
    for use in (p.mode, p.entropy, lambda: p.sample(jax.random.key(0)), lambda: p.log_prob(jnp.zeros((5, 2), int))):
        with pytest.raises(ValueError, match=rf"logits: got {width} in the last axis, allowed: 5, the sum of sizes"):
            use()
