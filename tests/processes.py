"""What tests run in processes of its own, to kill them or to take the disk from them."""

import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import trpo_jax
from probes import Target
from trainings import SMALL
from trpo_jax.errors import CheckpointError
from trpo_jax.runs.run_folder import MetricsLog


def forbid_files_beyond(size):
    """Let no file of this process grow beyond some bytes, as on a full disk.

    Without bytecode: Python would cut off there what it keeps of a module, and every other process would fail to import that.
    """
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def several_processes(worker, *arguments, num_devices=1):
    """Run `python worker ADDRESS NUM INDEX ARGUMENT …` with the arguments of each process, side by side; all must succeed."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    variables = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    processes = []
    for index, of_one in enumerate(arguments):
        command = [sys.executable, str(worker), address, str(len(arguments)), str(index), *of_one]
        processes.append(subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


def train_with_log(folder):
    """Train, or go on, in a folder with a log and checkpoints; slowly, so that there is time to be killed."""
    folder.mkdir(exist_ok=True)
    log = MetricsLog(folder / "metrics.jsonl")

    def on_iteration(step, metrics):
        log.log(step, metrics)
        time.sleep(0.01)

    trpo_jax.train(
        Target(),
        60 * 16,
        config=SMALL,
        num_eval_envs=0,
        num_evals=4,
        iteration_fn=on_iteration,
        progress_fn=lambda step, metrics: log.log(step, {"eval/of": step}),
        save_checkpoint_path=folder / "checkpoints",
        checkpoint_interval=2,
        resume=True,
    )
    log.close()


def count_lines(path):
    """Count the lines of a file that may not be there yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def train_until_no_file_may_grow(folder):
    """Train, forbid files of more than 100 bytes on the way, and write down what the error says."""

    def forbid(step, metrics):
        if step == 4 * 16:
            while not (folder / "checkpoints" / "48").exists():  # written in the background
                time.sleep(0.01)
            forbid_files_beyond(100)

    try:
        trpo_jax.train(
            Target(),
            100 * 16,
            config=SMALL,
            num_eval_envs=0,
            iteration_fn=forbid,
            save_checkpoint_path=folder / "checkpoints",
            checkpoint_interval=3,
        )
    except CheckpointError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (folder / "message").write_text(str(error))
