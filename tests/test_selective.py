"""int8 files with float layers, on a network with a planted outlier channel."""

import re

import keras
import numpy as np
import pytest
from keras import layers

import keras_trainkit as kt

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="each file is made in a process of its own, which takes seconds",
)


FACTOR = 200


@pytest.fixture(scope="module")
def data():
    return kt.datasets.load("digits")


@pytest.fixture(scope="module")
def model(data):
    """A trained network in which a unit is many times as large as the others."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input(data.input_shape),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(32, activation="relu", name="dense"),
            layers.Dropout(0.2),
            layers.Dense(10, activation="softmax", name="dense_1"),
        ]
    )
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(*data.train, epochs=5, batch_size=32, verbose=0)
    # Scaling a ReLU unit and dividing by it afterwards changes nothing in float.
    first, second = model.get_layer("dense"), model.get_layer("dense_1")
    kernel, bias = first.get_weights()
    readers, last = second.get_weights()
    hidden = keras.Model(model.inputs, first.output).predict(data.x_val, verbose=0)
    unit = hidden.max(0).argmax()
    kernel[:, unit] *= FACTOR
    bias[unit] *= FACTOR
    readers[unit] /= FACTOR
    first.set_weights([kernel, bias])
    second.set_weights([readers, last])
    return model


def accuracy(path, data):
    outputs = kt.export.predict_litert(path, data.x_val)
    return np.mean(outputs.argmax(1) == data.y_val)


def float_products(path):
    """The layers whose products are float, from the types of the file's tensors."""
    from ai_edge_litert import schema_py_generated as schema

    file = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    kinds, graph = schema.BuiltinOperator, file.subgraphs[0]
    return [
        graph.tensors[op.outputs[0]].name.decode()
        for op in graph.operators
        if file.operatorCodes[op.opcodeIndex].builtinCode
        in (kinds.CONV_2D, kinds.FULLY_CONNECTED)
        and graph.tensors[op.inputs[0]].type == schema.TensorType.FLOAT32
    ]


def test_few_float_layers_recover_what_outliers_cost(model, data, tmp_path):
    exact = np.mean(model.predict(data.x_val, verbose=0).argmax(1) == data.y_val)
    x, labels = data.x_train[:300], data.y_train[:300]
    plain = kt.export.to_litert(model, tmp_path / "plain.tflite", "int8", x)
    lost = exact - accuracy(plain, data)
    assert lost > 0.1
    path = kt.export.to_litert(
        model, tmp_path / "m.tflite", "int8", x, max_drop=0.005, labels=labels
    )
    assert exact - accuracy(path, data) < 0.2 * lost
    left = float_products(path)
    assert 1 <= len(left) <= 2
    assert all(re.search(r"/dense(_\d)+/", name) for name in left)
    products = 64 * 9 * 16 + 64 * 9 * 16 * 16 + 256 * 32 + 32 * 10
    assert (256 * 32 + 32 * 10) / products < 0.1
    assert kt.export.load_litert(path).get_input_details()[0]["dtype"] is np.float32


def test_nothing_stays_float_without_need(data, tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    path = kt.export.to_litert(
        model, tmp_path / "m.tflite", "int8", x, max_drop=0.1, io_dtype="int8"
    )
    assert float_products(path) == []
    assert kt.export.load_litert(path).get_input_details()[0]["dtype"] is np.int8


def test_bad_arguments(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    x = np.ones((9, 4), "float32")
    for options, match in (
        ({"quantization": "int8", "max_drop": -1}, "`max_drop` must be a finite"),
        ({"max_drop": 0.1}, "`max_drop` must be None unless quantization"),
        ({"labels": x[:, 0]}, "`labels` must be None without `max_drop`"),
        (
            {"quantization": "int8", "max_drop": 0.1},
            "`max_drop` must be None for a model without one output of classes",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            kt.export.to_litert(
                model, tmp_path / "m.tflite", representative_data=x, **options
            )
    assert list(tmp_path.iterdir()) == []
