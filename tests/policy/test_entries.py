"""What networks see of dict observations, and masks of actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.errors import ConfigError
from trpo_jax.policy.distributions import Bernoulli, Categorical, DiagonalGaussian, Joint, MultiCategorical
from trpo_jax.policy.entries import OfEntries, masked
from trpo_jax.policy.networks import PolicyNetwork
from trpo_jax.spaces import Discrete

OBSERVATION = {"a": jnp.arange(6.0).reshape(3, 2), "b": 10 * jnp.ones((3, 1)), "mask": jnp.ones((3, 4), bool)}


def seen(names, observation=None, mask="mask"):
    return OfEntries(None, names, "policy.observation_key", mask).seen(OBSERVATION if observation is None else observation)


def test_an_entry_or_several_side_by_side_in_their_order():
    np.testing.assert_array_equal(seen("a"), OBSERVATION["a"])
    np.testing.assert_array_equal(seen("b, a"), np.concatenate([OBSERVATION["b"], OBSERVATION["a"]], axis=1))
    assert seen("state", jnp.ones(3)).shape == (3,), "no dict: seen whole"


def test_state_stands_for_all_entries_but_the_mask_if_there_is_no_such_entry():
    np.testing.assert_array_equal(seen("state"), seen("a,b"))
    np.testing.assert_array_equal(seen("state", OBSERVATION | {"state": jnp.zeros((3, 1))}), np.zeros((3, 1)))


@pytest.mark.parametrize(
    ("names", "observation", "message"),
    [
        ("c", OBSERVATION, "allowed: an entry of the observation, or several with commas between them: a, b, mask"),
        ("a,c", OBSERVATION, "or several with commas between them: a, b, mask"),
        ("state", {"mask": OBSERVATION["mask"]}, "allowed: an entry of the observation"),
        ("a,b", {"a": jnp.zeros((3, 2)), "b": jnp.zeros((3, 4, 4, 1))}, "allowed: one entry, or several that are vectors"),
        ("a,b", {"a": {"c": jnp.zeros((3, 2))}, "b": jnp.zeros((3, 1))}, "allowed: one entry, or several that are vectors"),
    ],
)
def test_entries_that_do_not_exist_or_do_not_fit_are_refused(names, observation, message):
    with pytest.raises(ConfigError, match=rf"^policy\.observation_key: got .*{message}"):
        seen(names, observation)


def test_a_policy_never_takes_a_masked_action():
    network = OfEntries(PolicyNetwork(Discrete(4)), "a", "policy.observation_key", "mask")
    params = network.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0], OBSERVATION))
    mask = jnp.asarray([[True, False, False, False], [False, True, True, False], [True] * 4])
    distribution = network.apply(params, OBSERVATION | {"mask": mask})
    actions = jax.vmap(distribution.sample)(jax.random.split(jax.random.key(1), 200))
    for row, allowed in zip(np.asarray(actions).T, np.asarray(mask), strict=True):
        assert set(row) == set(np.flatnonzero(allowed))


def test_masks_of_several_choices_and_of_parts():
    choices = MultiCategorical(jnp.zeros((3, 5)), (2, 3))
    mask = jnp.ones((3, 5), bool).at[:, [0, 4]].set(False)
    np.testing.assert_array_equal(masked(choices, mask).mode()[:, 0], 1)
    parts = Joint({"pick": choices, "go": DiagonalGaussian(jnp.zeros((3, 1)), jnp.zeros((3, 1)))})
    assert masked(parts, {"pick": mask}).mode()["pick"][0, 0] == 1


@pytest.mark.parametrize(
    ("distribution", "mask"),
    [
        (Categorical(jnp.zeros((3, 4))), jnp.ones((3, 3), bool)),
        (Categorical(jnp.zeros((3, 4))), jnp.ones((3, 4))),
        (Categorical(jnp.zeros((3, 4))), {"a": jnp.ones((3, 4), bool)}),
        (Bernoulli(jnp.zeros((3, 4))), jnp.ones((3, 4), bool)),
        (Joint({"a": Categorical(jnp.zeros((3, 4)))}), {"b": jnp.ones((3, 4), bool)}),
        (Joint({"a": Categorical(jnp.zeros((3, 4)))}), jnp.ones((3, 4), bool)),
    ],
)
def test_masks_that_do_not_fit_are_refused(distribution, mask):
    with pytest.raises(ConfigError, match=r"^policy\.action_mask_key: got 'a mask .*allowed: bools"):
        masked(distribution, mask)
