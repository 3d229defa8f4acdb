import json
import sys

import keras
import numpy as np
import pytest

import keras_trainkit as kt
from keras_trainkit.export._memory import peak_memory


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


def test_inputs_of_every_kind(tmp_path):
    layers = keras.layers
    tokens = keras.Input((5,), dtype="int32")
    words = layers.GlobalAveragePooling1D()(layers.Embedding(4, 3)(tokens))
    image = keras.Input((None, None, 1))
    fixed = keras.Input(batch_shape=(2, 4))
    for i, model in enumerate(
        [
            keras.Model(tokens, layers.Dense(2)(words)),
            keras.Model(image, layers.Conv2D(2, 3, padding="same")(image)),
            keras.Model(fixed, layers.Dense(2)(fixed)),
        ]
    ):
        # Each is compared with the model before it appears.
        assert kt.export.to_litert(model, tmp_path / f"{i}.tflite").exists()
        assert kt.export.to_onnx(model, tmp_path / f"{i}.onnx").exists()


def test_int16x8(model, x, tmp_path):
    path = kt.export.to_litert(model, tmp_path / "m.tflite", "int16x8", x)
    outputs = kt.export.predict_litert(path, x)
    np.testing.assert_allclose(outputs, model.predict(x, verbose=0), atol=0.05)
    kinds = {d["dtype"] for d in kt.export.load_litert(path).get_tensor_details()}
    assert {np.int16, np.int8} <= kinds


def test_onnx_file_predicts_as_the_model_does(model, x, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = kt.export.to_onnx(model, tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    for rows in (1, 7):
        (outputs,) = session.run(None, {given.name: x[:rows]})
        np.testing.assert_allclose(
            outputs, model.predict(x[:rows], verbose=0), atol=1e-5
        )


@pytest.mark.parametrize(
    ("export", "name"),
    [(kt.export.to_litert, "m.tflite"), (kt.export.to_onnx, "m.onnx")],
)
def test_a_file_that_gives_something_else_does_not_appear(
    model, tmp_path, monkeypatch, export, name
):
    other = keras.models.clone_model(model)
    other.set_weights([w + 0.5 for w in model.get_weights()])
    other(np.zeros((1, 8, 8, 1), "float32"))
    # On every backend, whichever of the two the conversion begins with.
    monkeypatch.setattr(model, "export", other.export)
    monkeypatch.setattr(model, "save", other.save)
    with pytest.raises(RuntimeError, match="The file's outputs differ by"):
        export(model, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("quantization", ["float16", "int8"])
def test_a_quantized_file_of_another_model_does_not_appear(
    model, x, tmp_path, monkeypatch, quantization
):
    other = keras.models.clone_model(model)
    other.set_weights([-20 * w for w in model.get_weights()])
    monkeypatch.setattr(model, "export", other.export)
    monkeypatch.setattr(model, "save", other.save)
    with pytest.raises(RuntimeError, match=f"in the mean, more than {quantization}"):
        kt.export.to_litert(model, tmp_path / "m.tflite", quantization, x)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("export", "name", "package"),
    [
        (kt.export.to_litert, "m.tflite", "ai_edge_litert.interpreter"),
        (kt.export.to_onnx, "m.onnx", "onnxruntime"),
    ],
)
def test_what_is_missing_is_named(model, tmp_path, monkeypatch, export, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match="is not installed: pip install"):
        export(model, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_bad_onnx_arguments(model, tmp_path):
    with pytest.raises(ValueError, match=r"a file name that ends in .onnx"):
        kt.export.to_onnx(model, tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="a Functional or a built Sequential"):
        kt.export.to_onnx(keras.Model(), tmp_path / "m.onnx")


# --- the deployment report


@pytest.fixture(scope="module")
def report(model, x, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    y = model.predict(x, verbose=0).argmax(-1)
    y[:10] = (y[:10] + 1) % 3
    model.save(folder / "m.keras")
    variants = {
        "base": model,
        "zeros": kt.pruning.prune_once(model, 0.9),
        "saved": folder / "m.keras",
        "int8": kt.export.to_litert(model, folder / "m.tflite", "int8", x),
    }
    return kt.export.deployment_report(variants, x, y, repetitions=3), variants


def test_report_says_what_each_variant_is(report, model, x):
    report, variants = report
    base, zeros, saved, int8 = report.variants
    assert base.parameters == model.count_params() == saved.parameters
    assert zeros.nonzeros < 0.2 * base.nonzeros
    assert "no speed-up expected" in zeros.note
    assert base.note == saved.note == ""
    products = 6 * 6 * 9 * 4 + 144 * 64 + 64 * 3
    assert base.flops == 2 * products
    assert int8.bytes == variants["int8"].stat().st_size
    assert (int8.runtime, int8.parameters) == ("LiteRT", None)
    assert base.peak_bytes is None
    assert zeros.gzip_bytes < base.gzip_bytes
    assert abs(base.bytes - saved.bytes) < 2000
    # 10 of the 40 labels were made wrong.
    assert base.accuracy == saved.accuracy == 0.75
    assert base.max_difference == 0
    assert 0 < int8.max_difference < 0.2
    for variant in report.variants:
        assert [time.batch_size for time in variant.latencies] == [1, 32]
        assert all(0 < time.median <= time.p95 for time in variant.latencies)


def test_report_as_text(report):
    report, _ = report
    rows = [row for row in report.to_markdown().splitlines() if row.startswith("|")]
    assert len(rows) == 2 + 4
    assert len({row.count("|") for row in rows}) == 1
    assert "zeros: no speed-up expected" in repr(report)
    loaded = json.loads(report.to_json())
    assert loaded["variants"][3]["name"] == "int8"
    assert "repetitions" in loaded["environment"]
    axes = kt.plots.variants(report.measures())
    assert [ax.get_xlabel() for ax in axes][-1] == "accuracy"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_peak_memory(tmp_path):
    files = []
    for units in (8, 2048):
        dense = [keras.layers.Dense(units), keras.layers.Dense(units)]
        model = keras.Sequential([keras.Input((4,)), *dense])
        files.append(kt.export.to_litert(model, tmp_path / f"{units}.tflite"))
        files.append(kt.export.to_onnx(model, tmp_path / f"{units}.onnx"))
    small, large = (
        [peak_memory(path, 32) for path in files[i : i + 2]] for i in (0, 2)
    )
    # The weights of the large one are 17 MB.
    for a, b in zip(small, large, strict=True):
        assert 0 <= a < 17e6 < a + 17e6 < b + 2e6


def test_report_without_classes(x):
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(1)]
    )
    report = kt.export.deployment_report({"a": model}, x, x[:, 0, 0, 0], repetitions=1)
    assert report.variants[0].accuracy is None
    assert report.variants[0].nll is None


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"variants": {}}, ValueError, "`variants` must be at least one model or file"),
        ({"variants": {"a": 3}}, ValueError, "models and paths of files"),
        ({"variants": {"a": __file__}}, ValueError, "files .tflite, .onnx or .keras"),
        ({"variants": {"a": "no.tflite"}}, FileNotFoundError, "no.tflite"),
        ({"y": np.zeros(3)}, ValueError, "`y` must be as many targets"),
        ({"repetitions": 0}, ValueError, "`repetitions` must be an integer >= 1"),
    ],
)
def test_bad_report_arguments(model, x, change, error, match):
    options = {"variants": {"a": model}, "x": x, "y": np.zeros(len(x), int)}
    with pytest.raises(error, match=match):
        kt.export.deployment_report(**{**options, **change})
