"""Quantization-aware training against rounding written out in NumPy, and LiteRT."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_trainkit as kt


def rounded(x, low, high, levels=255):
    """What an asymmetric grid that has zero on it makes of values."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / levels
    zero = np.round(-low / step)
    return (np.clip(np.round(x / step) + zero, 0, levels) - zero) * step


def data(shape=(8, 8, 3), rows=64):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, *shape)).astype("float32")


def cnn():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(5),
        ]
    )


def trained(model, x, **options):
    quantized = kt.quantization.quantize_aware(model, **options)
    quantized.compile(keras.optimizers.Adam(1e-3), "mse")
    quantized.fit(x, np.zeros((len(x), *model.output_shape[1:])), 16, verbose=0)
    return quantized


@pytest.mark.parametrize("bits", [8, 4])
def test_dense_rounds_as_numpy_does(bits):
    x = data((6,), 32)
    dense = layers.Dense(4)
    model = keras.Sequential([keras.Input((6,)), dense])
    quantized = kt.quantization.quantize_aware(model, weight_bits=bits)
    quantized.compile(keras.optimizers.SGD(0.0), "mse")
    quantized.fit(x, np.zeros((32, 4)), 32, verbose=0)
    kernel, bias = dense.get_weights()
    top = 2 ** (bits - 1) - 1
    step = np.abs(kernel).max(0) / top
    taken = rounded(x, x.min(), x.max())
    expected = taken @ (np.round(kernel / step) * step) + bias
    expected = rounded(expected, expected.min(), expected.max())
    got = quantized.predict(x, verbose=0)
    width = expected.max() - expected.min()
    assert np.abs(got - expected).max() <= 1.01 * width / 255
    assert (np.abs(got - expected) < 1e-5).mean() > 0.95


def test_strip_gives_the_layers_and_weights_back():
    model = cnn()
    plain = kt.quantization.strip(kt.quantization.quantize_aware(model))
    assert [type(a) for a in plain.layers] == [type(a) for a in model.layers]
    for before, after in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_file_loads_without_custom_objects(tmp_path):
    x = data()
    quantized = trained(cnn(), x)
    quantized.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        again.predict(x, verbose=0), quantized.predict(x, verbose=0), atol=1e-5
    )


def test_frozen_batch_norm_keeps_its_statistics():
    x = data()
    model = cnn()
    quantized = trained(model, x, freeze_batch_norm=0)
    before = [w for w in model.weights if "moving" in w.path]
    after = [w for w in quantized.weights if "moving" in w.path]
    assert len(before) == len(after) == 4
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))


def test_kept_float_gives_reasons():
    inputs = keras.Input((6,))
    hidden = layers.Dense(4, activation="elu", name="first")(inputs)
    hidden = layers.LayerNormalization(name="norm")(hidden)
    model = keras.Model(inputs, layers.Dense(2, name="last")(hidden))
    quantized = kt.quantization.quantize_aware(model, exclude="last")
    kept = kt.quantization.kept_float(quantized)
    assert set(kept) == {"first/activation", "norm", "last"}
    assert "elu" in kept["first/activation"]


def test_bad_arguments_are_refused():
    model = cnn()
    with pytest.raises(ValueError, match="weight_bits"):
        kt.quantization.quantize_aware(model, weight_bits=3)
    with pytest.raises(ValueError, match="Received: model"):
        kt.quantization.strip(model)
    quantized = kt.quantization.quantize_aware(model)
    with pytest.raises(ValueError, match="not quantized yet"):
        kt.quantization.quantize_aware(quantized)
    with pytest.raises(ValueError, match="trained for a step"):
        kt.export.to_litert(quantized, "model.tflite", "int8")


def one_cycle(dtype, steps_per_execution):
    keras.utils.set_random_seed(0)
    x = data((6,))
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="relu", dtype=dtype),
            layers.Dense(1, dtype=dtype),
        ]
    )
    quantized = kt.quantization.quantize_aware(model)
    quantized.compile("adam", "mse", steps_per_execution=steps_per_execution)
    cycle = kt.callbacks.OneCycle(1e-2)
    losses = quantized.fit(
        x, x[:, :1], 8, 6, callbacks=[cycle], shuffle=False, verbose=0
    ).history["loss"]
    assert losses[-1] < 0.9 * losses[0]
    return quantized


def test_one_cycle_with_several_steps_in_one_call():
    several = 1 if keras.backend.backend() == "torch" else 4
    one, four = one_cycle("float32", 1), one_cycle("float32", several)
    for a, b in zip(one.get_weights(), four.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_one_cycle_in_mixed_precision():
    quantized = one_cycle("mixed_float16", 1)
    assert {w.dtype for w in quantized.trainable_weights} == {"float32"}
    assert all(part.value for layer in quantized.layers for part in layer.ranges)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="one converter")
def test_litert_file_agrees_with_the_model(tmp_path):
    x = data(rows=512)
    quantized = trained(cnn(), x)
    path = kt.export.to_litert(quantized, tmp_path / "model.tflite", "int8")
    got, expected = kt.export.predict_litert(path, x), quantized.predict(x, verbose=0)
    step = (expected.max() - expected.min()) / 255
    assert (got.argmax(1) == expected.argmax(1)).mean() >= 0.995
    assert np.abs(got - expected).mean() <= step
