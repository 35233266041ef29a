"""Small problems for the policy update, and the policy's mathematics in float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from trpo_jax.objective.surrogate import Batch
from trpo_jax.objective.trust_region_config import TrustRegionConfig
from trpo_jax.objective.trust_region_update import trust_region_update
from trpo_jax.policy.distributions import Categorical, DiagonalGaussian

B, O, H, A = 12, 3, 4, 2  # noqa: E741
NAMES = ("gaussian", "categorical")
CONFIG = TrustRegionConfig(max_kl=0.01, damping=0.1, cg_iterations=5, cg_tolerance=1e-20, max_backtracks=10)


def gaussian_fn(params, observation):
    mean = jnp.tanh(observation @ params["in"] + params["bias"][None]) @ params["out"]
    return DiagonalGaussian(mean, jnp.broadcast_to(params["log_std"], mean.shape))


def categorical_fn(params, observation):
    return Categorical(jnp.tanh(observation @ params["in"] + params["bias"][None]) @ params["out"] + params["log_std"][None])


POLICIES = {"gaussian": gaussian_fn, "categorical": categorical_fn}


@functools.partial(jax.jit, static_argnames="name")
def update(name, params, batch, config):
    """Update, compiled once a policy and dtype: the config's floats are traced."""
    return trust_region_update(POLICIES[name], params, batch, config)


def draw(name, dtype, seed=0):
    """Parameters and a batch that is on-policy in numpy's eyes: log_prob is that of the parameters."""
    rng = np.random.default_rng(seed)
    shapes = {"in": (O, H), "bias": (H,), "out": (H, A), "log_std": (A,)}
    params = {key: 0.5 * rng.normal(size=shape) for key, shape in shapes.items()}
    observation, advantage = rng.normal(size=(B, O)), rng.normal(size=B)
    action = rng.normal(size=(B, A)) if name == "gaussian" else rng.integers(A, size=B)
    log_prob = numpy_log_prob(name, numpy_forward(name, params, observation), action)
    batch = Batch(observation, action, log_prob, advantage, np.ones(B))
    return jax.tree.map(functools.partial(as_array, dtype=dtype), (params, batch))


def as_array(leaf, dtype):
    return jnp.asarray(leaf, dtype if np.issubdtype(leaf.dtype, np.floating) else "int32")


def numpy_forward(name, params, observation):
    """The policy in float64: its two leaves as a dict, with `noise`, a bound on what float32 rounds the mean or logits by."""
    p = {key: np.asarray(leaf, np.float64) for key, leaf in params.items()}
    x = np.asarray(observation, np.float64)
    hidden = np.tanh(x @ p["in"] + p["bias"])
    # Rounding of a sum is at most the number of terms times the rounding of its largest; tanh damps what enters it.
    entering = (O + 1) * (np.abs(x) @ np.abs(p["in"]) + np.abs(p["bias"]))
    hidden_noise = np.minimum((1 - hidden**2) * entering, 2) + 4 * np.abs(hidden)
    out = hidden @ p["out"]
    noise = hidden_noise @ np.abs(p["out"]) + (H + 2) * (np.abs(hidden) @ np.abs(p["out"]))
    if name == "gaussian":
        return {"mean": out, "log_std": np.broadcast_to(p["log_std"], out.shape), "noise": noise / np.exp(p["log_std"])}
    return {
        "log_p": scipy.special.log_softmax(out + p["log_std"], axis=-1),
        "noise": noise + 4 * np.abs(out + p["log_std"]) + 4,
    }


def numpy_log_prob(name, p, action):
    if name == "gaussian":
        z = (np.asarray(action, np.float64) - p["mean"]) / np.exp(p["log_std"])
        return (-0.5 * z**2 - p["log_std"] - 0.5 * np.log(2 * np.pi)).sum(-1)
    return np.take_along_axis(p["log_p"], np.asarray(action)[:, None], axis=-1)[:, 0]


def numpy_kl(name, p, q):
    if name == "gaussian":
        r = 2 * (p["log_std"] - q["log_std"])
        return 0.5 * (np.expm1(r) - r + ((p["mean"] - q["mean"]) / np.exp(q["log_std"])) ** 2).sum(-1)
    d = q["log_p"] - p["log_p"]
    return (np.exp(p["log_p"]) * (np.expm1(d) - d)).sum(-1)


def same_bits(a, b):
    return all(np.asarray(a[key]).tobytes() == np.asarray(b[key]).tobytes() for key in b)


def examine(name, params, new, batch, eps):
    """Mean KL and surrogate improvement in float64, each with what rounding at `eps` can move it by."""
    counted = np.asarray(batch.weight) > 0
    weight = np.asarray(batch.weight, np.float64)[counted] / np.asarray(batch.weight, np.float64)[counted].sum()
    observation, action = np.asarray(batch.observation)[counted], np.asarray(batch.action)[counted]
    p, q = (numpy_forward(name, each, observation) for each in (params, new))
    kl = weight @ numpy_kl(name, p, q)
    # √(2·KL) is a norm of the difference of the outputs for close policies, so their noise adds to it as to a norm.
    noise = eps * (p["noise"] + q["noise"])
    kl_noise = np.sqrt(0.5 * weight @ (noise**2).sum(-1))
    log_prob, new_log_prob = (numpy_log_prob(name, each, action) for each in (p, q))
    given_log_prob, advantage = (np.asarray(leaf, np.float64)[counted] for leaf in (batch.log_prob, batch.advantage))
    ratio, new_ratio = np.exp(log_prob - given_log_prob), np.exp(new_log_prob - given_log_prob)
    z = np.sqrt(2 * np.abs(np.maximum(-log_prob, -new_log_prob)) + 40) if name == "gaussian" else 1.0
    log_noise = z * noise.sum(-1) + 8 * eps * (np.abs(log_prob) + np.abs(new_log_prob) + np.abs(given_log_prob) + 10)
    improvement_noise = weight @ (np.abs(advantage) * (ratio + new_ratio) * log_noise)
    return kl, kl_noise, weight @ ((new_ratio - ratio) * advantage), improvement_noise
