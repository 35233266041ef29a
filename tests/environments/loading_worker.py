"""One of several processes: `python loading_worker.py ADDRESS NUM INDEX`. Looks where the arrays of environments lie."""

import sys

import jax

from trpo_jax.environments.registry import as_environment


def main(address, num_processes, index):
    jax.distributed.initialize(address, int(num_processes), int(index))
    for name, suite, backend in (("reacher", "brax", "spring"), ("CartpoleBalance", "playground", "jax")):
        simulator = as_environment(name, suite=suite, backend=backend).environment
        model = simulator.sys if suite == "brax" else simulator.mjx_model
        arrays = [leaf for leaf in jax.tree.leaves(model) if isinstance(leaf, jax.Array)]
        assert arrays
        assert all(leaf.is_fully_addressable for leaf in arrays), name


if __name__ == "__main__":
    main(*sys.argv[1:])
