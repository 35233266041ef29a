"""A training with a folder of its own."""

import json

import numpy as np

from probes import Target
from trainings import SMALL
from trpo_jax import RunConfig
from trpo_jax.runs.run import run_training
from trpo_jax.runs.run_folder import MetricsLog, create_run_folder


def test_without_episodes_to_evaluate_nothing_is_logged_of_evaluations_and_resuming_loses_nothing(tmp_path):
    run = RunConfig(num_timesteps=80, num_evals=3, num_eval_envs=0, agent=SMALL)
    folder = create_run_folder(tmp_path / "run", run)
    records = []
    for resume in (False, True):
        log = MetricsLog(folder.metrics)
        run_training(run, folder, Target(), [log], resume=resume, max_devices_per_host=1)
        records.append([json.loads(line) for line in folder.metrics.read_text().splitlines()])
    assert [record["step"] for record in records[0]] == [16, 32, 48, 64, 80]
    assert all("training/kl" in record for record in records[0])
    assert records[1] == records[0]
    assert np.isfinite(records[0][-1]["training/kl"])
