import keras
import numpy as np
import pytest
from helpers import once, randomize_norms, save_and_load

import keras_trainkit as kt

layers = keras.layers
optimize = kt.export.optimize_for_inference
rng = np.random.default_rng(0)


def kinds(model):
    return [type(layer).__name__ for layer in model.layers]


def sequential(shape, *parts):
    keras.utils.set_random_seed(0)
    return randomize_norms(keras.Sequential([keras.Input(shape), *parts]))


def assert_same(a, b, shape, tolerance=1e-5):
    x = rng.normal(size=(4, *shape)).astype("float32")
    y, z = (np.asarray(m.predict_on_batch(x), "float32") for m in (a, b))
    np.testing.assert_allclose(y, z, atol=tolerance * np.abs(y).max())


def test_all_at_once(tmp_path):
    shape = (9, 9, 3)
    model = sequential(
        shape,
        layers.Rescaling(1 / 2),
        layers.ZeroPadding2D(1),
        layers.Conv2D(4, 3, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.SpatialDropout2D(0.2),
        layers.DepthwiseConv2D(3),
        layers.BatchNormalization(),
        layers.ReLU(max_value=6),
        layers.GaussianNoise(0.1),
        layers.Flatten(),
        layers.Dense(30),
        layers.Dropout(0.5),
        layers.Dense(3),
        layers.Softmax(),
    )
    before = [w.copy() for w in model.get_weights()]
    small = optimize(model)
    assert kinds(small) == [
        "Rescaling",
        "Conv2D",
        "DepthwiseConv2D",
        "Flatten",
        "Dense",
    ]
    assert [layer.activation.__name__ for layer in small.layers if layer.weights] == [
        "relu",
        "relu6",
        "softmax",
    ]
    assert_same(model, small, shape)
    assert_same(model, save_and_load(small, tmp_path), shape)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("size", "padding", "strides", "merged"),
    [
        (8, 1, 1, True),
        (9, 1, 2, True),
        (8, 1, 2, False),  # "same" pads nothing in front of an even size here
        (8, ((0, 1), (0, 1)), 2, True),
        (8, 2, 1, False),
        (None, 1, 1, True),
        (None, 1, 2, False),
    ],
)
def test_padding_becomes_same_where_it_is(size, padding, strides, merged):
    model = sequential(
        (size, size, 2), layers.ZeroPadding2D(padding), layers.Conv2D(3, 3, strides)
    )
    small = optimize(model)
    assert kinds(small) == ["Conv2D"] if merged else ["ZeroPadding2D", "Conv2D"]
    assert_same(model, small, (size or 11, size or 11, 2))


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, False)])
def test_dense_layers_become_one(biases):
    first, second = biases
    model = sequential(
        (5,),
        layers.Dense(20, use_bias=first),
        layers.Dense(4, use_bias=second, activation="elu"),
    )
    small = optimize(model)
    assert kinds(small) == ["Dense"]
    assert small.layers[0].use_bias == (first or second)
    assert_same(model, small, (5,))


def test_a_factorization_that_saves_products_stays():
    model = sequential((50,), layers.Dense(2), layers.Dense(40))
    assert kinds(optimize(model)) == ["Dense", "Dense"]


def test_what_is_used_elsewhere_stays():
    inputs = keras.Input((5,))
    dense = layers.Dense(6)
    x = dense(inputs)
    y = layers.ReLU()(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.Add()([x, y])))
    small = optimize(model)
    assert kinds(small) == ["InputLayer", "Dense", "ReLU", "Add", "Dense"]
    assert_same(model, small, (5,))
    # A layer that is used twice has no activation of its own to give.
    model = keras.Model(
        inputs, layers.Dense(2)(layers.ReLU()(dense(inputs)) + dense(inputs))
    )
    assert_same(model, optimize(model), (5,))


def test_monte_carlo_dropout_stays_unless_asked():
    model = sequential(
        (5,),
        layers.Dense(6),
        layers.BatchNormalization(),
        kt.layers.MCDropout(0.3),
        layers.Dense(2),
        kt.layers.MCAlphaDropout(0.3),
        layers.Activation("selu"),
    )
    assert kinds(optimize(model)) == [
        "Dense",
        "MCDropout",
        "Dense",
        "MCAlphaDropout",
        "Activation",
    ]
    assert kinds(optimize(model, drop_mc=True)) == ["Dense"]
    recurrent = keras.Sequential(
        [keras.Input((4, 2)), kt.layers.MCLSTM(3, dropout=0.2)]
    )
    with pytest.raises(ValueError, match="`drop_mc` must be False"):
        optimize(recurrent, drop_mc=True)


@pytest.mark.parametrize(("dtype", "error"), [("float16", 1e-2), ("bfloat16", 5e-2)])
def test_cast(dtype, error):
    model = sequential(
        (6, 6, 2),
        layers.Conv2D(4, 3),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3),
    )
    small = optimize(model, dtype=dtype)
    assert {w.dtype for w in small.weights} == {dtype}
    x = rng.normal(size=(4, 6, 6, 2)).astype("float32")
    y = keras.ops.convert_to_numpy(model(x))
    z = keras.ops.convert_to_numpy(keras.ops.cast(small(x), "float32"))
    assert 0 < np.abs(y - z).max() < error * np.abs(y).max()


@once
def test_mobilenet():
    model = randomize_norms(
        keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), classes=5)
    )
    small = optimize(model)
    assert not {"BatchNormalization", "ReLU", "ZeroPadding2D"} & set(kinds(small))


def test_bad_arguments():
    model = sequential((5,), layers.Dense(2))
    with pytest.raises(ValueError, match="`dtype` must be one of None, 'float16'"):
        optimize(model, dtype="int8")
    with pytest.raises(ValueError, match="a Functional or a built Sequential"):
        optimize(keras.Model())
