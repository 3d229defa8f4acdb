import gzip

import keras
import numpy as np
import pytest
from helpers import save_and_load

import keras_trainkit as kt


@pytest.fixture
def model():
    inner = keras.Sequential([keras.layers.Dense(7, activation="relu")], name="inner")
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.SeparableConv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            inner,
            keras.layers.Dense(3),
        ]
    )


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.75])
def test_the_smallest_weights_go(model, sparsity, tmp_path):
    before = model.get_weights()
    pruned = kt.pruning.prune_once(model, sparsity)
    for mine, a, b in zip(pruned.weights, before, pruned.get_weights(), strict=True):
        if "kernel" not in mine.name:
            np.testing.assert_array_equal(a, b)
            continue
        gone = b == 0
        assert gone.sum() == round(sparsity * a.size)
        np.testing.assert_array_equal(a[~gone], b[~gone])
        if 0 < gone.sum() < a.size:
            assert np.abs(a[gone]).max() <= np.abs(a[~gone]).min()
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    loaded = save_and_load(pruned, tmp_path)
    x = np.random.default_rng(0).normal(size=(3, 6, 6, 2))
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), pruned.predict(x, verbose=0), atol=1e-6
    )


def test_of_equal_magnitudes_the_first_go():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.layers[0].set_weights([np.array([[1, -1]] * 4), np.zeros(2)])
    kernel = kt.pruning.prune_once(model, 0.5).get_weights()[0]
    np.testing.assert_array_equal(kernel, [[0, 0], [0, 0], [1, -1], [1, -1]])


def test_report_counts(model):
    report = kt.pruning.sparsity_report(kt.pruning.prune_once(model, 0.5))
    sizes = {layer.path.split("/")[-1]: layer for layer in report.layers[:2]}
    assert sizes["depthwise_kernel"].parameters == 3 * 3 * 2
    assert sizes["depthwise_kernel"].sparsity == 0.5
    assert sizes["pointwise_kernel"].nonzeros == 4
    assert report.parameters == model.count_params()
    assert report.raw_bytes == 4 * report.parameters
    text = report.summary()
    assert "50.0%" in text
    assert f"{report.gzip_bytes:,} after gzip" in text
    assert "faster" not in text


def test_gzip_size_is_that_of_the_weights():
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10)])
    raw = b"".join(w.tobytes() for w in model.get_weights())
    report = kt.pruning.sparsity_report(model)
    assert report.raw_bytes == len(raw)
    assert report.gzip_bytes == len(gzip.compress(raw))


@pytest.mark.parametrize("sparsity", [-0.1, 1, "half"])
def test_bad_sparsity(model, sparsity):
    with pytest.raises(ValueError, match=r"`sparsity` must be a number in \[0, 1\)"):
        kt.pruning.prune_once(model, sparsity)
