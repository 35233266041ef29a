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


RULES = ({"discounting": 0.99, "gae_lambda": 0.95}, {"discounting": 0.995, "gae_lambda": 0.97})
"""The default's horizon and a longer one, whatever an environment has of its own."""

HUMANOID = {"discounting": 0.97, "gae_lambda": 0.9}
"""What ships for humanoid."""


def together(environment: str, *final: float, seconds: float = 15, rules: tuple[dict[str, float], ...] = RULES) -> Unit:
    """Describe five seeds under several rules in one program, 10M steps each; predicted is each rule's mean return."""
    arguments = {"environment": environment, "rules": rules, "seeds": (0, 1, 2, 3, 4), **BATCH, **SHORT}
    return Unit(environment, "accelerator_parts.training.together", seconds, 10, arguments, {"final": list(final)})


def competitor(environment: str, final: float, *, published: str | None = None, seconds: float = 7) -> Unit:
    """Describe PPO's training beside `together`: one seed, as Brax publishes it for this environment or for another."""
    arguments = {"environment": environment, "published": published or environment, "seed": 0, **SHORT}
    return Unit(f"{environment}, PPO", "accelerator_parts.training.ppo", seconds, 5, arguments, {"final": final})


def options(name: str, *, seconds: float, predicted: Mapping[str, Any], **changed: Any) -> Unit:
    """Describe a compilation with options of XLA changed."""
    arguments = {"environment": "ant", "options": changed, **BATCH, "rounds": 5, "iterations": 8}
    return Unit(name, "accelerator_parts.speed.compiled_otherwise", seconds, 0.0, arguments, predicted)


RECORDED_LOOPS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
"""What XLA records as CUDA graphs by default, and loops as a whole with it."""

PARTS = (
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
                    "training steps/s": 2.05e6,
                    "simulator steps/s": 3.55e6,
                    "training ÷ simulator": 0.58,
                    "time to first step": 17.5,
                    "improve ms": 4.3,
                    "fit ms": 7.5,
                },
            ),
        ),
    ),
    Part(
        "environments",
        "one setting for the environments that no card has seen to their end, and Brax's PPO",
        (
            together("hopper", 1_000.0, 1_700.0),
            together("walker2d", 800.0, 1_800.0),
            together("ant", 10_800.0, 9_500.0),
            together("halfcheetah", 4_500.0, 4_000.0),
            together("reacher", -50.0, -50.0),
            together("inverted_pendulum", 950.0, 950.0),
            together("inverted_double_pendulum", 9_300.0, 9_300.0),
            together("humanoid", 3_000.0, 3_000.0, 4_000.0, rules=(*RULES, HUMANOID), seconds=60),
            together("swimmer", 40.0, 40.0),
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
                    "collect: kernels": 12_150,
                    "collect: ms": 27.0,
                    "improve: kernels": 570,
                    "improve: ms": 6.8,
                    "fit: kernels": 3_000,
                    "fit: ms": 9.0,
                },
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
    Part(
        "long",
        "50M steps of humanoid with what ships",
        (
            ours(
                "humanoid",
                environment="humanoid",
                seconds=55,
                evaluation=18,
                predicted={"final": 10_000.0, "steps/s": 1.4e6, "to_6000": [10_000_000, 26.0, 7.0]},
            ),
        ),
    ),
    Part(
        "compile_options",
        "steps/s with whole loops recorded",
        (
            options("shipped", seconds=18, predicted={"compile seconds": 8.5, "steps/s": 2.05e6}),
            options(
                "loops recorded",
                seconds=13,
                predicted={"compile seconds": 7.0, "steps/s": 2.1e6, "steps/s ÷ shipped": 1.045},
                xla_gpu_enable_command_buffer=RECORDED_LOOPS,
            ),
        ),
    ),
)
