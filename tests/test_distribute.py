"""Two devices give what one gives."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("tf.distribute is TensorFlow's", allow_module_level=True)

import distribute_job


@pytest.fixture(scope="module")
def results():
    run = subprocess.run(
        [sys.executable, distribute_job.__file__], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize(("name", "optimizer"), distribute_job.CASES)
def test_mirrored_strategy(results, name, optimizer):
    one, two = results[f"{name} {optimizer}"]
    np.testing.assert_allclose(two[0], one[0], rtol=1e-6)
    assert two[1] == one[1] == 24
    for weight, expected in zip(two[2], one[2], strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-5)
    if name == "ExponentialSchedule":
        # By the closed form, at the last step of each epoch of six steps.
        rates = [0.1 * 0.1 ** (step / 6) for step in (5, 11)]
        np.testing.assert_allclose(two[0], 2 * rates, rtol=1e-5)
    if name == "MagnitudePruning":
        for kernel in two[2][::2]:
            assert np.mean(np.array(kernel) == 0) == 0.5


def test_a_range_test_over_replicas_is_refused(results):
    assert len(results["refused"]) == 2
    for message in results["refused"]:
        assert "on one device, with the global batch size" in message
        assert message.endswith("with 2 replicas'")
