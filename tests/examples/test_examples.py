"""Each example runs on a tiny budget and keeps what it shows."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import own_loop_equinox
import vmap_population
from probes import Target
from trpo_jax import CriticConfig, PolicyConfig, StepOutcome, TRPOConfig, TrustRegionConfig, inference_params, make_trpo

SMALL = TRPOConfig(
    num_envs=8,
    unroll_length=8,
    episode_length=5,
    # No early stop: by how far rounding lets conjugate gradients converge differs between programs.
    trust_region=TrustRegionConfig(cg_iterations=5, cg_tolerance=0.0),
    critic=CriticConfig(hidden_sizes=(16,), num_minibatches=2, num_epochs=2),
    policy=PolicyConfig(hidden_sizes=(16,)),
)


@pytest.mark.parametrize("module", [own_loop_equinox, vmap_population], ids=lambda module: module.__name__)
def test_an_example_explains_its_options(module):
    done = subprocess.run([sys.executable, module.__file__, "--help"], capture_output=True, text=True, check=True)
    for field in dataclasses.fields(module.Arguments):
        assert f"--{field.name.replace('_', '-')}" in done.stdout


class TestOwnLoop:
    def test_it_moves_the_policy_within_the_trust_region(self, capsys):
        arguments = own_loop_equinox.Arguments(iterations=3, num_envs=4, unroll_length=64, max_kl=0.02, print_every=1)
        policy, history = own_loop_equinox.main(arguments)
        assert {name: values.shape for name, values in history.items()} == {"return": (3,), "kl": (3,), "outcome": (3,)}
        assert np.all(history["outcome"] == StepOutcome.ACCEPTED)
        assert np.all((history["kl"] > 0) & (history["kl"] <= 0.02))
        assert np.all(policy.log_std != 0.0)
        assert capsys.readouterr().out.count("ACCEPTED") == 3

    def test_its_time_limit_is_no_termination(self):
        carts = own_loop_equinox.reset(jax.random.key(0), 2)._replace(steps=jnp.asarray([0, 249]))
        _, terminated, done = own_loop_equinox.step(carts, jnp.zeros((2, 1)))
        assert terminated.tolist() == [False, False]
        assert done.tolist() == [False, True]

    def test_its_pole_falls_and_its_cart_leaves_the_track(self):
        observation = jnp.asarray([[0.0, 0.0, 0.199, 1.0], [2.399, 1.0, 0.0, 0.0], [0.0, 0.0, 0.1, 0.0]])
        carts = own_loop_equinox.CartPole(observation, jnp.zeros(3, jnp.int32))
        _, terminated, done = own_loop_equinox.step(carts, jnp.zeros((3, 1)))
        assert terminated.tolist() == done.tolist() == [True, True, False]


class TestPopulation:
    def test_its_table_has_a_row_for_each_max_kl(self, capsys):
        arguments = vmap_population.Arguments(seeds=2, max_kls=(0.002, 0.05), iterations=10, num_envs=8)
        table = vmap_population.main(arguments, Target(), SMALL)
        assert table.shape == (2, 5)
        assert np.all(np.isfinite(table))
        np.testing.assert_array_equal(table[:, 0], arguments.max_kls)
        assert np.all(table[:, 3] <= table[:, 0])
        assert table[1, 3] > 5 * table[0, 3]
        assert capsys.readouterr().out.count("±") == 4

    def test_a_member_equals_its_run_alone(self):
        trpo = make_trpo(Target(), SMALL)
        max_kls, keys = jnp.asarray([0.002, 0.002, 0.05, 0.05]), jax.random.split(jax.random.key(0), 4)
        state, metrics = vmap_population.train_population(trpo, max_kls, keys, iterations=2)
        trust_region = dataclasses.replace(SMALL.trust_region, max_kl=0.05)
        alone = trpo.init(keys[3], dataclasses.replace(SMALL, trust_region=trust_region), num_iterations=2)
        for iteration in range(2):
            alone, alone_metrics = trpo.update(alone)
            for name, value in alone_metrics.items():
                np.testing.assert_allclose(metrics[name][iteration, 3], value, rtol=1e-2, atol=2e-3, err_msg=name)
        member = jax.tree.map(lambda leaf: leaf[3], inference_params(state))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), member, inference_params(alone))
