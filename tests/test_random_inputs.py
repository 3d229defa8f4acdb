"""Copies are compared on inputs that the model takes."""

import math

import keras
import numpy as np
import pytest
from helpers import randomize_norms, to_numpy
from keras import layers, ops

import keras_trainkit as kt

fold = kt.folding.fold_batch_norm
optimize = kt.export.optimize_for_inference
on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="strings need TensorFlow"
)


class Positions(layers.Layer):
    """A table of positions; a longer sequence is an error on TensorFlow."""

    def __init__(self, length):
        super().__init__()
        self.table = layers.Embedding(length, 6)

    def call(self, x):
        return x + self.table(ops.arange(ops.shape(x)[1]))


class Ascending(layers.Layer):
    """Refuses what is not sorted, as random numbers are not."""

    def compute_output_shape(self, shape):
        return shape

    def call(self, x):
        if np.any(np.diff(to_numpy(x)) < 0):
            raise ValueError("not sorted")
        return x


def normalized(x, width=6):
    return layers.BatchNormalization()(layers.Dense(width)(x))


def same(model, copy, x):
    expected = to_numpy(model(x))
    found = to_numpy(copy(x))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_fewer_positions_than_an_open_size_has(rng):
    x = keras.Input((None,), dtype="int32")
    y = Positions(8)(layers.Embedding(20, 6)(x))
    model = randomize_norms(keras.Model(x, layers.Dense(2)(normalized(y))))
    result = fold(model)
    assert len(result.folded) == 1
    assert result.max_error <= 1e-5
    same(model, optimize(model), rng.integers(0, 20, (3, 8)))


@on_tensorflow
def test_strings_beside_numbers():
    import tensorflow as tf

    inputs = {
        "job": keras.Input((1,), dtype="string", name="job"),
        "age": keras.Input((1,), name="age"),
    }
    job = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(
        inputs["job"]
    )
    y = normalized(layers.Concatenate()([job, inputs["age"]]))
    model = randomize_norms(keras.Model(inputs, layers.Dense(2)(y)))
    data = {"job": tf.constant([["a"], ["c"]]), "age": tf.constant([[1.0], [2.0]])}
    result = fold(model)
    assert len(result.folded) == 1
    same(model, result.model, data)
    same(model, optimize(model), data)


class TwoParts(keras.Model):
    """With an argument that no config holds."""

    def __init__(self, body, head):
        super().__init__()
        self.body, self.head = body, head

    def call(self, x):
        return self.head(self.body(x))


def test_a_subclassed_model_without_a_config(rng):
    x = keras.Input((4,))
    model = TwoParts(keras.Model(x, normalized(x)), layers.Dense(2))
    data = rng.normal(size=(3, 4)).astype("float32")
    model(data)
    randomize_norms(model)
    result = fold(model, data)
    assert len(result.folded) == 1
    assert type(result.model) is TwoParts
    assert result.model.count_params() < model.count_params()
    assert len(model.weights) == 8
    same(model, result.model, data)


class Doubling(keras.Model):
    def call(self, x, training=None):
        return 2 * super().call(x, training=training)


def test_a_class_with_its_own_call_has_the_inputs_of_its_graph():
    x = keras.Input((4,))
    result = fold(Doubling(x, normalized(x)))
    assert list(result.kept) == ["batch_normalization"]
    assert result.max_error == 0


def test_a_model_that_takes_no_random_inputs():
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(2)(normalized(Ascending()(x))))
    result = fold(model)
    assert math.isnan(result.max_error)
    assert "not compared with the model: give `x`" in result.summary()
    with pytest.raises(ValueError, match=r"unless `x` is given .*not sorted.*model="):
        optimize(model)
    x = np.arange(8, dtype="float32").reshape(2, 4)
    assert fold(model, x).max_error <= 1e-5
    same(model, optimize(model, x=x), x)


class Resized(layers.Layer):
    """Calls a layer that trains by default in front of a BatchNorm."""

    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(3, 1)
        self.norm = layers.BatchNormalization()

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build(shape)

    def call(self, x):
        return self.norm(layers.Resizing(4, 4)(self.conv(x)))


def test_opening_a_block_leaves_its_statistics_alone(rng):
    model = keras.Sequential([keras.Input((4, 4, 3)), Resized(), layers.Conv2D(2, 1)])
    model = randomize_norms(model)
    result = fold(model)
    assert result.max_error <= 1e-5
    x = rng.normal(size=(3, 4, 4, 3)).astype("float32")
    expected = to_numpy(model(x, training=False))
    found = to_numpy(result.model(x, training=False))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
