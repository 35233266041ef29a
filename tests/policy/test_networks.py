import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trpo_jax.errors import ConfigError
from trpo_jax.policy.distributions import Bernoulli, Categorical, DiagonalGaussian, Joint, MultiCategorical
from trpo_jax.policy.layers import Convolutions, patches
from trpo_jax.policy.memory import policy_distribution
from trpo_jax.policy.networks import ImageConfig, PolicyConfig, PolicyNetwork, ValueNetwork
from trpo_jax.spaces import Box, Composite, Discrete, MultiBinary, MultiDiscrete

O, A = 5, 3  # noqa: E741
NUMPY_ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "swish": lambda x: x / (1 + np.exp(-x)),
}


def init(network, observation_size=O):
    return jax.jit(network.init)(jax.random.key(0), jnp.zeros(observation_size))


def numpy_forward(params, observation, activation):
    """A multilayer perceptron in float64, layer by layer."""
    layers = params["params"]["MLP_0"]
    x = np.asarray(observation, np.float64)
    for i in range(len(layers)):
        layer = layers[f"Dense_{i}"]
        x = x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)
        x = NUMPY_ACTIVATIONS[activation](x) if i < len(layers) - 1 else x
    return x


@pytest.mark.parametrize("activation", NUMPY_ACTIVATIONS)
def test_the_policy_mean_is_the_perceptron_of_the_textbook(activation):
    network = PolicyNetwork(Box(A), (8, 6), activation)
    rng = np.random.default_rng(0)
    observation = jnp.asarray(rng.normal(size=(2, 4, O)), "float32")
    shapes = jax.eval_shape(network.init, jax.random.key(0), observation)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)
    distribution = jax.jit(network.apply)(params, observation)
    np.testing.assert_allclose(distribution.mean, numpy_forward(params, observation, activation), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hidden_sizes", [(), (7,), (8, 6)])
@pytest.mark.parametrize("axes", [(), (2,), (2, 4)])
def test_every_network_maps_any_batch_axes(axes, hidden_sizes):
    observation = jnp.ones((*axes, O))
    gaussian, categorical, value = (
        jax.eval_shape(
            lambda key, network=network: network.apply(network.init(key, observation), observation), jax.random.key(0)
        )
        for network in (
            PolicyNetwork(Box(A), hidden_sizes),
            PolicyNetwork(Discrete(A), hidden_sizes),
            ValueNetwork(hidden_sizes),
        )
    )
    assert isinstance(gaussian, DiagonalGaussian)
    assert isinstance(categorical, Categorical)
    assert gaussian.mean.shape == gaussian.log_std.shape == categorical.logits.shape == (*axes, A)
    assert value.shape == axes
    assert gaussian.mean.dtype == gaussian.log_std.dtype == jnp.float32


def test_log_std_is_a_parameter_and_the_same_in_every_state_bug_7():
    network = PolicyNetwork(Box(A), (8,), init_log_std=-0.7)
    params = init(network)
    np.testing.assert_array_equal(params["params"]["log_std"], np.full(A, np.float32(-0.7)))
    params["params"]["log_std"] = jnp.asarray([0.1, 0.2, 0.3])
    distribution = network.apply(params, jnp.asarray([[0.0] * O, [9.0] * O]))
    np.testing.assert_array_equal(distribution.log_std, np.float32([[0.1, 0.2, 0.3]] * 2))
    assert np.abs(distribution.mean[0] - distribution.mean[1]).min() > 0


def test_weights_start_orthogonal_and_the_last_layer_of_a_policy_small():
    for network, last in ((PolicyNetwork(Box(A), (8, 4)), 0.01), (ValueNetwork((8, 4)), 1.0)):  # wide, then narrow
        layers = init(network)["params"]["MLP_0"]
        for name, scale in (("Dense_0", 2**0.5), ("Dense_1", 2**0.5), ("Dense_2", last)):
            kernel = np.asarray(layers[name]["kernel"])
            short = kernel if kernel.shape[0] < kernel.shape[1] else kernel.T
            np.testing.assert_allclose(short @ short.T, scale**2 * np.eye(len(short)), atol=1e-5 * scale**2)
            np.testing.assert_array_equal(layers[name]["bias"], np.zeros(kernel.shape[1]))


def test_the_first_policies_are_the_same_everywhere_for_practical_purposes():
    observation = jnp.asarray(np.random.default_rng(1).normal(size=(50, O)), "float32")
    gaussian, categorical = PolicyNetwork(Box(A)), PolicyNetwork(Discrete(A))
    assert np.abs(jax.jit(gaussian.apply)(init(gaussian), observation).mean).max() < 0.15
    entropy = jax.jit(categorical.apply)(init(categorical), observation).entropy()
    np.testing.assert_allclose(entropy, np.log(A), rtol=0.01)


def test_a_policy_is_applied_in_full_precision_whatever_the_default_is():
    network, params = PolicyNetwork(Box(A), (8,)), init(PolicyNetwork(Box(A), (8,)))
    with jax.default_matmul_precision("bfloat16"):
        jaxpr = jax.make_jaxpr(lambda x: policy_distribution(network, params, x))(jnp.zeros((2, O))).jaxpr
    assert [e.params["precision"] for e in jaxpr.eqns if e.primitive.name == "dot_general"] == [
        (jax.lax.Precision.HIGHEST,) * 2
    ] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_sizes": (64, 0)}, r"hidden_sizes: got \(64, 0\), allowed: a list, each item an integer >= 1"),
        ({"hidden_sizes": 64}, "hidden_sizes: got 64, allowed: a list"),
        ({"activation": "gelu"}, "activation: got 'gelu', allowed: one of tanh, relu, elu, swish"),
        ({"init_log_std": "low"}, "init_log_std: got 'low', allowed: a number"),
    ],
)
def test_a_policy_config_names_what_it_cannot_use(change, message):
    with pytest.raises(ConfigError, match=message):
        PolicyConfig(**change)


def test_a_policy_config_is_all_static_since_it_decides_shapes():
    assert jax.tree.leaves(PolicyConfig()) == []
    assert jax.tree.structure(PolicyConfig(hidden_sizes=(3,))) != jax.tree.structure(PolicyConfig())


def test_a_population_draws_the_weights_of_its_members_alone():
    # Two networks of two hidden layers each: as batched QR decompositions they can hang on a CPU with JAX 0.10.
    networks = PolicyNetwork(Box(A)), ValueNetwork()

    def draw(key):
        return [network.init(key, jnp.zeros(O)) for network in networks]

    keys = jax.random.split(jax.random.key(0), 9)
    together = jax.block_until_ready(jax.jit(jax.vmap(draw))(keys))
    alone = jax.jit(draw)(keys[4])
    for members, member in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(members[4], member)


@pytest.mark.parametrize(
    ("size", "stride", "shape"), [(3, 1, (10, 10, 4)), (2, 2, (7, 6, 1)), (8, 4, (20, 16, 3)), (3, 2, (8, 8, 2))]
)
def test_patches_make_the_convolution_of_jax(size, stride, shape):
    keys = jax.random.split(jax.random.key(0))
    images, kernel = jax.random.normal(keys[0], (5, *shape)), jax.random.normal(keys[1], (size, size, shape[-1], 4))
    expected = jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    found = jnp.matmul(patches(images, size, stride), kernel.reshape(-1, 4), precision="highest")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_bytes_flags_and_numbers_make_images():
    network = Convolutions()
    params = network.init(jax.random.key(0), jnp.zeros((5, 5, 2)))
    numbers = jax.random.bernoulli(jax.random.key(1), 0.5, (3, 5, 5, 2))
    expected = network.apply(params, numbers.astype(float))
    np.testing.assert_allclose(network.apply(params, numbers), expected, rtol=1e-6)
    np.testing.assert_allclose(network.apply(params, 255 * numbers.astype(jnp.uint8)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": (1, 1)}, r"policy\.image\.strides: got \(1, 1\), allowed: 1 numbers, as channels has 1 layers"),
        ({"kernel_sizes": (6,)}, r"policy\.image\.kernel_sizes: got \(6,\), allowed: such as fit into images of 5 × 5"),
    ],
)
def test_convolutions_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        ImageConfig(**change).encoder(jnp.zeros((5, 5, 2)), "policy.image")


@pytest.mark.parametrize(
    ("space", "kind"),
    [
        (MultiDiscrete((2, 3)), MultiCategorical),
        (MultiBinary(4), Bernoulli),
        (Composite({"a": Box(2), "b": Composite((Discrete(3), Box(1)))}), Joint),
    ],
)
def test_a_policy_has_the_distribution_of_its_space(space, kind):
    network = PolicyNetwork(space, (8,), init_log_std=-1.0)
    params = network.init(jax.random.key(0), jnp.zeros(O))
    distribution = network.apply(params, jnp.ones((7, O)))
    assert isinstance(distribution, kind)
    action = distribution.sample(jax.random.key(1))
    assert distribution.log_prob(action).shape == (7,)
    if kind is Joint:
        assert {name for name in params["params"] if name != "MLP_0"} == {"log_std_a", "log_std_b_1"}
        np.testing.assert_array_equal(distribution.parts["a"].log_std, -1.0)
