"""The parts in the order of their worth, with the seconds and the figures that were predicted for them.

The figures are from an H200, or guesses from the number of kernels where nothing was measured yet.
"""

from collections.abc import Mapping
from typing import Any

from accelerator_parts.unit import Part, Unit

BATCH = {"num_envs": 4096, "unroll_length": 16}
TRAINING = {"num_timesteps": 50_000_000, "num_evals": 21, "episodes": 64}
SHORT = {"num_timesteps": 10_000_000, "num_evals": 6, "episodes": 64}
TURNS = {"rounds": 5, "iterations": 4}


def ours(name: str, *, seconds: float, evaluation: float, predicted: Mapping[str, Any], **changed: Any) -> Unit:
    """Describe a training of ours."""
    arguments = {"environment": "ant", "seed": 0, **BATCH, **TRAINING, **changed}
    return Unit(name, "accelerator_parts.training.ours", seconds, evaluation, arguments, predicted)


def ppo(
    name: str,
    *,
    environment: str,
    published: str | None = None,
    seed: int,
    seconds: float,
    evaluation: float,
    predicted: Mapping[str, Any],
    **changed: Any,
) -> Unit:
    """Describe a training by Brax's PPO with the settings published for the environment, or for another one."""
    arguments = {"environment": environment, "published": published or environment, "seed": seed, **TRAINING, **changed}
    return Unit(name, "accelerator_parts.training.ppo", seconds, evaluation, arguments, predicted)


OURS_ON_ANT = {
    "final": 12_000.0,
    "steps/s": 2.3e6,
    "seconds without compilation": 21.7,
    "to_6000": [5_000_000, 14.0, 2.2],
}
PPO_ON_ANT = {
    "final": 6450.0,
    "steps/s": 1.46e6,
    "seconds without compilation": 35.8,
    "to_6000": [36_700_000, 60.8, 25.1],
}


def together(environment: str, final: float, *, name: str = "", seconds: float = 7, **changed: Any) -> Unit:
    """Describe three seeds in one program, 10M steps each."""
    rule = {"discounting": 0.99, "gae_lambda": 0.95}  # whatever an environment has of its own
    arguments = {"environment": environment, "seeds": (0, 1, 2), **BATCH, **rule, **SHORT, **changed}
    title = f"{environment}{name and ', '}{name}"
    return Unit(title, "accelerator_parts.training.together", seconds, 10, arguments, {"final": final})


def competitor(environment: str, final: float, *, published: str | None = None, seconds: float = 7) -> Unit:
    """Describe PPO's training beside `together`, with one seed."""
    scores = {"environment": environment, "published": published, "seed": 0, "predicted": {"final": final}}
    return ppo(f"{environment}, PPO", seconds=seconds, evaluation=5, **scores, **SHORT)


def options(name: str, *, seconds: float, predicted: Mapping[str, Any], **changed: Any) -> Unit:
    """Describe a compilation with options of XLA changed."""
    arguments = {"environment": "ant", "options": changed, **BATCH, "rounds": 5, "iterations": 8}
    return Unit(name, "accelerator_parts.speed.compiled_otherwise", seconds, 0.0, arguments, predicted)


RECORDED_LOOPS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
"""What XLA records as CUDA graphs by default, and loops as a whole with it."""

PARTS = (
    Part(
        "humanoid_ppo",
        "the competitor's curve: 50M steps with Brax's published settings",
        (
            ppo(
                "PPO, seed 0",
                environment="humanoid",
                seed=0,
                seconds=125,
                evaluation=16,
                predicted={"final": 7000.0, "steps/s": 6.4e5, "seconds": 125.0, "seconds without compilation": 80.0},
            ),
        ),
    ),
    Part(
        "ant_seeds",
        "whether one seed was luck",
        (
            ours("ours, seed 1", seed=1, seconds=34, evaluation=10, predicted={**OURS_ON_ANT, "seconds": 32.0}),
            ppo("PPO, seed 1", environment="ant", seed=1, seconds=72, evaluation=9, predicted={**PPO_ON_ANT, "seconds": 71.5}),
            ours("ours, seed 2", seed=2, seconds=26, evaluation=4, predicted=OURS_ON_ANT),
            ppo("PPO, seed 2", environment="ant", seed=2, seconds=50, evaluation=4, predicted=PPO_ON_ANT),
        ),
        keeps_programs=True,
    ),
    Part(
        "ant_speed",
        "training beside the simulator alone, the stages' share, and the time before the first step",
        (
            Unit(
                "4096 × 16",
                "accelerator_parts.speed.speed",
                22,
                arguments={"environment": "ant", **BATCH, **TURNS},
                predicted={
                    "training steps/s": 2.3e6,
                    "simulator steps/s": 3.45e6,
                    "training ÷ simulator": 0.67,
                    "time to first step": 12.0,
                    "improve ms": 3.0,
                    "fit ms": 6.0,
                },
            ),
        ),
    ),
    Part(
        "ant_more_envs",
        "how far more environments and a larger bound carry",
        (
            ours(
                "16384 × 16",
                num_envs=16384,
                num_timesteps=25_000_000,
                seconds=18,
                evaluation=11,
                predicted={"final": 9000.0, "steps/s": 4.7e6, "to_6000": [10_000_000, 15.0, 2.1]},
            ),
            ours(
                "65536 × 8",
                num_envs=65536,
                unroll_length=8,
                num_timesteps=25_000_000,
                seconds=18,
                evaluation=11,
                predicted={"final": 6000.0, "steps/s": 6e6, "to_6000": [25_000_000, 18.0, 4.2]},
                **{"trust_region.max_kl": 0.2},
            ),
        ),
    ),
    Part(
        "profile",
        "where the milliseconds of policy step and critic fit go",
        (
            Unit(
                "ant, 4096 × 16",
                "accelerator_parts.speed.profile",
                16,
                arguments={"environment": "ant", **BATCH, "iterations": 3},
                predicted={
                    "collect: kernels": 13_000,
                    "collect: ms": 20.0,
                    "improve: kernels": 600,
                    "improve: ms": 3.0,
                    "fit: kernels": 2_900,
                    "fit: ms": 6.0,
                },
            ),
        ),
    ),
    Part(
        "environments",
        "one setting for nine environments and Brax's PPO, where that is not among the parts above; what the settings might be",
        (
            together("ant", 10_900.0),
            together("humanoid", 4_000.0, seconds=12),
            together("hopper", 1_500.0),
            together("walker2d", 1_500.0),
            together("halfcheetah", 4_000.0),
            together("reacher", -40.0),
            together("inverted_pendulum", 1_000.0),
            together("inverted_double_pendulum", 9_300.0),
            together("swimmer", 40.0),
            together("ant", 10_500.0, name="two epochs of the critic", **{"critic.num_epochs": 2}),
            together("ant", 10_500.0, name="16 minibatches", **{"critic.num_minibatches": 16}),
            together("humanoid", 4_000.0, name="its own γ and λ", seconds=12, discounting=0.97, gae_lambda=0.9),
            competitor("hopper", 800.0, published="ant"),
            competitor("walker2d", 500.0, published="ant"),
            competitor("halfcheetah", 2_500.0),
            competitor("reacher", -60.0),
            competitor("inverted_pendulum", 1_000.0),
            competitor("inverted_double_pendulum", 7_000.0),
            competitor("swimmer", 40.0, published="ant"),
        ),
        at_once=True,
    ),
    Part(
        "compile_options",
        "seconds of compilation and steps/s with other options of XLA",
        (
            options("shipped", seconds=9, predicted={"compile seconds": 6.0, "steps/s": 2.3e6}),
            options(
                "no autotuning",
                seconds=9,
                predicted={"compile seconds": 6.0, "steps/s": 2.23e6, "steps/s ÷ shipped": 0.97},
                xla_gpu_autotune_level=0,
            ),
            options(
                "loops recorded",
                seconds=12,
                predicted={"compile seconds": 10.0, "steps/s": 2.5e6, "steps/s ÷ shipped": 1.09},
                xla_gpu_enable_command_buffer=RECORDED_LOOPS,
            ),
        ),
    ),
    Part(
        "other_physics",
        "steps/s with mjx and in MuJoCo Playground",
        (
            Unit(
                "ant, mjx",
                "accelerator_parts.speed.speed",
                28,
                arguments={"environment": "ant", "backend": "mjx", **BATCH, **TURNS},
                predicted={"training steps/s": 1.5e6, "simulator steps/s": 1.8e6, "training ÷ simulator": 0.83},
                needs="mujoco.mjx",
            ),
            Unit(
                "CartpoleBalance, Playground",
                "accelerator_parts.speed.speed",
                12,
                arguments={"environment": "CartpoleBalance", "suite": "playground", "backend": "jax", **BATCH, **TURNS},
                predicted={"training steps/s": 2.5e6, "simulator steps/s": 4e6, "training ÷ simulator": 0.6},
                needs="mujoco_playground",
            ),
        ),
    ),
)
