import keras
import numpy as np
import pytest
from helpers import to_numpy
from keras import layers

import keras_trainkit as kt


def deep_relu(depth=20):
    hidden = [layers.Dense(24, activation="relu") for _ in range(depth)]
    return keras.Sequential([keras.Input((12,)), *hidden, layers.Dense(3)])


def before_activations(model, x):
    """What each Dense layer computes before its activation, by hand."""
    for kernel, bias in zip(*[iter(model.get_weights())] * 2, strict=True):
        z = x @ kernel + bias
        yield z
        x = np.maximum(z, 0)


def test_lsuv_gives_each_layer_unit_variance(rng):
    x = 7 * rng.normal(size=(200, 12)).astype("float32")
    model = deep_relu()
    spread = kt.initializers.lsuv(model, x, tolerance=0.01, seed=1)
    stds = [z.std() for z in before_activations(model, x)]
    np.testing.assert_allclose(list(spread.values()), stds, rtol=1e-3)
    np.testing.assert_allclose(np.square(stds), 1, atol=0.01)
    # Orthogonal kernels, up to the scale.
    kernel = model.get_weights()[2].astype(float)
    gram = kernel.T @ kernel
    np.testing.assert_allclose(gram, gram[0, 0] * np.eye(24), atol=1e-4 * gram[0, 0])


def test_lsuv_is_reproducible(rng):
    x = rng.normal(size=(50, 12)).astype("float32")
    models = [deep_relu(2) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        kt.initializers.lsuv(model, x, seed=seed)
    first, same, other = (model.get_weights()[0] for model in models)
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_lsuv_takes_convolutions_and_nested_models(rng):
    inner = keras.Sequential(
        [keras.Input((7, 7, 5)), layers.Conv2DTranspose(4, 2, activation="relu")]
    )
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(5, 2, activation="relu")(inputs)
    x = layers.DepthwiseConv2D(2, activation="relu")(inner(x))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    batch = rng.normal(size=(50, 8, 8, 3)).astype("float32")
    spread = kt.initializers.lsuv(model, batch)
    assert len(spread) == 4
    np.testing.assert_allclose(np.square(list(spread.values())), 1, atol=0.1)
    # Units stand on axis 2 of a transposed convolution's kernel.
    kernel = to_numpy(inner.layers[0].kernel).astype(float)
    kernel = np.moveaxis(kernel, 2, -1).reshape(-1, 4)
    gram = kernel.T @ kernel
    np.testing.assert_allclose(gram, gram[0, 0] * np.eye(4), atol=1e-4 * gram[0, 0])


def test_lsuv_loses_nothing_where_it_fails():
    model = deep_relu(2)
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"finite and differ.* of 0 in 'dense"):
        kt.initializers.lsuv(model, np.zeros((8, 12), "float32"))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert "activation" in vars(model.layers[0])


def test_data_dependent_standardizes_each_unit(rng):
    wrap = kt.layers.WeightNormalization
    model = keras.Sequential(
        [
            keras.Input((12,)),
            wrap(layers.Dense(8, activation="relu")),
            layers.Dropout(0.5),
            wrap(layers.Dense(4)),
        ]
    )
    x = (2 + 3 * rng.normal(size=(200, 12))).astype("float32")
    assert len(kt.initializers.data_dependent(model, x)) == 2
    y = to_numpy(model(x))
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(y.std(0), 1, atol=1e-4)
    plain = keras.Sequential([keras.Input((12,))])
    for layer in model.layers:
        plain.add(layer.strip() if isinstance(layer, wrap) else layers.Dropout(0.5))
    np.testing.assert_allclose(to_numpy(plain(x)), y, atol=1e-5)
    hidden = next(before_activations(plain, x))
    np.testing.assert_allclose(hidden.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(hidden.std(0), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: kt.initializers.lsuv(m, x, tolerance=0), r"tolerance=0"),
        (lambda m, x: kt.initializers.lsuv(m, x, max_iterations=0), r"iterations=0"),
        (lambda m, x: kt.initializers.lsuv(keras.Sequential(), x), r"built"),
        (lambda m, x: kt.initializers.data_dependent(m, x), r"WeightNormalization"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(deep_relu(1), np.ones((4, 12), "float32"))
