"""Trust Region Policy Optimization as pure, jitted JAX functions.

Importing the package imports no simulator and starts no device.
"""

from trpo_jax.agent.agent import Agent
from trpo_jax.agent.config import AgentConfig
from trpo_jax.agent.critic import CriticConfig
from trpo_jax.agent.inference import Params
from trpo_jax.agent.policy_update import PolicyUpdate
from trpo_jax.agent.schedule import ScheduleConfig
from trpo_jax.agent.state import TrainState, inference_params
from trpo_jax.algorithms.cpo import CPOConfig
from trpo_jax.algorithms.natural_gradient import NaturalGradientConfig
from trpo_jax.algorithms.penalty import PenaltyConfig
from trpo_jax.algorithms.penalty_adam import PenaltyAdamConfig
from trpo_jax.algorithms.policy_gradient import PolicyGradientConfig
from trpo_jax.algorithms.ppo import PPOConfig
from trpo_jax.algorithms.registry import make_agent, make_trpo, register_algorithm
from trpo_jax.algorithms.trpo import TRPOConfig, TRPOScheduleConfig
from trpo_jax.algorithms.trpo_lagrangian import TRPOLagrangianConfig
from trpo_jax.environments.protocol import Environment, EnvironmentState
from trpo_jax.errors import CheckpointError, ConfigError, FileError, MissingPackageError
from trpo_jax.execution.compilation_cache import enable_compilation_cache
from trpo_jax.objective.advantages import generalized_advantage_estimation
from trpo_jax.objective.constrained_update import (
    ConstrainedInfo,
    ConstrainedState,
    constrained_trust_region_update,
    init_constrained_state,
    stateful_constrained_trust_region_update,
)
from trpo_jax.objective.improvement_bound import ImprovementBound, improvement_bound
from trpo_jax.objective.surrogate import Batch
from trpo_jax.objective.trust_region_config import TrustRegionConfig, TrustRegionInfo
from trpo_jax.objective.trust_region_update import stateful_trust_region_update, trust_region_update
from trpo_jax.policy.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Distribution,
    Joint,
    MultiCategorical,
    MultivariateGaussian,
    TanhGaussian,
)
from trpo_jax.policy.memory import Recurrent, Sequence
from trpo_jax.policy.networks import Networks, PolicyConfig, PolicyNetwork, ValueNetwork
from trpo_jax.runs.run import LoadedRun, load_run
from trpo_jax.solver.conjugate_gradient import CGInfo, conjugate_gradient
from trpo_jax.solver.curvature import fisher_vector_product, hessian_vector_product
from trpo_jax.solver.line_search import LineSearchResult, backtracking_line_search
from trpo_jax.solver.optax import trust_region
from trpo_jax.solver.outcome import ConstrainedOutcome, StepInfo, StepOutcome
from trpo_jax.solver.step_config import StepConfig, TrustRegionState, init_trust_region_state
from trpo_jax.solver.trust_region import stateful_trust_region_step, trust_region_step
from trpo_jax.spaces import Box, Composite, Discrete, MultiBinary, MultiDiscrete
from trpo_jax.training.run_config import RunConfig, shipped_config
from trpo_jax.training.train import train
from trpo_jax.tree import MatVec
from trpo_jax.versions import version_of

__version__ = version_of("trpo-jax")

__all__ = [
    "Agent",
    "AgentConfig",
    "Batch",
    "Bernoulli",
    "Box",
    "CGInfo",
    "CPOConfig",
    "Categorical",
    "CheckpointError",
    "Composite",
    "ConfigError",
    "ConstrainedInfo",
    "ConstrainedOutcome",
    "ConstrainedState",
    "CriticConfig",
    "DiagonalGaussian",
    "Discrete",
    "Distribution",
    "Environment",
    "EnvironmentState",
    "FileError",
    "ImprovementBound",
    "Joint",
    "LineSearchResult",
    "LoadedRun",
    "MatVec",
    "MissingPackageError",
    "MultiBinary",
    "MultiCategorical",
    "MultiDiscrete",
    "MultivariateGaussian",
    "NaturalGradientConfig",
    "Networks",
    "PPOConfig",
    "Params",
    "PenaltyAdamConfig",
    "PenaltyConfig",
    "PolicyConfig",
    "PolicyGradientConfig",
    "PolicyNetwork",
    "PolicyUpdate",
    "Recurrent",
    "RunConfig",
    "ScheduleConfig",
    "Sequence",
    "StepConfig",
    "StepInfo",
    "StepOutcome",
    "TRPOConfig",
    "TRPOLagrangianConfig",
    "TRPOScheduleConfig",
    "TanhGaussian",
    "TrainState",
    "TrustRegionConfig",
    "TrustRegionInfo",
    "TrustRegionState",
    "ValueNetwork",
    "backtracking_line_search",
    "conjugate_gradient",
    "constrained_trust_region_update",
    "enable_compilation_cache",
    "fisher_vector_product",
    "generalized_advantage_estimation",
    "hessian_vector_product",
    "improvement_bound",
    "inference_params",
    "init_constrained_state",
    "init_trust_region_state",
    "load_run",
    "make_agent",
    "make_trpo",
    "register_algorithm",
    "shipped_config",
    "stateful_constrained_trust_region_update",
    "stateful_trust_region_step",
    "stateful_trust_region_update",
    "train",
    "trust_region",
    "trust_region_step",
    "trust_region_update",
]
