"""The parts in the order of their worth, with the seconds and the figures that were predicted for them.

The figures are from an H200, or guesses where nothing was measured yet.
"""

from collections.abc import Mapping
from typing import Any

from accelerator_parts.unit import Part, Unit

BATCH = {"num_envs": 4096, "unroll_length": 16}
TRAINING = {"num_timesteps": 50_000_000, "num_evals": 21, "episodes": 64}
SHORT = {"num_timesteps": 10_000_000, "num_evals": 6, "episodes": 64}
TURNS = {"rounds": 5, "iterations": 4}


def ours(environment: str, *, seconds: float, evaluation: float, predicted: Mapping[str, Any]) -> Unit:
    """Describe a training of ours with what ships."""
    arguments = {"environment": environment, "seed": 0, **BATCH, **TRAINING}
    return Unit(environment, "accelerator_parts.training.ours", seconds, evaluation, arguments, predicted)


RULES = (
    {"discounting": 0.99, "gae_lambda": 0.95},
    {"discounting": 0.99, "gae_lambda": 0.97},
    {"discounting": 0.995, "gae_lambda": 0.97},
)
"""The horizon of configs/accelerator.toml, and two longer ones, in place of an environment's own."""


def together(environment: str, *final: float, seconds: float = 22) -> Unit:
    """Describe five seeds under each rule in one program, 1024 environments, 10M steps.

    Predicted is each rule's mean return.
    """
    batch = {**BATCH, "num_envs": 1024}
    arguments = {"environment": environment, "rules": RULES, "seeds": (0, 1, 2, 3, 4), **batch, **SHORT}
    return Unit(
        f"{environment}, 1024 × 16", "accelerator_parts.training.together", seconds, 10, arguments, {"final": list(final)}
    )


def competitor(environment: str, final: float, *, published: str | None = None, seconds: float = 8) -> Unit:
    """Describe a training of PPO: one seed, as Brax publishes it for this environment or for another."""
    arguments = {"environment": environment, "published": published or environment, "seed": 1, **SHORT}
    return Unit(f"{environment}, PPO, seed 1", "accelerator_parts.training.ppo", seconds, 5, arguments, {"final": final})


def fit_compiled(name: str, shows: str, *, predicted: Mapping[str, Any], **options: Any) -> Part:
    """Describe a compilation with other options of XLA for the critic's fit.

    It is a part of its own, since XLA remembers what it tried in a process.
    """
    arguments = {"environment": "ant", "options": options, **BATCH, "rounds": 5, "iterations": 8}
    return Part(
        name, shows, (Unit("critic fit", "accelerator_parts.speed.fit_compiled", 26, arguments=arguments, predicted=predicted),)
    )


PARTS = (
    Part(
        "ant_speed",
        "training beside the simulator alone, the stages' share, and the time before the first step",
        (
            Unit(
                "4096 × 16",
                "accelerator_parts.speed.speed",
                30,
                arguments={"environment": "ant", **BATCH, **TURNS},
                predicted={
                    "training steps/s": 2.0e6,
                    "simulator steps/s": 3.45e6,
                    "training ÷ simulator": 0.58,
                    "time to first step": 22.0,
                    "improve ms": 4.5,
                    "fit ms": 7.2,
                },
            ),
        ),
    ),
    fit_compiled(
        "fit_by_cublas",
        "what the fit's own products cost at the start, and gain",
        predicted={"compile seconds": 9.0, "fit ms": 12.3, "steps/s ÷ shipped": 0.87},
        xla_gpu_enable_triton_gemm=False,
    ),
    fit_compiled(
        "fit_untuned",
        "the same products without trying them at the start",
        predicted={"compile seconds": 9.0, "fit ms": 8.0, "steps/s ÷ shipped": 0.98},
        xla_gpu_autotune_level=0,
    ),
    Part(
        "long",
        "50M steps with what ships",
        (
            ours(
                "ant",
                seconds=42,
                evaluation=11,
                predicted={"final": 11_000.0, "steps/s": 1.95e6, "to_6000": [5_000_000, 18.0, 2.6]},
            ),
            ours(
                "humanoid",
                seconds=66,
                evaluation=22,
                predicted={"final": 9_000.0, "steps/s": 1.45e6, "to_6000": [8_000_000, 37.0, 5.5]},
            ),
        ),
    ),
    Part(
        "environments",
        "one setting with a fourth of the environments, and another seed of Brax's PPO",
        (
            together("hopper", 1_500.0, 1_700.0, 2_000.0),
            together("walker2d", 800.0, 900.0, 1_500.0),
            together("halfcheetah", 5_000.0, 5_000.0, 5_000.0),
            together("reacher", -25.0, -25.0, -28.0),
            together("inverted_double_pendulum", 9_300.0, 9_300.0, 9_300.0),
            together("ant", 9_500.0, 9_300.0, 8_000.0),
            together("humanoid", 5_000.0, 5_000.0, 4_500.0, seconds=55),
            together("swimmer", 60.0, 70.0, 100.0),
            competitor("hopper", 400.0, published="ant"),
            competitor("walker2d", 300.0, published="ant"),
            competitor("halfcheetah", 2_500.0),
            competitor("reacher", -47.0),
            competitor("inverted_pendulum", 250.0),
            competitor("inverted_double_pendulum", 9_300.0),
            competitor("swimmer", 45.0, published="ant"),
            competitor("humanoid", 2_800.0, seconds=18),
        ),
        at_once=True,
    ),
    Part(
        "profile",
        "where the milliseconds of policy step and critic fit go",
        (
            Unit(
                "ant, 4096 × 16",
                "accelerator_parts.speed.profile",
                18,
                arguments={"environment": "ant", **BATCH, "iterations": 3},
                predicted={
                    "collect: kernels": 12_152,
                    "collect: ms": 25.0,
                    "improve: kernels": 572,
                    "improve: ms": 6.3,
                    "fit: kernels": 2_902,
                    "fit: ms": 8.1,
                },
            ),
        ),
    ),
    Part(
        "other_physics",
        "steps/s in MuJoCo Playground",
        (
            Unit(
                "CartpoleBalance, Playground",
                "accelerator_parts.speed.speed",
                30,
                arguments={"environment": "CartpoleBalance", "suite": "playground", "backend": "jax", **BATCH, **TURNS},
                predicted={"training steps/s": 1.5e6, "simulator steps/s": 2.5e6, "training ÷ simulator": 0.6},
                needs="mujoco_playground",
            ),
        ),
    ),
)
