"""The parts in the order of their worth, with the seconds and the figures that were predicted for them.

The figures are from an H200, or guesses from the number of kernels where nothing was measured yet.
"""

from collections.abc import Mapping
from typing import Any

from accelerator_parts.unit import Part, Unit

BATCH = {"num_envs": 4096, "unroll_length": 16}
TRAINING = {"num_timesteps": 50_000_000, "num_evals": 21, "episodes": 64}
TURNS = {"rounds": 5, "iterations": 4}


def ours(name: str, *, seconds: float, evaluation: float, predicted: Mapping[str, Any], **changed: Any) -> Unit:
    """Describe a training of ours."""
    arguments = {"environment": "ant", "seed": 0, **BATCH, **TRAINING, **changed}
    return Unit(name, "accelerator_parts.training.ours", seconds, evaluation, arguments, predicted)


def ppo(name: str, *, environment: str, seed: int, seconds: float, evaluation: float, predicted: Mapping[str, Any]) -> Unit:
    """Describe a training by Brax's PPO with the settings published for the environment."""
    arguments = {"environment": environment, "published": environment, "seed": seed, **TRAINING}
    return Unit(name, "accelerator_parts.training.ppo", seconds, evaluation, arguments, predicted)


OURS_ON_ANT = {
    "final": 7800.0,
    "steps/s": 2.6e6,
    "seconds without compilation": 19.2,
    "to_6000": [7_500_000, 15.0, 3.0],
}
PPO_ON_ANT = {
    "final": 6450.0,
    "steps/s": 1.46e6,
    "seconds without compilation": 35.8,
    "to_6000": [36_700_000, 60.8, 25.1],
}


def together(environment: str, *, seconds: float, predicted: Mapping[str, Any]) -> Unit:
    """Describe three seeds in one program, with the setting that all environments share."""
    arguments = {"environment": environment, "seeds": (0, 1, 2), **BATCH, **TRAINING}
    arguments |= {"num_timesteps": 20_000_000, "num_evals": 11}
    return Unit(environment, "accelerator_parts.training.together", seconds, 10, arguments, predicted)


def options(name: str, *, seconds: float, predicted: Mapping[str, Any], **changed: Any) -> Unit:
    """Describe a compilation with options of XLA changed."""
    arguments = {"environment": "ant", "options": changed, **BATCH, "rounds": 5, "iterations": 8}
    return Unit(name, "accelerator_parts.speed.compiled_otherwise", seconds, 0.0, arguments, predicted)


def update(samples: int, hidden_size: int, fraction: float, milliseconds: float) -> Unit:
    """Describe a bare policy update."""
    name = f"{samples} × {hidden_size}-{hidden_size}, curvature of {fraction:g}"
    arguments = {"samples": samples, "hidden_size": hidden_size, "curvature_fraction": fraction, "rounds": 7}
    return Unit(name, "accelerator_parts.ceilings.update", 6, 0.0, arguments, {"ms": milliseconds, "compile seconds": 5.0})


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
                    "training steps/s": 2.6e6,
                    "simulator steps/s": 3.45e6,
                    "training ÷ simulator": 0.8,
                    "time to first step": 12.0,
                    "improve ms": 3.5,
                    "fit ms": 3.0,
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
                max_kl=0.1,
                num_timesteps=25_000_000,
                seconds=18,
                evaluation=11,
                predicted={"final": 7000.0, "steps/s": 5e6, "to_6000": [12_500_000, 16.0, 2.5]},
            ),
            ours(
                "65536 × 8",
                num_envs=65536,
                unroll_length=8,
                max_kl=0.1,
                num_timesteps=25_000_000,
                seconds=18,
                evaluation=11,
                predicted={"final": 6000.0, "steps/s": 6e6, "to_6000": [25_000_000, 18.0, 4.2]},
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
                    "collect: kernels": 13_200,
                    "collect: ms": 20.0,
                    "improve: kernels": 1_000,
                    "improve: ms": 3.5,
                    "fit: kernels": 1_700,
                    "fit: ms": 3.0,
                },
            ),
        ),
    ),
    Part(
        "other_environments",
        "the setting elsewhere: 20M steps, three seeds in one program",
        (
            together("hopper", seconds=20, predicted={"final": 2500.0, "steps/s": 7e6, "trace, compile, start": 13.0}),
            together("walker2d", seconds=22, predicted={"final": 2500.0, "steps/s": 6e6, "trace, compile, start": 14.0}),
            together("halfcheetah", seconds=25, predicted={"final": 6000.0, "steps/s": 5e6, "trace, compile, start": 15.0}),
        ),
    ),
    Part(
        "compile_options",
        "seconds of compilation and steps/s with other options of XLA",
        (
            options("shipped", seconds=9, predicted={"compile seconds": 6.0, "steps/s": 2.6e6}),
            options(
                "XLA's own matrix products",
                seconds=20,
                predicted={"compile seconds": 13.0, "steps/s": 2.6e6, "steps/s ÷ shipped": 1.0},
                xla_gpu_enable_triton_gemm=True,
            ),
            options(
                "no autotuning",
                seconds=9,
                predicted={"compile seconds": 6.0, "steps/s": 2.5e6, "steps/s ÷ shipped": 0.97},
                xla_gpu_autotune_level=0,
            ),
            options(
                "loops recorded",
                seconds=14,
                predicted={"compile seconds": 10.0, "steps/s": 2.8e6, "steps/s ÷ shipped": 1.09},
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
                36,
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
        "ceilings",
        "what the device can do at most",
        (
            Unit(
                "ceilings",
                "accelerator_parts.ceilings.ceilings",
                8,
                arguments={"size": 8192},
                predicted={
                    "copy TB/s": 2.96,
                    "f32 TFLOP/s": 50.0,
                    "TF32 TFLOP/s": 368.0,
                    "bf16 TFLOP/s": 580.0,
                    "narrow f32 TFLOP/s": 40.0,
                    "loop trip µs": 6.0,
                    "open loop trip µs": 17.0,
                },
            ),
        ),
    ),
    Part(
        "update",
        "the bare policy update by size",
        (
            update(65_536, 64, 1.0, 3.8),
            update(65_536, 256, 1.0, 14.5),
            update(1_048_576, 256, 1.0, 189.0),
            update(1_048_576, 256, 0.1, 42.0),
        ),
    ),
)
