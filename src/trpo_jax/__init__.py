"""Trust Region Policy Optimization as pure, jitted JAX functions.

Importing the package imports no simulator and starts no device.
"""

from importlib.metadata import version

from trpo_jax.config import ConfigError
from trpo_jax.environments.protocol import Box, Discrete, Environment, EnvironmentState
from trpo_jax.objective.advantages import generalized_advantage_estimation
from trpo_jax.objective.surrogate import Batch
from trpo_jax.objective.update import trust_region_update
from trpo_jax.policy.distributions import Categorical, DiagonalGaussian, Distribution
from trpo_jax.policy.networks import CategoricalPolicy, GaussianPolicy, Networks, PolicyConfig, ValueNetwork
from trpo_jax.solver.conjugate_gradient import CGInfo, conjugate_gradient
from trpo_jax.solver.curvature import fisher_vector_product, hessian_vector_product
from trpo_jax.solver.line_search import LineSearchResult, backtracking_line_search
from trpo_jax.solver.tree import MatVec
from trpo_jax.solver.trust_region import StepOutcome, TrustRegionConfig, TrustRegionInfo, trust_region_step
from trpo_jax.training.critic import CriticConfig
from trpo_jax.training.inference import Params, make_value_fn
from trpo_jax.training.train import train
from trpo_jax.training.trpo import TRPO, TrainState, TRPOConfig, inference_params, make_trpo

__version__ = version("trpo-jax")

__all__ = [
    "TRPO",
    "Batch",
    "Box",
    "CGInfo",
    "Categorical",
    "CategoricalPolicy",
    "ConfigError",
    "CriticConfig",
    "DiagonalGaussian",
    "Discrete",
    "Distribution",
    "Environment",
    "EnvironmentState",
    "GaussianPolicy",
    "LineSearchResult",
    "MatVec",
    "Networks",
    "Params",
    "PolicyConfig",
    "StepOutcome",
    "TRPOConfig",
    "TrainState",
    "TrustRegionConfig",
    "TrustRegionInfo",
    "ValueNetwork",
    "backtracking_line_search",
    "conjugate_gradient",
    "fisher_vector_product",
    "generalized_advantage_estimation",
    "hessian_vector_product",
    "inference_params",
    "make_trpo",
    "make_value_fn",
    "train",
    "trust_region_step",
    "trust_region_update",
]
