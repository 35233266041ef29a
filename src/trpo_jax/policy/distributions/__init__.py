"""Action distributions: pytrees whose leaves carry the batch axes `[...]` first."""

from trpo_jax.policy.distributions.base import Action, Distribution, expm1_minus_identity
from trpo_jax.policy.distributions.discrete import Bernoulli, Categorical, MultiCategorical
from trpo_jax.policy.distributions.gaussian import DiagonalGaussian, MultivariateGaussian, TanhGaussian
from trpo_jax.policy.distributions.joint import Joint

__all__ = [
    "Action",
    "Bernoulli",
    "Categorical",
    "DiagonalGaussian",
    "Distribution",
    "Joint",
    "MultiCategorical",
    "MultivariateGaussian",
    "TanhGaussian",
    "expm1_minus_identity",
]
