"""Files that output what Monte Carlo dropout says, against `mc_predict`."""

import keras
import numpy as np
import pytest
from helpers import save_and_load
from keras import layers

import keras_trainkit as kt
from keras_trainkit.uncertainty import mc_graph, mc_predict

X = np.random.default_rng(0).normal(size=(7, 8, 8, 1)).astype("float32")
STEPS = np.random.default_rng(1).normal(size=(5, 6, 4)).astype("float32")
_backend = keras.backend.backend()


class Block(layers.Layer):
    """Somebody's own residual block, not registered, with a dropout inside."""

    def __init__(self, units):
        super().__init__()
        self.dense, self.drop = layers.Dense(units), layers.Dropout(0.3)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x, training=None):
        return x + self.drop(self.dense(x), training=training)


def images():
    """Every kind of dropout, one twice, some in a nested model."""
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    x = layers.BatchNormalization()(layers.SpatialDropout2D(0.3)(x))
    parts = [layers.GaussianDropout(0.2), layers.Dense(16, "selu")]
    parts += [kt.layers.MCAlphaDropout(0.2)]
    inner = keras.Sequential([keras.Input((6, 6, 4)), layers.Flatten(), *parts])
    drop = layers.Dropout(0.4)
    x = drop(layers.Dense(16, "relu")(drop(inner(x), training=True)))
    return keras.Model(inputs, layers.Dense(3, "softmax")(x))


def vectors(units, activation=None):
    parts = [layers.Dropout(0.2), layers.Dense(8, "relu"), layers.Dropout(0.5)]
    return keras.Sequential(
        [keras.Input((4,)), *parts, layers.Dense(units, activation)]
    )


def sequences():
    inputs = keras.Input((6, 4))
    x = Block(4)(layers.LSTM(4, return_sequences=True)(inputs))
    x = layers.Dropout(0.3, noise_shape=(None, 1, 4))(x)
    return keras.Model(inputs, layers.Dense(2, "softmax")(x))


CASES = {
    "images": (images, X, None),
    "logits": (lambda: vectors(3), STEPS[0], "logits"),
    "binary": (lambda: vectors(2, "sigmoid"), STEPS[0], None),
    "regression": (lambda: vectors(2), STEPS[0], None),
    "heteroscedastic": (lambda: vectors(4), STEPS[0], "heteroscedastic"),
    "sequences": (sequences, STEPS, None),
}


def expected(model, x, task):
    found = mc_predict(model, x, 20, noise="shared", seed=3, task=task)
    names = ("aleatoric_std", "mean", "std")
    if found.mutual_information is not None:
        names = ("mean", "mutual_information", "predictive_entropy")
    values = {name: getattr(found, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize("name", CASES)
def test_the_graph_gives_what_mc_predict_does(name):
    make, x, task = CASES[name]
    model = make()
    before = [np.array(w) for w in model.get_weights()]
    found = mc_graph(model, 20, seed=3, task=task).predict(x, verbose=0)
    wanted = expected(model, x, task)
    assert sorted(found) == list(wanted)
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, atol=1e-5, rtol=1e-4)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert model.layers[-1].output is model.outputs[0]


def test_it_saves_and_what_no_dropout_reaches_runs_once(tmp_path):
    inputs = keras.Input((8, 8, 1))
    x = layers.Flatten()(layers.Conv2D(4, 3, name="once")(inputs))
    x = layers.Dense(16, name="once_too")(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.Dropout(0.5)(x)))
    graph = mc_graph(model, 20, seed=3)
    loaded = save_and_load(graph, tmp_path)
    for key, value in expected(model, X, None).items():
        np.testing.assert_allclose(loaded.predict(X, verbose=0)[key], value, atol=1e-5)
    # Of 7 rows, not of 140.
    part = keras.Model(loaded.input, loaded.get_layer("once_too").output)
    assert part.predict(X, verbose=0).shape == (7, 16)


@pytest.mark.skipif(_backend == "jax", reason="conversions are the other backends'")
def test_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = images()
    path = kt.export.to_onnx(model, tmp_path / "m.onnx", mc_samples=20, mc_seed=3)
    session = onnxruntime.InferenceSession(str(path))
    for rows in (1, 7):
        found = session.run(None, {session.get_inputs()[0].name: X[:rows]})
        wanted = expected(model, X[:rows], None).values()
        for array, value in zip(found, wanted, strict=True):
            np.testing.assert_allclose(array, value, atol=1e-5)


@pytest.mark.skipif(_backend != "tensorflow", reason="the conversion is TensorFlow's")
def test_litert(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model, path = images(), tmp_path / "m.tflite"
    kt.export.to_litert(model, path, mc_samples=20, mc_seed=3)
    for rows in (1, 7):
        found = kt.export.predict_litert(path, X[:rows])
        wanted = expected(model, X[:rows], None)
        assert list(found) == list(wanted)
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, atol=1e-5)


@pytest.mark.skipif(_backend != "tensorflow", reason="the conversion is TensorFlow's")
def test_the_part_before_the_masks_is_int8(tmp_path):
    for name in ("ai_edge_litert", "ai_edge_quantizer"):
        pytest.importorskip(name)
    model, path = images(), tmp_path / "m.tflite"
    data = np.random.default_rng(2).normal(size=(64, 8, 8, 1)).astype("float32")
    kt.export.to_litert(model, path, "int8", data, mc_samples=20, mc_seed=3)
    found = kt.export.predict_litert(path, X)

    body = keras.Model(model.input, model.layers[1].output)
    features_path = kt.export.to_litert(body, tmp_path / "b.tflite", "int8", data)
    features = kt.export.predict_litert(features_path, X)
    head = keras.Model(model.layers[1].output, model.output)
    for name, value in expected(head, features, None).items():
        np.testing.assert_allclose(found[name], value, atol=0.01)

    details = kt.export.load_litert(path).get_tensor_details()
    shapes = {tuple(d["shape"]) for d in details if d["dtype"] == np.int8}
    assert {(1, 6, 6, 4), (4, 3, 3, 1)} <= shapes  # the convolution and its kernel
    assert (16, 144) in shapes  # the kernel behind the first masks, not their product
    assert not {shape for shape in shapes if shape[0] == 20}


def recurrent():
    parts = [layers.LSTM(4, dropout=0.3), layers.Dense(2)]
    return keras.Sequential([keras.Input((6, 4)), *parts])


def of_any_length():
    parts = [layers.Dropout(0.3), layers.LSTM(4), layers.Dense(2)]
    return keras.Sequential([keras.Input((None, 4)), *parts])


def steps_as_rows():
    inputs = keras.Input((6, 4))
    x = layers.Dropout(0.5)(keras.ops.reshape(inputs, (-1, 4)))
    return keras.Model(inputs, keras.ops.reshape(layers.Dense(2)(x), (-1, 6, 2)))


def two_outputs():
    inputs = keras.Input((6,))
    x = layers.Dropout(0.5)(inputs)
    return keras.Model(inputs, [layers.Dense(1)(x), layers.Dense(1)(x)])


@pytest.mark.parametrize(
    ("make", "options", "match"),
    [
        (recurrent, {}, "whose dropouts are layers of their own. Received: .*LSTM"),
        (of_any_length, {}, "whose dropouts get known shapes"),
        (steps_as_rows, {}, "whose dropouts see the rows of the batch as rows"),
        (two_outputs, {}, "a model with one output"),
        (images, {"mc_samples": 0}, "`mc_samples` must be an integer >= 1"),
        (images, {"mc_seed": -1}, "`mc_seed` must be an integer >= 0"),
        (
            images,
            {"quantization": "int16x8"},
            'None, "float16", "dynamic" or "int8" with mc_samples',
        ),
        (
            images,
            {"quantization": "int8", "io_dtype": "int8", "representative_data": X},
            '`io_dtype` must be "float32" with mc_samples',
        ),
        (
            images,
            {"quantization": "int8", "max_drop": 0.1, "representative_data": X},
            "`max_drop` must be None with mc_samples",
        ),
        (
            lambda: kt.quantization.quantize_aware(images()),
            {"quantization": "int8"},
            "None for a model that is trained for int8",
        ),
        (images, {"quantization": "int8"}, "`representative_data` must be an array"),
        (lambda: kt.models.build_mlp((4,), 2), {}, "at least one dropout layer"),
    ],
)
def test_refusals(make, options, match, tmp_path):
    options = {"mc_samples": 5, **options}
    with pytest.raises(ValueError, match=match):
        kt.export.to_litert(make(), tmp_path / "m.tflite", **options)
    assert not list(tmp_path.iterdir())
