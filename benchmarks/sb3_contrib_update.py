"""One policy update against sb3-contrib's TRPO: how much faster, and whether both take the same step.

    pip install -e ".[bench]"
    python benchmarks/sb3_contrib_update.py [--samples 50000] [--rounds 5] [--json FILE]

Both update the same weights on the same batch: gradient, 10 conjugate-gradient iterations, line search; damping 0.1,
max_kl 0.01, float32, the same number of threads. Observation 17, action 6, Gaussian policy with two tanh layers. They
take turns in one process; the peer's critic fit is switched off. "cosine" and "length" compare the accepted steps.
"""

import dataclasses
import os
import statistics
from typing import Any

import gymnasium
import jax
import numpy as np
import sb3_contrib
import torch
import tyro
from stable_baselines3.common.logger import configure

import report
import trpo_jax
from policy_update import ACTION_SIZE, OBSERVATION_SIZE, make_problem
from trpo_jax import Box, PolicyNetwork, TrustRegionConfig

CONFIG = TrustRegionConfig(max_kl=0.01, damping=0.1, cg_iterations=10, cg_tolerance=0.0)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compare policy updates with sb3-contrib's."""

    samples: tuple[int, ...] = (4_000, 50_000)
    """Batch sizes."""
    hidden_sizes: tuple[int, ...] = (64, 256)
    """Units of each of the policy's two hidden layers."""
    curvature_fractions: tuple[float, ...] = (1.0, 0.1)
    """Parts of the batch that our Fisher products use; the peer always uses the whole."""
    rounds: int = 5
    """Timed rounds."""
    json: str | None = None
    """Where to write the result."""


def main(arguments: Arguments) -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows = [row for n in arguments.samples for size in arguments.hidden_sizes for row in measure(n, size, arguments)]
    report.publish("one policy update, milliseconds", rows, arguments.json)


def measure(samples: int, hidden_size: int, arguments: Arguments) -> list[dict[str, Any]]:
    network = PolicyNetwork(Box(ACTION_SIZE), (hidden_size, hidden_size))
    params, batch = make_problem(network, samples)
    peer = Peer(params, batch, hidden_size)
    competitors = {"sb3-contrib": peer.update}
    for fraction in arguments.curvature_fractions:
        config = dataclasses.replace(CONFIG, curvature_fraction=fraction)
        update = jax.jit(
            lambda params, batch, config=config: trpo_jax.trust_region_update(network.apply, params, batch, config)
        )
        competitors[f"{fraction:g}"] = lambda update=update: update(params, batch)
    seconds = report.alternate(competitors, rounds=arguments.rounds)
    peer_step = peer.update()
    rows = []
    for fraction in arguments.curvature_fractions:
        new_params, info = competitors[f"{fraction:g}"]()
        step = flatten(new_params) - flatten(params)
        ratio = report.ratio(seconds["sb3-contrib"], seconds[f"{fraction:g}"])
        rows.append(
            {
                "samples": samples,
                "network": f"{hidden_size}-{hidden_size}",
                "curvature_fraction": fraction,
                "sb3-contrib": 1e3 * statistics.median(seconds["sb3-contrib"]),
                "trpo_jax": 1e3 * statistics.median(seconds[f"{fraction:g}"]),
                "ratio": ratio["median"],
                "ratio min": ratio["min"],
                "ratio max": ratio["max"],
                "step fraction": float(info.step_fraction),
                "cosine": float(step @ peer_step / np.linalg.norm(step) / np.linalg.norm(peer_step)),
                "length": float(np.linalg.norm(step) / np.linalg.norm(peer_step) - 1),
            }
        )
    return rows


def flatten(params: Any) -> np.ndarray:
    """Return the parameters in one order for both: log_std, then kernel and bias of each layer."""
    layers = params["params"]["MLP_0"]
    arrays = [params["params"]["log_std"], *(layers[f"Dense_{i}"][name] for i in range(3) for name in ("kernel", "bias"))]
    return np.concatenate([np.asarray(array, np.float64).ravel() for array in arrays])


class Peer:
    """sb3-contrib's TRPO with our weights and our batch in its rollout buffer."""

    def __init__(self, params: Any, batch: trpo_jax.Batch, hidden_size: int):
        self.model = sb3_contrib.TRPO(
            "MlpPolicy",
            _Spaces(),
            n_steps=len(batch.log_prob),
            batch_size=len(batch.log_prob),
            n_critic_updates=0,
            cg_max_steps=10,
            # Its KL is a mean over the action's components where the KL of a Gaussian is their sum.
            cg_damping=CONFIG.damping / ACTION_SIZE,
            target_kl=CONFIG.max_kl / ACTION_SIZE,
            line_search_max_iter=16,
            normalize_advantage=False,
            policy_kwargs={"net_arch": [hidden_size, hidden_size]},
            device="cpu",
        )
        self.model.set_logger(configure(None, []))
        buffer = self.model.rollout_buffer
        buffer.observations[:, 0] = batch.observation
        buffer.actions[:, 0] = batch.action
        buffer.log_probs[:, 0] = batch.log_prob
        buffer.advantages[:, 0] = batch.advantage
        buffer.full = True
        policy = self.model.policy
        linear = [m for m in policy.mlp_extractor.policy_net if isinstance(m, torch.nn.Linear)] + [policy.action_net]
        layers = params["params"]["MLP_0"]
        with torch.no_grad():
            for i, module in enumerate(linear):
                module.weight.copy_(torch.tensor(np.asarray(layers[f"Dense_{i}"]["kernel"]).T))
                module.bias.copy_(torch.tensor(np.asarray(layers[f"Dense_{i}"]["bias"])))
            policy.log_std.copy_(torch.tensor(np.asarray(params["params"]["log_std"])))
        self.modules = linear
        self.start = self.parameters()

    def parameters(self) -> np.ndarray:
        arrays = [self.model.policy.log_std]
        for module in self.modules:
            arrays += [module.weight.T, module.bias]
        return np.concatenate([array.detach().numpy().astype(np.float64).ravel() for array in arrays])

    def update(self) -> np.ndarray:
        """Take one step from the starting weights; return it, and put the weights back."""
        parameters = list(self.model.policy.parameters())
        backup = [p.detach().clone() for p in parameters]
        self.model.train()
        step = self.parameters() - self.start
        with torch.no_grad():
            for parameter, value in zip(parameters, backup, strict=True):
                parameter.copy_(value)
        return step


class _Spaces(gymnasium.Env):
    """What sb3 wants to see: an environment that is never stepped."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,))
    action_space = gymnasium.spaces.Box(-1, 1, (ACTION_SIZE,))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
