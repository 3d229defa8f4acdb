"""Kinds of inputs and outputs: strings, lists, dicts, several outputs, data sets."""

import keras
import numpy as np
from keras import layers, ops

from .registry import Case, Skip, case, integers, random

ROWS = 8


def _tensorflow_alone():
    if keras.backend.backend() != "tensorflow":
        raise Skip("strings inside a model need TensorFlow")


@case
def string_lookup():
    _tensorflow_alone()
    import tensorflow as tf

    lookup = layers.StringLookup()
    lookup.adapt(np.array(["red", "green", "blue"]))
    x = keras.Input((2,), dtype="string")
    y = layers.Flatten()(layers.Embedding(5, 4)(lookup(x)))
    model = keras.Model(x, layers.Dense(2)(layers.Dropout(0.5)(y)))
    words = np.array(["red", "green", "blue", "other"])[integers(4, ROWS, 2)]
    return Case(model, tf.constant(words), random(ROWS, 2), inputs=tf.constant(words))


@case
def text_vectorization():
    _tensorflow_alone()
    import tensorflow as tf

    vectorize = layers.TextVectorization(50, output_sequence_length=6)
    vectorize.adapt(np.array(["the cat sat", "a dog ran", "the dog sat"]))
    x = keras.Input((1,), dtype="string")
    y = layers.Embedding(50, 8, mask_zero=True)(vectorize(x))
    y = layers.Dropout(0.5)(layers.GlobalAveragePooling1D()(y))
    model = keras.Model(x, layers.Dense(2)(y))
    words = np.array([["the cat ran"], ["a dog sat"]] * 4)
    return Case(model, tf.constant(words), random(ROWS, 2))


@case
def integer_lookup_and_discretization():
    _tensorflow_alone()
    x = {
        "code": keras.Input((1,), dtype="int64", name="code"),
        "age": keras.Input((1,), name="age"),
    }
    code = layers.IntegerLookup(vocabulary=[3, 5, 7], output_mode="one_hot")(x["code"])
    age = layers.Discretization([20.0, 40.0, 60.0], output_mode="one_hot")(x["age"])
    y = layers.Dense(8, "relu")(layers.Concatenate()([code, age]))
    model = keras.Model(x, layers.Dense(1)(layers.Dropout(0.5)(y)))
    data = {
        "code": np.array([[3], [5], [7], [9]] * 2, "int64"),
        "age": np.linspace(10, 70, ROWS).astype("float32")[:, None],
    }
    return Case(model, data, random(ROWS, 1))


def _two_inputs():
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    y = layers.Concatenate()([layers.Dense(8, "relu")(a), layers.Dense(8)(b)])
    return a, b, layers.Dense(2)(layers.Dropout(0.5)(layers.BatchNormalization()(y)))


@case
def inputs_as_list():
    a, b, y = _two_inputs()
    return Case(
        keras.Model([a, b], y), [random(ROWS, 4), random(ROWS, 3)], random(ROWS, 2)
    )


@case
def inputs_as_tuple():
    a, b, y = _two_inputs()
    return Case(
        keras.Model((a, b), y), (random(ROWS, 4), random(ROWS, 3)), random(ROWS, 2)
    )


@case
def inputs_as_dict():
    a, b, y = _two_inputs()
    return Case(
        keras.Model({"a": a, "b": b}, y),
        {"a": random(ROWS, 4), "b": random(ROWS, 3)},
        random(ROWS, 2),
        eager=False,
    )


@case
def several_outputs():
    x = keras.Input((6,))
    y = layers.Dropout(0.5)(layers.Dense(8, "relu")(x))
    outputs = {
        "kind": layers.Dense(3, "softmax", name="kind")(y),
        "size": layers.Dense(1, name="size")(y),
    }
    return Case(
        keras.Model(x, outputs),
        random(ROWS, 6),
        {"kind": integers(3, ROWS), "size": random(ROWS, 1)},
        loss={"kind": "sparse_categorical_crossentropy", "size": "mse"},
    )


@case
def outputs_as_list():
    x = keras.Input((8, 8, 3))
    y = layers.BatchNormalization()(layers.Conv2D(8, 3, activation="relu")(x))
    y = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(y))
    model = keras.Model(x, [layers.Dense(2)(y), layers.Dense(3)(y)])
    return Case(
        model, random(ROWS, 8, 8, 3), [random(ROWS, 2), random(ROWS, 3)],
        loss=["mse", "mse"],
    )  # fmt: skip


class AddsItsLoss(layers.Layer):
    """Adds the loss, as for models that have no targets."""

    def call(self, inputs):
        x, y = inputs
        self.add_loss(ops.mean(ops.square(x - y)))
        return y


@case
def no_targets():
    x = keras.Input((6,))
    y = layers.Dense(6)(layers.Dropout(0.2)(layers.Dense(3, "relu")(x)))
    model = keras.Model(x, AddsItsLoss()([x, y]))
    return Case(model, random(ROWS, 6), loss=None, custom={"AddsItsLoss": AddsItsLoss})


class Batches(keras.utils.PyDataset):
    """Batches of a data set of the user's own."""

    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    def __len__(self):
        return 2

    def __getitem__(self, index):
        rows = slice(4 * index, 4 * index + 4)
        return tuple(array[rows] for array in self.arrays)


@case
def own_data_set():
    x = keras.Input((6,))
    y = layers.Dropout(0.5)(layers.Dense(8, "relu")(x))
    model = keras.Model(x, layers.Dense(2)(y))
    arrays = random(ROWS, 6), random(ROWS, 2)
    return Case(model, Batches(*arrays), inputs=arrays[0])


@case
def sample_weights_and_masks():
    x = keras.Input((5,), dtype="int32")
    y = layers.Embedding(20, 8, mask_zero=True)(x)
    y = layers.LSTM(8, return_sequences=True, dropout=0.2)(y)
    model = keras.Model(x, layers.TimeDistributed(layers.Dense(4, "softmax"))(y))
    return Case(
        model,
        integers(20, ROWS, 5),
        integers(4, ROWS, 5),
        loss="sparse_categorical_crossentropy",
        fit={"sample_weight": np.linspace(0.5, 1, 5 * ROWS).reshape(ROWS, 5)},
    )
