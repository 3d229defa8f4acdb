"""A training that stops and goes on in a new process is the one that did not stop."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import resume_job
from resume_job import JOBS, STEPS


@pytest.fixture(scope="module", params=JOBS)
def stopped(request, tmp_path_factory):
    """What a process left that trained half, saved, and was killed in a second fit."""
    folder = tmp_path_factory.mktemp("resume")
    run = subprocess.run(
        [sys.executable, resume_job.__file__, folder, request.param],
        capture_output=True,
        text=True,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    whole = resume_job.build(request.param)
    rates = resume_job.fit(whole, request.param)
    return Path(folder), request.param, rates, whole.get_weights()


def assert_the_same(rates, expected_rates, model, expected_weights):
    assert rates == expected_rates
    for a, b in zip(model.get_weights(), expected_weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_from_a_keras_file(stopped):
    folder, name, rates, weights = stopped
    model = keras.saving.load_model(folder / f"{name}.keras")
    resumed = resume_job.fit(model, name, initial_epoch=3)
    assert_the_same(resumed, rates[3 * STEPS :], model, weights)


@pytest.mark.parametrize("schedule_first", [True, False])
def test_from_a_backup_after_a_kill_in_mid_epoch(stopped, schedule_first, tmp_path):
    folder, name, rates, weights = stopped
    # A copy, since the backup is deleted at the end of the fit.
    shutil.copytree(folder / f"backup_{name}", tmp_path / f"backup_{name}")
    model = resume_job.build(name)
    backup = resume_job.backup(tmp_path, name)
    resumed = resume_job.fit(model, name, backup, schedule_first=schedule_first)
    assert_the_same(resumed, rates[3 * STEPS :], model, weights)
