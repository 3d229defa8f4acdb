import keras
import numpy as np
import pytest

import keras_trainkit as kt

layers = keras.layers


class _Block(layers.Layer):
    """Not registered, with layers inside."""

    def __init__(self):
        super().__init__()
        self.first, self.second = layers.Dense(6, name="first"), layers.Dense(6)

    def call(self, x):
        return x + self.second(keras.ops.relu(self.first(x)))


@pytest.fixture
def model():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(6, 3, activation="relu", name="conv"),
            layers.GlobalAveragePooling2D(),
            _Block(),
            layers.Dense(3, activation="softmax", name="head"),
        ]
    )


@pytest.fixture
def data(rng):
    x = rng.normal(size=(100, 8, 8, 1)).astype("float32")
    return x, rng.integers(0, 3, 100)


def test_layers_of_one_name_have_paths_that_differ():
    parts = [keras.Sequential([layers.Dense(4, name="dense")]) for _ in range(2)]
    model = keras.Sequential([keras.Input((4,)), *parts])
    report = kt.export.quantization_report(model, np.ones((5, 4), "float32"))
    assert [c.name for c in report.layers] == [f"{part.name}/dense" for part in parts]


def test_layers_that_are_easy_to_quantize(model, data):
    x, y = data
    before = [w.copy() for w in model.get_weights()]
    expected = model.predict(x, verbose=0)
    report = kt.export.quantization_report(model, x, y)
    assert [cost.name for cost in report.layers][:2] == ["conv", "__block/first"]
    assert len(report.layers) == 4
    # Uniform rounding of 8 bits loses about 6 dB for each bit.
    assert all(30 < cost.snr < cost.weights_snr < 70 for cost in report.layers)
    assert report.accuracy == np.mean(expected.argmax(1) == y)
    rows = np.arange(len(y))
    np.testing.assert_allclose(report.nll, -np.log(expected[rows, y]).mean(), rtol=1e-4)
    assert "head" in repr(report)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)


def test_the_ratio_of_a_dense_layer_is_that_of_numpy(rng):
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4)])
    kernel, bias = model.get_weights()
    x = rng.normal(size=(300, 5)).astype("float32")
    (cost,) = kt.export.quantization_report(model, x).layers
    exact = x @ kernel.astype("float64") + bias
    scale = np.abs(kernel).max(0) / 127
    near = x @ (np.round(kernel / scale) * scale) + bias
    by_channel = (exact**2).sum(0) / ((near - exact) ** 2).sum(0)
    np.testing.assert_allclose(
        cost.weights_snr, np.mean(10 * np.log10(by_channel)), rtol=1e-3
    )
    step = (exact.max() - exact.min()) / 255
    error = (exact**2).sum(0) / ((near - exact) ** 2 + step**2 / 12).sum(0)
    np.testing.assert_allclose(cost.snr, np.mean(10 * np.log10(error)), atol=1)
    assert cost.accuracy is None


def test_a_planted_outlier_channel_is_found(model, data):
    kernel, bias = model.layers[2].first.get_weights()
    clean = kt.export.quantization_report(model, data[0])
    # The next layer undoes it: the model is the same, its int8 file is not.
    kernel[:, 2] *= 1000
    model.layers[2].first.set_weights([kernel, bias])
    second, other = model.layers[2].second.get_weights()
    second[2] /= 1000
    model.layers[2].second.set_weights([second, other])
    report = kt.export.quantization_report(model, data[0])
    assert report.worst.name == "__block/first"
    cost, before = report.layers[1], clean.layers[1]
    assert cost.snr < before.snr - 20
    # Each channel has its own scale, so that the weights are not to blame.
    assert abs(cost.weights_snr - before.weights_snr) < 1


def test_an_outlier_among_the_weights_is_found(model, data):
    kernel, bias = model.get_layer("head").get_weights()
    dead = keras.Sequential([keras.Input((6,)), model.get_layer("head")])
    x = np.random.default_rng(0).normal(size=(100, 6)).astype("float32")
    x[:, 0] *= 1e-4
    before = kt.export.quantization_report(dead, x).layers[0]
    kernel[0] = 500.0
    model.get_layer("head").set_weights([kernel, bias])
    after = kt.export.quantization_report(dead, x).layers[0]
    assert after.weights_snr < before.weights_snr - 20


def test_several_inputs_and_recurrent_layers(rng):
    a, b = keras.Input((4, 3), name="a"), keras.Input((4,), dtype="int32", name="b")
    words = layers.Embedding(9, 3)(b)
    both = layers.SimpleRNN(5)(layers.Concatenate()([a, words]))
    model = keras.Model({"a": a, "b": b}, [layers.Dense(1)(both), both])
    x = {"a": rng.normal(size=(20, 4, 3)), "b": rng.integers(0, 9, (20, 4))}
    report = kt.export.quantization_report(model, x)
    assert len(report.layers) == 3
    assert all(20 < cost.snr < 80 for cost in report.layers)


def test_bad_arguments(model, data):
    x, y = data
    with pytest.raises(ValueError, match="`model` must be a built keras"):
        kt.export.quantization_report(keras.Sequential([layers.Dense(1)]), x)
    with pytest.raises(ValueError, match="`y` must be as many targets"):
        kt.export.quantization_report(model, x, y[:3])
    empty = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten()])
    with pytest.raises(ValueError, match="layers that have float kernels"):
        kt.export.quantization_report(empty, x)
