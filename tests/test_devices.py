"""Many devices give what one gives, up to the order of sums.

The whole, which takes minutes: `pytest -m slow tests/test_devices.py`.
"""

import json
import os
import subprocess
import sys

import devices_job
import keras
import numpy as np
import pytest

JAX = pytest.mark.skipif(keras.backend.backend() != "jax", reason="keras.distribution")


def run_on_eight(engines, *names):
    flags = "--xla_force_host_platform_device_count=8"
    run = subprocess.run(
        [sys.executable, devices_job.__file__, engines, *names],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def check_equal(one, many):
    """As equal as sums are that are added in another order."""
    assert set(one) == set(many)
    for name in set(one) - {"shares"}:
        assert not isinstance(one[name], str), f"{name}: {one[name]}"
        assert not isinstance(many[name], str), f"{name}: {many[name]}"
        for got, want in zip(many[name], one[name], strict=True):
            got, want = np.array(got), np.array(want)
            atol = 1e-4 * np.abs(want).max(initial=1e-3)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=atol, err_msg=name)


@JAX
def test_data_parallel():
    names = [feature.__name__ for feature in devices_job.QUICK]
    found = run_on_eight("one,data_parallel", *names)
    one, eight = found["one"], found["data_parallel"]
    check_equal(one, eight)
    # Before dropout and behind it. Fewer rows than devices are not divided before it.
    assert eight["shares"] == [8, 8, 1, 8]
    assert set(one["shares"]) == {1}
    # The last rate of OneCycle's three epochs, by its definition.
    assert eight["one_cycle"][0][-1] == pytest.approx(0.1 / 25 / 1e4, rel=1e-3)
    assert np.isfinite(eight["find_lr"][1][0])


@JAX
@pytest.mark.slow
def test_every_feature_on_a_mesh():
    found = run_on_eight("one,data_parallel,model_parallel")
    check_equal(found["one"], found["data_parallel"])
    check_equal(found["one"], found["model_parallel"])
    assert found["data_parallel"]["shares"] == [8, 8, 1, 8, 8, 8]
    # The mesh has two rows of four: batches are halved, weights are divided by four.
    assert found["model_parallel"]["shares"] == [2] * 6
