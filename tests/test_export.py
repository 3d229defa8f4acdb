import json
import sys

import keras
import numpy as np
import pytest
from scipy.stats import betabinom
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss

import keras_trainkit as kt
from keras_trainkit.export import _inference, _litert, _onnx
from keras_trainkit.export._litert_run import scales_channels_in_int8
from keras_trainkit.export._memory import peak_memory

layers = keras.layers
_tensorflow_only = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the conversion is TensorFlow's, in a process of its own",
)


# The other backends start a process with TensorFlow for each of these.
_ELSEWHERE = [] if keras.backend.backend() == "tensorflow" else [pytest.mark.slow]


def _slow_elsewhere(test):
    return pytest.mark.slow(test) if _ELSEWHERE else test


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
    [
        (None, 1e-5, 1.0),
        pytest.param("float16", 1e-2, 0.6, marks=_ELSEWHERE),
        pytest.param("dynamic", 0.05, 0.4, marks=_ELSEWHERE),
    ],
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


@_slow_elsewhere
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
        raise OSError("the disk is full")

    monkeypatch.setattr(_litert, "convert", broken)
    monkeypatch.setattr(_litert, "convert_elsewhere", broken)
    with pytest.raises(OSError, match="the disk is full"):
        kt.export.to_litert(model, path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.tflite"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"path": "m.onnx"}, r"`path` must be a file name that ends in .tflite"),
        ({"quantization": "int4"}, "`quantization` must be one of None, 'float16'"),
        ({"quantization": "int8"}, "`representative_data` must be an array"),
        ({"io_dtype": "int8"}, '`io_dtype` must be "float32" unless quantization'),
        (
            {"quantization": "int8", "representative_data": np.ones((3, 8, 8))},
            r"`representative_data` must be arrays of shape",
        ),
    ],
)
def test_bad_arguments(model, tmp_path, monkeypatch, kwargs, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        kt.export.to_litert(**{"model": model, "path": "m.tflite", **kwargs})
    assert not list(tmp_path.iterdir())


@pytest.fixture(params=["litert", "onnx"])
def export(request, tmp_path):
    """Writes a model's file, which appears only if it gives what the model gives."""
    function = getattr(kt.export, f"to_{request.param}")
    suffix = {"litert": "tflite", "onnx": "onnx"}[request.param]
    return lambda model, *a, **k: function(model, tmp_path / f"m.{suffix}", *a, **k)


@_tensorflow_only
def test_inputs_of_every_kind(export):
    tokens = keras.Input((5,), dtype="int32")
    words = layers.GlobalAveragePooling1D()(layers.Embedding(4, 3)(tokens))
    image = keras.Input((None, None, 1))
    fixed = keras.Input(batch_shape=(2, 4))
    for model in (
        keras.Model(tokens, layers.Dense(2)(words)),
        keras.Model(image, layers.Conv2D(2, 3, padding="same")(image)),
        keras.Model(fixed, layers.Dense(2)(fixed)),
    ):
        assert export(model).exists()


class _Block(layers.Layer):
    """Not registered, without `get_config`, with layers inside."""

    def __init__(self, mixed):
        super().__init__()
        self.mixed, self.dense = mixed, layers.Dense(mixed, activation="gelu")
        self.normalization = layers.LayerNormalization()

    def call(self, x):
        return self.normalization(x + self.dense(x))


def _adapted():
    layer = layers.Normalization()
    # More numbers than TensorFlow writes into a graph of its own accord.
    layer.adapt(np.random.default_rng(0).normal(3, 2, (50, 300)))
    return [keras.Input((300,)), layer]


_BUILDERS = {
    "exact GELU": lambda: [keras.Input((6,)), layers.Dense(5, activation="gelu")],
    "adapted Normalization": _adapted,
    "augmentation": lambda: [
        keras.Input((8, 8, 3)),
        layers.RandomFlip(),
        layers.RandomRotation(0.1),
        layers.Conv2D(2, 3),
        layers.Flatten(),
    ],
    "bfloat16": lambda: [
        keras.Input((6,)),
        layers.Dense(5, activation="relu", dtype="mixed_bfloat16"),
    ],
    "float16": lambda: [
        keras.Input((6,)),
        layers.Dense(5, activation="relu", dtype="mixed_float16"),
    ],
    "CELU": lambda: [keras.Input((6,)), layers.Activation("celu")],
    "Discretization": lambda: [
        keras.Input((6,)),
        layers.Discretization([0.0, 1.0]),
        layers.Embedding(3, 2),
        layers.Flatten(),
    ],
    "unregistered layer": lambda: [keras.Input((6,)), _Block(6)],
    "Lambda": lambda: [keras.Input((6,)), layers.Lambda(lambda x: 2 * x + 1)],
    "masked LSTM": lambda: [
        keras.Input((5,), dtype="int32"),
        layers.Embedding(10, 4, mask_zero=True),
        layers.Bidirectional(layers.LSTM(3)),
    ],
    "masked backwards": lambda: [
        keras.Input((4,), dtype="int32"),
        layers.Embedding(4, 4, mask_zero=True),
        layers.Bidirectional(layers.GRU(3, return_sequences=True)),
        layers.GlobalAveragePooling1D(),
    ],
    "argmax": lambda: [
        keras.Input((6, 4)),
        layers.Lambda(lambda x: keras.ops.one_hot(keras.ops.argmax(x, -1), 4)),
        layers.Flatten(),
    ],
}


@_tensorflow_only
@pytest.mark.parametrize("name", _BUILDERS)
def test_models_that_people_have(name, export):
    model = keras.Sequential([*_BUILDERS[name](), layers.Dense(2, dtype="float32")])
    policies = [layer.dtype_policy.name for layer in model.layers]
    assert export(model).exists()
    assert [layer.dtype_policy.name for layer in model.layers] == policies
    assert not any(getattr(layer, "unroll", False) for layer in model.layers)


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="the others convert by TensorFlow"
)
@pytest.mark.parametrize("name", sorted({*_BUILDERS} - {"Discretization", "float16"}))
def test_pytorch_converts_to_onnx_by_itself(name, tmp_path, capfd):
    model = keras.Sequential([*_BUILDERS[name](), layers.Dense(2, dtype="float32")])
    assert kt.export.to_onnx(model, tmp_path / "m.onnx").exists()
    assert capfd.readouterr().out == ""


@pytest.fixture(scope="module")
def many():
    """A model of which neither inputs nor outputs are in the order of their names."""
    keras.utils.set_random_seed(1)
    image = keras.Input((3,), name="z_image")
    tokens = keras.Input((3,), dtype="int32", name="a_tokens")
    embedded = layers.Flatten()(layers.Embedding(50, 4)(tokens))
    both = layers.Concatenate()([layers.Dense(4)(image), embedded])
    outputs = [layers.Dense(2, name="z")(both), layers.Dense(2, name="a")(both)]
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(40, 3)).astype("float32"), rng.integers(0, 50, (40, 3))]
    return keras.Model([image, tokens], outputs), x


@pytest.fixture(scope="module")
def many_int8(many, tmp_path_factory):
    model, x = many
    path = tmp_path_factory.mktemp("many") / "m.tflite"
    return kt.export.to_litert(model, path, "int8", x, io_dtype="int8")


def test_several_inputs_and_outputs_in_int8(many, many_int8):
    model, x = many
    before = model.predict(x, verbose=0)
    named = {"a_tokens": x[1], "z_image": x[0]}
    after = kt.export.predict_litert(many_int8, named)
    for a, b in zip(before, after, strict=True):
        # A step of the output's scale is 1/256 of its range; a few of them add up.
        np.testing.assert_allclose(b, a, atol=0.05 * np.ptp(a))
    details = kt.export.load_litert(many_int8).get_input_details()
    assert {d["dtype"] for d in details} == {np.int8, np.int32}
    details = kt.export.load_litert(many_int8).get_output_details()
    assert {d["dtype"] for d in details} == {np.int8}
    # In the order of the model too, which is not that of the names.
    for a, b in zip(kt.export.predict_litert(many_int8, x), after, strict=True):
        np.testing.assert_array_equal(a, b)
    expected = "`x` must be a dict with z_image, a_tokens, or a list in this order"
    for wrong in (x[0], [x[0]], {"z_image": x[0]}, {**named, "other": x[0]}):
        with pytest.raises(ValueError, match=expected):
            kt.export.predict_litert(many_int8, wrong)


def test_report_of_several_inputs_and_outputs(many, many_int8, tmp_path):
    model, x = many
    labels = [y.argmax(-1) for y in model.predict(x, verbose=0)]
    # The second output is right in half of the rows.
    labels[1] = np.where(np.arange(40) < 20, labels[1], 1 - labels[1])
    variants = {"float": model, "int8": many_int8}
    if keras.backend.backend() == "tensorflow":
        variants["onnx"] = kt.export.to_onnx(model, tmp_path / "m.onnx")
    named = {"z_image": x[0], "a_tokens": x[1]}
    for given in (x, named):
        report = kt.export.deployment_report(variants, given, labels, repetitions=1)
        assert report.variants[0].accuracy == 0.75
        assert report.variants[0].nll is None
        assert [v.max_difference < 0.1 for v in report.variants] == [True] * len(
            variants
        )
        if sys.platform == "linux":
            assert all(v.peak_bytes is not None for v in report.variants[1:])
    with pytest.raises(ValueError, match="targets for each of the 2 outputs"):
        kt.export.deployment_report(variants, x, labels[0])
    other = keras.Model(model.inputs, model.outputs[0])
    with pytest.raises(ValueError, match="variants with the outputs of float"):
        kt.export.deployment_report({**variants, "other": other}, x, labels)


@_tensorflow_only
def test_int8_files_that_scale_channels_run_without_the_delegate(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 6, 6, 4)).astype("float32")
    found = []
    for scales in (False, True):
        image = keras.Input((6, 6, 4))
        gates = layers.GlobalAveragePooling2D(keepdims=True)(image)
        gates = layers.Conv2D(4, 1, activation="sigmoid")(gates)
        other = gates if scales else layers.Conv2D(4, 1)(image)
        model = keras.Model(image, layers.Multiply()([image, other]))
        path = kt.export.to_litert(model, tmp_path / "m.tflite", "int8", x)
        found.append(scales_channels_in_int8(path))
    assert found == [False, True]


def test_several_outputs_in_onnx(many, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = many
    path = kt.export.to_onnx(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    x = [x[0][:7], x[1][:7].astype("int32")]
    found = session.run(None, dict(zip(names, x, strict=True)))
    for a, b in zip(model.predict(x, verbose=0), found, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)


@_tensorflow_only
def test_the_second_output_is_compared_too(many, monkeypatch, export):
    model, _ = many
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    other.get_layer("a").bias.assign([1.0, 1.0])
    monkeypatch.setattr(_litert, "Inference", lambda _: _inference.Inference(other))
    monkeypatch.setattr(
        _onnx, "convert", lambda _, path, f=_onnx.convert: f(other, path)
    )
    with pytest.raises(RuntimeError, match="The file's outputs differ by"):
        export(model)


@_slow_elsewhere
def test_dicts_of_inputs_and_outputs(tmp_path):
    inputs = {"x": keras.Input((3,), name="x"), "b": keras.Input((3,), name="b")}
    dense = [layers.Dense(2)(inputs["x"]), layers.Dense(2)(inputs["b"])]
    model = keras.Model(inputs, {"second": dense[0], "first": dense[1]})
    x = {"x": np.ones((4, 3), "float32"), "b": np.full((4, 3), 2, "float32")}
    path = kt.export.to_litert(model, tmp_path / "m.tflite")
    before, after = model.predict(x, verbose=0), kt.export.predict_litert(path, x)
    assert set(after) == set(before)
    for name, array in after.items():
        np.testing.assert_allclose(array, before[name], atol=1e-5)


@_tensorflow_only
def test_lists_of_outputs_in_dicts(tmp_path):
    x = keras.Input((3,))
    dense = [layers.Dense(n)(x) for n in (2, 4, 5)]
    model = keras.Model(x, {"b": dense[:2], "a": dense[2]})
    path = kt.export.to_litert(model, tmp_path / "m.tflite")
    found = kt.export.predict_litert(path, np.ones((2, 3), "float32"))
    assert [y.shape for y in found] == [(2, 5), (2, 2), (2, 4)]


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2, activation="gelu")

    def call(self, x):
        return self.dense(x["b"]) + self.dense(x["a"])


@_tensorflow_only
def test_a_subclassed_model_is_compared(tmp_path, monkeypatch):
    model, other = Subclassed(), Subclassed()
    x = {name: np.ones((2, 3), "float32") for name in "ab"}
    model(x), other(x)
    path = kt.export.to_litert(model, tmp_path / "m.tflite")
    found = kt.export.predict_litert(path, x)
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-5)
    monkeypatch.setattr(_litert, "Inference", lambda _: _inference.Inference(other))
    with pytest.raises(RuntimeError, match="The file's outputs differ by"):
        kt.export.to_litert(model, tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="another that has been called with one"):
        kt.export.to_litert(Subclassed(), tmp_path / "m.tflite")


class _Fourier(layers.Layer):
    def call(self, x):
        return keras.ops.fft((x, keras.ops.zeros_like(x)))[0]


class _Noisy(layers.Layer):
    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seed_generator)


@_tensorflow_only
@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda: _Fourier(name="fourier"), r"FFT.*multiply by their matrix"),
        (_Noisy, "Random.*leave out what is random"),
        (
            lambda: layers.IntegerLookup(vocabulary=[3, 5]),
            "LookupTableFindV2.*take lookup layers out",
        ),
    ],
)
def test_operations_that_a_format_lacks_are_named(make, remedy, export, tmp_path):
    integers = isinstance(layer := make(), layers.IntegerLookup)
    inputs = keras.Input((8,), dtype="int64" if integers else "float32")
    x = layer(inputs)
    if integers:
        x = keras.ops.cast(x, "float32")
    model = keras.Model(inputs, layers.Dense(2)(x))
    with pytest.raises(ValueError, match=f"`model` must be made of .*{remedy}"):
        export(model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the others take no strings"
)
def test_strings_are_refused_with_the_remedy(export, tmp_path):
    words = keras.Input((1,), dtype="string", name="words")
    found = layers.StringLookup(vocabulary=["a", "b"])(words)
    model = keras.Model(words, layers.Flatten()(layers.Embedding(4, 2)(found)))
    with pytest.raises(ValueError, match="unlike words: apply TextVectorization"):
        export(model)
    assert list(tmp_path.iterdir()) == []


class _CTC(layers.Layer):
    def call(self, x):
        lengths = keras.ops.full_like(x[:, 0, 0], 4, dtype="int32")
        labels = keras.ops.ones_like(x[:, :2, 0], dtype="int32")
        return keras.ops.ctc_loss(labels, x, lengths // 2, lengths)


@_tensorflow_only
def test_a_loop_that_onnx_cannot_have_is_named(tmp_path):
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, _CTC(name="loss_inside")(layers.Dense(3)(inputs)))
    with pytest.raises(ValueError, match=r"While \(in layer loss_inside\): leave out"):
        kt.export.to_onnx(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="Keras quantizes on the others"
)
def test_what_keras_has_quantized_is_refused_by_litert(tmp_path):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(2, name="whole")])
    model.layers[0].quantize("int8")
    with pytest.raises(ValueError, match=r"unlike whole: .*export the float model"):
        kt.export.to_litert(model, tmp_path / "m.tflite")


def test_open_steps_are_refused_by_litert(tmp_path):
    model = keras.Sequential([keras.Input((None, 4)), layers.GRU(3, name="steps")])
    with pytest.raises(ValueError, match="a fixed number of steps, unlike steps"):
        kt.export.to_litert(model, tmp_path / "m.tflite")


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="there is no other process"
)
def test_what_the_other_process_cannot_load_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((6,)), layers.Lambda(lambda x: 2 * x)])
    with pytest.raises(ValueError, match="use layers in the place of Lambdas"):
        kt.export.to_litert(model, tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []


@_slow_elsewhere
def test_int16x8(model, x, tmp_path):
    path = kt.export.to_litert(model, tmp_path / "m.tflite", "int16x8", x)
    outputs = kt.export.predict_litert(path, x)
    np.testing.assert_allclose(outputs, model.predict(x, verbose=0), atol=0.05)
    kinds = {d["dtype"] for d in kt.export.load_litert(path).get_tensor_details()}
    assert {np.int16, np.int8} <= kinds


@_slow_elsewhere
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


@pytest.fixture
def mistaken(model, monkeypatch):
    """Lets the conversion take another model, with weights times a factor."""

    def use(factor):
        other = keras.models.clone_model(model)
        other.set_weights([factor * w + 0.5 for w in model.get_weights()])
        for module in (_litert, _onnx):
            before, elsewhere = module.convert, module.convert_elsewhere
            monkeypatch.setattr(
                module, "convert", lambda _, *a, f=before, **k: f(other, *a, **k)
            )
            monkeypatch.setattr(
                module, "convert_elsewhere", lambda _, *a, f=elsewhere: f(other, *a)
            )

    return use


@_slow_elsewhere
def test_a_file_that_gives_something_else_does_not_appear(
    model, tmp_path, mistaken, export
):
    mistaken(1)
    with pytest.raises(RuntimeError, match="The file's outputs differ by"):
        export(model)
    assert list(tmp_path.iterdir()) == []


@_slow_elsewhere
def test_a_quantized_file_of_another_model_does_not_appear(
    model, x, tmp_path, mistaken
):
    mistaken(-20)
    for quantization in ("float16", "int8"):
        with pytest.raises(
            RuntimeError, match=f"in the mean, more than {quantization}"
        ):
            kt.export.to_litert(model, tmp_path / "m.tflite", quantization, x)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("function", "name", "package"),
    [
        (kt.export.to_litert, "m.tflite", "ai_edge_litert.interpreter"),
        (kt.export.to_onnx, "m.onnx", "onnxruntime"),
    ],
)
def test_what_is_missing_is_named(
    model, tmp_path, monkeypatch, function, name, package
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match="is not installed: pip install"):
        function(model, tmp_path / name)
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


@_slow_elsewhere
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


@_slow_elsewhere
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


@_slow_elsewhere
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


@_slow_elsewhere
def test_every_variant_is_calibrated(tmp_path):
    """Int8 costs the likelihood nearly nothing, and the sets keep their promise."""
    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = (images[order] / 16).astype("float32"), labels[order]
    train, held_out, test = slice(600), slice(600, 1200), slice(1200, None)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(32, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(images[train], labels[train], epochs=12, verbose=0)
    data = images[train][:200]
    variants = {
        "float": model,
        "int8": kt.export.to_litert(model, tmp_path / "m.tflite", "int8", data),
    }
    report = kt.export.deployment_report(
        variants,
        images[test],
        labels[test],
        repetitions=1,
        calibration=(images[held_out], labels[held_out]),
        coverage=0.8,
    )
    plain, int8 = report.variants
    assert abs(int8.nll - plain.nll) < 0.01
    assert abs(int8.calibrated_nll - plain.calibrated_nll) < 0.01
    # 300 rows choose the threshold, 597 are covered: the beta-binomial distribution.
    low, high = betabinom(597, 241, 60).interval(0.999)
    for variant in report.variants:
        assert low <= 597 * variant.coverage <= high
        p = variant_outputs(variant, variants, images)
        half = np.random.default_rng(0).permutation(600)[::2]
        scaling = kt.uncertainty.TemperatureScaling()
        scaling.fit(probabilities=p[held_out][half], y_true=labels[held_out][half])
        np.testing.assert_allclose(variant.temperature, scaling.temperature_, rtol=1e-3)
        scaled = scaling.predict_proba(probabilities=p[test])
        expected = log_loss(labels[test], scaled)
        np.testing.assert_allclose(variant.calibrated_nll, expected, rtol=1e-3)
        assert variant.coverage <= variant.set_size < 1.5
    assert "calibrated NLL" in report.to_markdown()


def variant_outputs(variant, variants, x):
    if variant.name == "float":
        return variants["float"].predict(x, verbose=0)
    return kt.export.predict_litert(variants[variant.name], x)


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
        ({"coverage": 1}, ValueError, r"`coverage` must be a number in \(0, 1\)"),
        ({"calibration": 3}, ValueError, r"`calibration` must be a pair \(x, y\)"),
        (
            {"calibration": (np.zeros((4, 3)), np.zeros(4, int))},
            ValueError,
            r"inputs of shapes \[\(8, 8, 1\)\]",
        ),
        (
            {"calibration": (np.zeros((4, 8, 8, 1)), np.zeros((4, 3)))},
            ValueError,
            "integer labels of 4 rows",
        ),
    ],
)
def test_bad_report_arguments(model, x, change, error, match):
    options = {"variants": {"a": model}, "x": x, "y": np.zeros(len(x), int)}
    with pytest.raises(error, match=match):
        kt.export.deployment_report(**{**options, **change})
