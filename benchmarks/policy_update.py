"""One policy update: what linearizing the network once saves, and what shaped damping and a limit on a cost cost.

    python benchmarks/policy_update.py [--samples 50000] [--rounds 7] [--json FILE]

The two competitors are the whole of `trust_region_update` (gradient, conjugate gradients, line search) on the same batch
and weights; they differ in the product with the Fisher matrix alone: Gauss-Newton, linearized once and transposed,
against jvp of the gradient of the mean KL. A third is the first with shaped damping, in its second update. Two more have one
cost, near its limit: `constrained_trust_region_update`, with a second solve, and the stateful one that CPO trains with, with a
third; the latter is compared as it trains, with Fisher products from a tenth of the samples. Observation 17, action 6, 10
conjugate-gradient iterations a solve; they take turns.
"""

import dataclasses
import statistics

import jax
import jax.numpy as jnp
import tyro

import report
import trpo_jax
from trpo_jax import Batch, Box, CPOConfig, PolicyNetwork, TrustRegionConfig, trust_region_step
from trpo_jax.objective.surrogate import mean_and_max_kl, surrogate_objective
from trpo_jax.sweep.report.statistics import Estimate
from trpo_jax.sweep.report.tables import show

OBSERVATION_SIZE, ACTION_SIZE = 17, 6


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compare policy updates."""

    samples: tuple[int, ...] = (4_000, 50_000)
    """Batch sizes."""
    hidden_sizes: tuple[int, ...] = (64, 256)
    """Units of each of the policy's two hidden layers."""
    rounds: int = 7
    """Timed rounds."""
    json: str | None = None
    """Where to write the result."""


def main(arguments: Arguments) -> None:
    rows = [measure(n, size, arguments.rounds) for size in arguments.hidden_sizes for n in arguments.samples]
    report.publish("one policy update, milliseconds", rows, arguments.json)


def measure(samples: int, hidden_size: int, rounds: int) -> dict:
    network = PolicyNetwork(Box(ACTION_SIZE), (hidden_size, hidden_size))
    params, batch = make_problem(network, samples)
    config = TrustRegionConfig(cg_tolerance=0.0)
    ours = jax.jit(lambda params, batch: trpo_jax.trust_region_update(network.apply, params, batch, config))
    twice = jax.jit(lambda params, batch: update_by_differentiating_twice(network.apply, params, batch, config))
    check_that_they_agree(ours(params, batch), twice(params, batch))
    shaped_config = dataclasses.replace(config, damping_shape="gradient")
    shaped = jax.jit(
        lambda params, batch, state: trpo_jax.stateful_trust_region_update(network.apply, params, batch, state, shaped_config)
    )
    _, state, _ = shaped(params, batch, trpo_jax.init_trust_region_state(params, shaped_config))
    of_cpo = CPOConfig().trust_region
    without = jax.jit(
        lambda params, batch, state: trpo_jax.stateful_trust_region_update(network.apply, params, batch, state, of_cpo)
    )
    competitors = {
        "limited": update_with_limit(network.apply, params, batch, config, num_averages=0),
        "trained": update_with_limit(network.apply, params, batch, of_cpo, num_averages=1),
        "without": lambda: without(params, batch, state),
        "ours": lambda: ours(params, batch),
        "twice": lambda: twice(params, batch),
        "shaped": lambda: shaped(params, batch, state),
    }
    seconds = report.alternate(competitors, rounds=rounds)
    times = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    ratio = report.ratio(seconds["ours"], seconds["twice"])
    price = report.ratio(seconds["shaped"], seconds["ours"])
    price_of_limit = report.ratio(seconds["limited"], seconds["ours"])
    as_trained = report.ratio(seconds["trained"], seconds["without"])
    return {
        "samples": samples,
        "network": f"{hidden_size}-{hidden_size}",
        "linearized once": times["ours"],
        "KL differentiated twice": times["twice"],
        "ratio": ratio["median"],
        "ratio min": ratio["min"],
        "ratio max": ratio["max"],
        "shaped ÷ identity": show(Estimate(*price.values())),
        "one cost ÷ none": show(Estimate(*price_of_limit.values())),
        "as CPO trains": show(Estimate(*as_trained.values())),
    }


def make_problem(network, samples: int):
    keys = jax.random.split(jax.random.key(0), 4)
    observation = jax.random.normal(keys[0], (samples, OBSERVATION_SIZE))
    params = network.init(keys[1], observation[0])
    distribution = network.apply(params, observation)
    action = distribution.sample(keys[2])
    advantage = jax.random.normal(keys[3], (samples,)) + jnp.tanh(action[:, 0])
    return params, Batch(observation, action, distribution.log_prob(action), advantage)


def update_with_limit(policy_fn, params, batch, config, *, num_averages):
    """Return the update with one cost, near its limit, as a function without arguments; 0 averages the stateless one."""
    noise, excess = jax.random.normal(jax.random.key(4), (2, *batch.advantage.shape)), jnp.asarray([-1e-3])
    earlier, batch = (batch._replace(cost_advantage=(each + 0.5 * batch.advantage)[:, None]) for each in noise)

    @jax.jit
    def update(params, batch, state):
        return trpo_jax.stateful_constrained_trust_region_update(
            policy_fn, params, batch, excess, state, config, cost_gradient_decay=0.9
        )

    _, state, _ = update(params, earlier, trpo_jax.init_constrained_state(params, config, num_averages))
    return lambda: update(params, batch, state)


def update_by_differentiating_twice(policy_fn, params, batch, config):
    """Take the same step as most implementations write it."""
    old = jax.lax.stop_gradient(policy_fn(params, batch.observation))

    def kl(params):
        return mean_and_max_kl(old, policy_fn(params, batch.observation))[0]

    return trust_region_step(
        lambda params: surrogate_objective(policy_fn(params, batch.observation), batch),
        kl,
        lambda vector: jax.jvp(jax.grad(kl), (params,), (vector,))[1],
        params,
        config,
    )


def check_that_they_agree(ours, twice) -> None:
    (params, info), (other_params, other_info) = ours, twice
    assert int(info.cg_iterations) == int(other_info.cg_iterations) == 10
    difference = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), params, other_params)
    assert max(jax.tree.leaves(difference)) < 1e-3, difference


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
