"""One process of a training on several: `python distributed_worker.py ADDRESS NUM INDEX FOLDER FIRST_FOLDER`.

Three iterations with checkpoints in FOLDER, where only the first process should write; then two more, from where all find
the first one's, FIRST_FOLDER.
"""

import sys

import jax
import numpy as np

import trpo_jax
from probes import Target
from trainings import SHARDED
from trpo_jax.execution.processes import from_first_process


def main(address, num_processes, index, folder, first_folder):
    if int(num_processes) > 1:
        jax.distributed.initialize(address, int(num_processes), int(index))
    for number in (-1, 3_000_000_000):  # of steps, more than int32 holds
        assert from_first_process(number if int(index) == 0 else 7) == number
    rows = []
    for num_iterations, place in ((3, folder), (5, first_folder)):
        _, params, _ = trpo_jax.train(
            Target(),
            num_iterations * SHARDED.num_envs * SHARDED.unroll_length,
            config=SHARDED,
            num_eval_envs=8,
            iteration_fn=lambda step, metrics: rows.append(metrics["training/episode_reward"]),
            save_checkpoint_path=f"{place}/checkpoints",
            resume=place == first_folder,
        )
    if rows:
        np.savez(f"{folder}/result.npz", *jax.tree.leaves(jax.device_get(params)), rows=rows, devices=jax.device_count())


if __name__ == "__main__":
    main(*sys.argv[1:])
