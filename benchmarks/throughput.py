"""How much of the simulator's speed training keeps: environment steps a second, training against random actions.

    python benchmarks/throughput.py [--environments hopper ant] [--devices 1] [--rounds 10] [--json FILE]

Both run on the same environment, batch and devices in one process and take turns; compilation is not counted. The simulator
steps without resets and without a policy, with uniform random actions; training does everything an iteration does.
"""

import dataclasses
import statistics
import time
from typing import Any

import jax
import tyro
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import report
from trpo_jax import TRPOConfig, make_trpo
from trpo_jax.environments.checked import checked_reset, checked_step
from trpo_jax.environments.registry import as_environment
from trpo_jax.execution.devices import show_cpu_devices
from trpo_jax.execution.placement import OneTraining
from trpo_jax.execution.runner import Runner
from trpo_jax.training.run_config import starting_config


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure training steps/s over simulator steps/s."""

    environments: tuple[str, ...] = ("hopper", "ant")
    """Brax environments, with the settings that ship for them."""
    devices: int = 1
    """Devices that both use; on a processor so many of its cores are shown as devices."""
    rounds: int = 10
    """Timed rounds, each of `iterations` of both."""
    iterations: int = 20
    """Training iterations a round: enough for what is not overlapped at its ends to count little."""
    json: str | None = None
    """Where to write the result."""


def main(arguments: Arguments) -> None:
    show_cpu_devices(arguments.devices)
    rows = [measure(name, arguments) for name in arguments.environments]
    report.publish("training against the simulator alone", rows, arguments.json)


def measure(name: str, arguments: Arguments) -> dict:
    config = starting_config(name).agent
    trpo = make_trpo(name, config)
    training = Training(trpo, arguments.iterations, jax.devices()[: arguments.devices])
    simulator = Simulator(name, config, arguments.iterations, arguments.devices)
    seconds = report.alternate({"training": training, "simulator": simulator}, rounds=arguments.rounds)
    steps = trpo.steps_per_iteration * arguments.iterations
    speed = report.ratio(seconds["simulator"], seconds["training"])
    return {
        "environment": name,
        "devices": arguments.devices,
        "batch": f"{config.num_envs} × {config.unroll_length}",
        "training steps/s": steps / statistics.median(seconds["training"]),
        "simulator steps/s": steps / statistics.median(seconds["simulator"]),
        "ratio": speed["median"],
        "ratio min": speed["min"],
        "ratio max": speed["max"],
    }


class Training:
    """Training iterations, one after another, from where the last call stopped; as `train` runs them."""

    def __init__(self, trpo, iterations: int, devices=None):
        self.runner = Runner(trpo, OneTraining(trpo.config.num_envs, devices))
        self.state = self.runner.init(jax.random.key(0))
        self.iterations = iterations

    def __call__(self):
        before = None
        for _ in range(self.iterations):
            self.state, metrics = self.runner.update(self.state)
            jax.device_get(before)  # as the loop does: metrics of one iteration are read while the next one runs
            before = metrics
        return before


class Simulator:
    """As many steps of the bare simulator with random actions."""

    def __init__(self, environment: Any, config: TRPOConfig, iterations: int, num_devices: int = 1):
        environment = as_environment(environment)
        self.iterations = iterations
        self.key = jax.random.key(0)
        state = jax.jit(checked_reset, static_argnums=0)(environment, jax.random.split(self.key, config.num_envs))
        self.state = over_devices(state, num_envs=config.num_envs, num_devices=num_devices)
        self.unroll = random_unroll(environment, config)

    def __call__(self):
        for _ in range(self.iterations):
            self.key, key = jax.random.split(self.key)
            self.state = self.unroll(self.state, key)
        return self.state.reward


def random_unroll(environment: Any, config: TRPOConfig) -> Any:
    """Return a jitted function (state, key) -> state that takes the steps of an iteration with random actions."""
    shape = (config.num_envs, environment.action_space.size)

    def step(state, key):
        action = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
        new = checked_step(environment, state, action)
        return new, (new.observation, new.reward)

    def unroll(state, key):
        return jax.lax.scan(step, state, jax.random.split(key, config.unroll_length))[0]

    return jax.jit(unroll, donate_argnums=0)


def over_devices(tree: Any, *, num_envs: int, num_devices: int) -> Any:
    """Split every leaf with a leading axis of environments over devices, and copy the others to all of them."""
    devices = jax.local_devices()[:num_devices]
    mesh = jax.make_mesh((num_devices,), ("devices",), axis_types=(AxisType.Auto,), devices=devices)
    split, copied = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("devices",), ()))
    return jax.tree.map(lambda leaf: jax.device_put(leaf, split if leaf.shape[:1] == (num_envs,) else copied), tree)


if __name__ == "__main__":
    start = time.perf_counter()
    main(tyro.cli(Arguments, description=__doc__))
    print(f"took {time.perf_counter() - start:.0f} s")
