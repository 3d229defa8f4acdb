import keras
import numpy as np
import pytest

import keras_trainkit as kt


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(40, 8, 8, 1)).astype("float32")


# A float16 mantissa has 11 bits, an int8 value 8: the error of a probability.
@pytest.mark.parametrize(
    ("quantization", "error", "size"),
    [(None, 1e-5, 1.0), ("float16", 1e-2, 0.6), ("dynamic", 0.05, 0.4)],
)
def test_litert_file_predicts_as_the_model_does(
    model, x, tmp_path, quantization, error, size
):
    path = kt.export.to_litert(model, tmp_path / "m.tflite", quantization)
    assert [p.name for p in tmp_path.iterdir()] == ["m.tflite"]
    outputs = kt.export.predict_litert(path, x)
    np.testing.assert_allclose(outputs, model.predict(x, verbose=0), atol=error)
    floats = sum(w.size for w in model.get_weights()) * 4
    assert path.stat().st_size < floats * size + 5000


def test_int8_has_int8_weights_and_activations(model, x, tmp_path):
    path = kt.export.to_litert(
        model, tmp_path / "m.tflite", "int8", representative_data=x
    )
    outputs = kt.export.predict_litert(path, x)
    np.testing.assert_allclose(outputs, model.predict(x, verbose=0), atol=0.1)
    details = kt.export.load_litert(path).get_tensor_details()
    assert sum(d["dtype"] is np.int8 for d in details) >= 8


def test_a_file_is_replaced_whole_or_not_at_all(model, tmp_path, monkeypatch):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"old")

    def broken(*args, **kwargs):
        raise RuntimeError("the conversion broke")

    monkeypatch.setattr(model, "export", broken)
    monkeypatch.setattr(model, "save", broken)
    with pytest.raises(RuntimeError, match="the conversion broke"):
        kt.export.to_litert(model, path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.tflite"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"path": "m.onnx"}, r"`path` must be a file name that ends in .tflite"),
        ({"quantization": "int4"}, "`quantization` must be one of None, 'float16'"),
        ({"quantization": "int8"}, "`representative_data` must be an array"),
    ],
)
def test_bad_arguments(model, tmp_path, monkeypatch, kwargs, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        kt.export.to_litert(**{"model": model, "path": "m.tflite", **kwargs})
    assert not list(tmp_path.iterdir())
