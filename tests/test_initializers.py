import keras
import numpy as np
import pytest
from helpers import to_numpy
from keras import layers
from sklearn.datasets import load_digits

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
    names = [layer.name for layer in model.layers]
    assert list(spread) == [
        names[1],
        f"{inner.name}/{inner.layers[0].name}",
        *names[3::2],
    ]
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


def residual(blocks, units=16):
    """Dense blocks with skips and no normalization; 110 layers for 54 blocks."""
    init = {"kernel_initializer": "he_normal"}
    inputs = keras.Input((64,))
    x = keras.layers.Dense(units, "relu", **init)(inputs)
    for _ in range(blocks):
        y = keras.layers.Dense(units, "relu", bias_initializer="ones", **init)(x)
        y = keras.layers.Dense(units, **init)(y)
        x = keras.layers.ReLU()(x + y)
    return keras.Model(inputs, keras.layers.Dense(10, "softmax", **init)(x))


@pytest.mark.slow
def test_fixup_trains_110_layers_where_he_does_not():
    x, y = load_digits(return_X_y=True)
    x = x[:512].astype("float32") / 16
    losses = {}
    for name in ("he", "fixup"):
        keras.utils.set_random_seed(0)
        model = residual(54)
        if name == "fixup":
            kt.initializers.fixup(model)
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        model.compile(optimizer, "sparse_categorical_crossentropy")
        first = model.evaluate(x, y[:512], verbose=0)
        model.fit(x, y[:512], epochs=10, batch_size=64, verbose=0)
        losses[name] = first, model.evaluate(x, y[:512], verbose=0)
    assert losses["fixup"][0] == pytest.approx(np.log(10), rel=1e-4)
    assert losses["fixup"][1] < 1.0
    assert not losses["he"][1] < 2.2


def test_fixup_scales_by_the_number_of_branches():
    model = residual(4)
    before = model.get_weights()
    factors = kt.initializers.fixup(model)
    after = model.get_weights()
    # The stem stays; m = 2 layers in each of L = 4 branches: 4 ** (-1 / 2).
    np.testing.assert_array_equal(before[0], after[0])
    for block in range(4):
        first, bias, last = (2 + 4 * block + k for k in (0, 1, 2))
        np.testing.assert_allclose(after[first], before[first] / 2, rtol=1e-6)
        assert not after[bias].any()
        assert not after[last].any()
    assert not after[-2].any()
    assert sorted(factors.values()) == [0.0] * 5 + [0.5] * 4


def test_fixup_refuses_what_is_not_for_it():
    plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="a model with residual branches"):
        kt.initializers.fixup(plain)
    resnet = kt.models.build_cifar_resnet((8, 8, 3), 2, depth=8)
    with pytest.raises(ValueError, match="without normalization layers"):
        kt.initializers.fixup(resnet)
