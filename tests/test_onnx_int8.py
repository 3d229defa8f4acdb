"""Quantization-aware models as ONNX that onnxruntime computes in int8."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_trainkit as kt


def _slow_elsewhere(test):
    """The other backends start a process with TensorFlow."""
    on_tensorflow = keras.backend.backend() == "tensorflow"
    return test if on_tensorflow else pytest.mark.slow(test)


@pytest.fixture(scope="module")
def data():
    return kt.datasets.load("digits")


@pytest.fixture(scope="module")
def quantized(data):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input(data.input_shape),
            layers.Conv2D(8, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    quantized = kt.quantization.quantize_aware(model)
    quantized.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    quantized.fit(*data.train, epochs=3, batch_size=32, verbose=0)
    return quantized


@_slow_elsewhere
def test_onnxruntime_computes_in_int8_what_the_model_does(quantized, data, tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    path = kt.export.to_onnx(quantized, tmp_path / "m.onnx")
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    session = runtime.InferenceSession(path, options, ["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    (found,) = session.run(None, {given.name: data.x_test})
    expected = quantized.predict(data.x_test, verbose=0)
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.995
    # The steps of a probability are 1/256 wide.
    assert np.abs(found - expected).mean() <= 1 / 256
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    kinds = [node.op_type for node in nodes]
    assert kinds.count("QLinearConv") == 2
    assert not {"Conv", "MatMul", "Gemm"} & set(kinds)
    kernels = [w for w in onnx.load(path).graph.initializer if len(w.dims) > 1]
    assert {w.data_type for w in kernels} == {onnx.TensorProto.INT8}


def test_what_has_no_trained_ranges_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    quantized = kt.quantization.quantize_aware(model)
    with pytest.raises(ValueError, match="trained for a step or more, to have ranges"):
        kt.export.to_onnx(quantized, tmp_path / "m.onnx")
    quantized = kt.quantization.quantize_aware(model, activation_bits=16)
    with pytest.raises(ValueError, match="`activation_bits` must be 8"):
        kt.export.to_onnx(quantized, tmp_path / "m.onnx")
