"""Distributions made of others, and distributions of the caller's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy.distribution_problems import draw_pair, everything, scalars, unoptimized
from trpo_jax import Batch, TrustRegionConfig, trust_region_update
from trpo_jax.policy.distributions import Categorical, DiagonalGaussian, Distribution, Joint
from trpo_jax.solver.curvature import fisher_vector_product
from trpo_jax.solver.outcome import StepOutcome

STRUCTURES = {
    "dict": lambda a, b, c, joint: {"move": a, "fire": b, "aim": c},
    "tuple": lambda a, b, c, joint: (a, b, c),
    "nested": lambda a, b, c, joint: ({"move": a}, [b, (c,)]),
    "joint within": lambda a, b, c, joint: {"move": a, "hand": joint((b, {"aim": c}))},
}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_joint_is_the_sum_of_its_parts(structure):
    pairs = [draw_pair(name, "float32", 1) for name in ("gaussian", "bernoulli", "tanh_gaussian")]
    p, q = (Joint(STRUCTURES[structure](*parts, joint=Joint)) for parts in zip(*pairs, strict=True))
    actions = [of_part.mode() for _, of_part in pairs]
    action = STRUCTURES[structure](*actions, joint=lambda parts: parts)
    assert isinstance(p, Distribution)
    assert jax.tree.structure(jax.eval_shape(p.sample, jax.random.key(0))) == jax.tree.structure(action)
    jax.tree.map(np.testing.assert_array_equal, q.mode(), action)
    of_parts = [everything(*pair, of_part) for pair, of_part in zip(pairs, actions, strict=True)]
    for quantity, value in scalars(p, q, action).items():
        np.testing.assert_allclose(value, sum(each[quantity] for each in of_parts), rtol=1e-5)


def test_equal_parts_are_drawn_independently():
    part = DiagonalGaussian(jnp.zeros((2000, 1)), jnp.zeros((2000, 1)))
    a, b = Joint((part, part)).sample(jax.random.key(0))
    assert abs(np.corrcoef(a[:, 0], b[:, 0])[0, 1]) < 4.5 / np.sqrt(2000)
    np.testing.assert_allclose([a.std(), b.std()], 1.0, atol=0.1)


WRONG_ACTIONS = {
    "no structure": lambda move, fire: move,
    "a part missing": lambda move, fire: {"move": move},
    "a part too many": lambda move, fire: {"move": move, "fire": (fire, fire), "jump": fire},
    "another name": lambda move, fire: {"move": move, "shoot": (fire, fire)},
    "a tuple for a dict": lambda move, fire: (move, (fire, fire)),
    "a list for a tuple": lambda move, fire: {"move": move, "fire": [fire, fire]},
    "too short a tuple": lambda move, fire: {"move": move, "fire": (fire,)},
}


@pytest.mark.parametrize("wrong", WRONG_ACTIONS)
def test_an_action_of_another_structure_is_an_error_that_names_it(wrong):
    fire = Categorical(jnp.zeros((2, 3)))
    p = Joint({"move": DiagonalGaussian(jnp.zeros((2, 1)), jnp.zeros((2, 1))), "fire": (fire, fire)})
    move, fire = jnp.zeros((2, 1)), jnp.zeros(2, int)
    assert p.log_prob({"move": move, "fire": (fire, fire)}).shape == (2,)
    with pytest.raises(ValueError, match=r"^action: got PyTreeDef.*, allowed: the same structure as the parts"):
        p.log_prob(WRONG_ACTIONS[wrong](move, fire))
    with pytest.raises(ValueError, match=r"^other: got PyTreeDef"):
        p.kl(Joint({"move": p.parts["move"]}))


@jax.tree_util.register_pytree_node_class
class Exponential:
    """A distribution of a caller's own, of scalar waiting times: it knows nothing of the package."""

    def __init__(self, log_rate):
        self.log_rate = log_rate

    def tree_flatten(self):
        return (self.log_rate,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)

    def log_prob(self, action):
        return self.log_rate - jnp.exp(self.log_rate) * action

    def kl(self, other):
        r = other.log_rate - self.log_rate
        return jnp.expm1(r) - r

    def entropy(self):
        return 1 - self.log_rate

    def sample(self, key):
        return jax.random.exponential(key, self.log_rate.shape, self.log_rate.dtype) * jnp.exp(-self.log_rate)

    def mode(self):
        return jnp.zeros_like(self.log_rate)


def waiting(params, observation):
    return Exponential(observation @ params)


def waiting_and_choosing(params, observation):
    choice = Categorical(jnp.stack([observation @ params, jnp.zeros(len(observation))], axis=-1))
    return Joint({"wait": Exponential(observation @ params), "choose": choice})


def linear_problem(num_states):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(num_states, 3))), jnp.asarray([0.3, -0.5, 0.2])


def test_a_distribution_of_the_callers_own_has_the_fisher_information_that_mathematics_gives_it(x64):
    observation, params = linear_problem(20)
    assert isinstance(waiting(params, observation), Distribution)
    outer = np.einsum("bi,bj->bij", observation, observation)
    matvec = unoptimized(jax.vmap(lambda v: fisher_vector_product(lambda p: waiting(p, observation), params)(v)))
    np.testing.assert_allclose(matvec(jnp.eye(3)), outer.mean(0), rtol=1e-12, atol=1e-12)  # 1 in the log-rate
    matvec = unoptimized(jax.vmap(lambda v: fisher_vector_product(lambda p: waiting_and_choosing(p, observation), params)(v)))
    p = 1 / (1 + np.exp(-observation @ params))
    expected = np.mean((1 + p * (1 - p))[:, None, None] * outer, axis=0)
    np.testing.assert_allclose(matvec(jnp.eye(3)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("policy_fn", [waiting, waiting_and_choosing])
def test_a_distribution_of_the_callers_own_is_improved_within_the_trust_region(policy_fn):
    observation, params = linear_problem(500)
    old = policy_fn(params, observation)
    action = old.sample(jax.random.key(0))
    wait = action["wait"] if policy_fn is waiting_and_choosing else action
    batch = Batch(observation, action, old.log_prob(action), -wait * observation[:, 0])  # wait briefly where it is positive
    config = TrustRegionConfig(max_kl=0.01, damping=1e-3)
    new_params, info = unoptimized(lambda params: trust_region_update(policy_fn, params, batch, config))(params)
    new = policy_fn(new_params, observation)
    kl = float(old.kl(new).mean())
    assert info.outcome == StepOutcome.ACCEPTED
    assert 0.005 < kl <= 0.01
    np.testing.assert_allclose(info.kl, kl, rtol=1e-3)
    improvement = ((jnp.exp(new.log_prob(action) - batch.log_prob) - 1) * batch.advantage).mean()
    np.testing.assert_allclose(info.surrogate_improvement, improvement, rtol=1e-3)
    assert improvement > 0
    assert new_params[0] > params[0]  # the rate rises with the first observation
