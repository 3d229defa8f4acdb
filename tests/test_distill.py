"""`distill`: what one pass says against the closed form and against the samples."""

import keras
import numpy as np
import pytest
from helpers import save_and_load
from keras import layers

import keras_trainkit as kt
from keras_trainkit.uncertainty import distill, mc_predict

RNG = np.random.default_rng(0)
X = RNG.normal(size=(600, 3)).astype("float32")
NEW = RNG.normal(size=(100, 3)).astype("float32")


class Bent(layers.Layer):
    """Somebody's own layer, not registered."""

    def call(self, x):
        return keras.ops.sin(x) + x


class Named(keras.Model):
    """A Functional model whose config holds the arguments of its constructor."""

    def __init__(self, classes):
        inputs = keras.Input((3,), name="x")
        x = layers.Dense(16, name="frozen", trainable=False)(inputs)
        x = layers.BatchNormalization()(Bent()(x))
        x = layers.Dense(classes)(layers.Dropout(0.4)(x))
        outputs = layers.Activation("softmax", dtype="float32")(x)
        super().__init__(inputs={"x": inputs}, outputs=outputs)
        self.classes = classes

    def get_config(self):
        return {"classes": self.classes}


def test_regression_is_that_of_the_closed_form():
    """The sum of dropped terms has a known mean and standard deviation."""
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dropout(0.3), layers.Dense(2, name="out")]
    )
    w = np.array([[200.0, 1.0], [-100.0, 2.0], [50.0, 3.0]], "float32")
    model.layers[-1].set_weights([w, np.array([1000.0, 0.0], "float32")])
    fast = distill(model, X, epochs=60, batch_size=32, seed=0, learning_rate=0.02)
    found = fast.predict(NEW, verbose=0)
    std = np.sqrt(0.3 / 0.7 * (NEW[:, :, None] ** 2 * w**2).sum(1))
    mean = NEW @ w + [1000, 0]
    assert np.abs(found["std"] / std - 1).mean(0).max() < 0.1
    assert (np.abs(found["mean"] - mean).mean(0) / std.mean(0)).max() < 0.05


def test_classification_is_that_of_the_samples(tmp_path):
    keras.utils.set_random_seed(0)
    model = Named(4)
    before = [np.array(w) for w in model.get_weights()]
    options = {"batch_size": 32, "seed": 0, "learning_rate": 0.02}
    fast = distill(model, {"x": X}, epochs=15, **options)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    frozen = fast.get_layer("frozen").get_weights()
    np.testing.assert_array_equal(frozen[0], before[0])
    norm = next(x for x in fast.layers if isinstance(x, layers.BatchNormalization))
    np.testing.assert_array_equal(norm.moving_mean, np.zeros(16))
    samples = mc_predict(model, {"x": NEW}, 1000, seed=1)
    found = fast.predict({"x": NEW}, verbose=0)
    plain = model.predict({"x": NEW}, verbose=0)
    gap, at_first = (np.abs(p - samples.mean).mean() for p in (found["mean"], plain))
    assert gap < 0.6 * at_first
    information = samples.mutual_information
    assert found["mutual_information"].shape == (100,)
    assert np.corrcoef(found["mutual_information"], information)[0, 1] > 0.9
    np.testing.assert_allclose(
        found["mutual_information"].mean(), information.mean(), rtol=0.1
    )
    with keras.saving.custom_object_scope({"Bent": Bent}):
        loaded = save_and_load(fast, tmp_path).predict({"x": NEW}, verbose=0)
    np.testing.assert_allclose(loaded["mean"], found["mean"], atol=1e-6)


@pytest.mark.parametrize(
    ("units", "activation", "task", "shapes"),
    [
        (2, "sigmoid", None, {"mean": (2,), "mutual_information": (2,)}),
        (4, None, "logits", {"mean": (4,), "mutual_information": ()}),
        (
            4,
            None,
            "heteroscedastic",
            {"mean": (2,), "std": (2,), "aleatoric_std": (2,)},
        ),
    ],
)
def test_tasks(units, activation, task, shapes):
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dropout(0.4), layers.Dense(units, activation)]
    )
    options = {"batch_size": 32, "seed": 0, "learning_rate": 0.02}
    fast = distill(model, X, epochs=10, task=task, **options)
    found = fast.predict(NEW, verbose=0)
    assert {name: a.shape[1:] for name, a in found.items()} == shapes
    samples = mc_predict(model, NEW, 500, seed=1, task=task)
    for name, array in found.items():
        expected = getattr(samples, name)
        assert np.corrcoef(array.ravel(), expected.ravel())[0, 1] > 0.85, name
        np.testing.assert_allclose(array.mean(), expected.mean(), rtol=0.1, atol=0.05)


def test_batches_and_steps_of_a_sequence():
    inputs = keras.Input((5, 3))
    x = layers.Dropout(0.4)(layers.Dense(8, "relu")(inputs))
    model = keras.Model(inputs, layers.Dense(3, "softmax")(x))
    batches = [(X[i : i + 50].reshape(10, 5, 3), None) for i in (0, 50, 100)]
    fast = distill(model, batches, num_samples=5, epochs=1)
    found = fast.predict(X[:10].reshape(2, 5, 3), verbose=0)
    assert found["mutual_information"].shape == (2, 5)
    entropy = -(found["mean"] * np.log(found["mean"])).sum(-1)
    assert (found["mutual_information"] >= 0).all()
    assert (found["mutual_information"] <= entropy + 1e-6).all()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="one is enough")
def test_litert(tmp_path):
    pytest.importorskip("ai_edge_litert")
    model = kt.models.build_mlp((3,), 4, preset="risk_sensitive", hidden_units=(8,))
    fast = distill(model, X, num_samples=5, epochs=1)
    path = kt.export.to_litert(fast, tmp_path / "fast.tflite")
    of_file, found = kt.export.predict_litert(path, NEW), fast.predict(NEW, verbose=0)
    assert set(of_file) == {"mean", "mutual_information"}
    for name, array in of_file.items():
        np.testing.assert_allclose(array, found[name], atol=1e-5)


def test_dropout_that_is_always_on_is_off():
    inputs = keras.Input((4, 3))
    x = kt.layers.MCLSTM(5, dropout=0.3)(inputs)
    x = kt.layers.MCDropout(0.4)(layers.Dropout(0.4)(x, training=True))
    model = keras.Model(inputs, layers.Dense(3, "softmax")(x))
    x = X[:40].reshape(10, 4, 3)
    fast = distill(model, x, num_samples=5, epochs=1, learning_rate=1e-6, seed=0)
    first, again = (fast.predict(x, verbose=0)["mean"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    plain = keras.Sequential(
        [keras.Input((4, 3)), layers.LSTM(5), layers.Dense(3, "softmax")]
    )
    plain.set_weights([w for w in model.get_weights() if w.dtype.kind == "f"])
    np.testing.assert_allclose(first, plain.predict(x, verbose=0), atol=1e-3)


class Block(layers.Layer):
    """A layer whose dropout is always on."""

    def __init__(self):
        super().__init__()
        self.drop = kt.layers.MCDropout(0.5)

    def call(self, x):
        return self.drop(x)


def test_refusals():
    block = Block()
    hidden = keras.Sequential([keras.Input((3,)), block, layers.Dense(2)])
    with pytest.raises(ValueError, match="whose layers can be at inference"):
        distill(hidden, X, num_samples=2)
    plain = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="at least one dropout layer"):
        distill(plain, X)
    conv = keras.Sequential(
        [keras.Input((3, 1)), layers.Dropout(0.5), layers.Conv1D(2, 2)]
    )
    with pytest.raises(ValueError, match=r"ends in a Dense layer\. Received"):
        distill(conv, X)
    relu = layers.ReLU(name="twice")
    inputs = keras.Input((3,))
    x = layers.Dropout(0.5)(relu(layers.Dense(3)(inputs)))
    shared = keras.Model(inputs, relu(layers.Dense(2)(x)))
    with pytest.raises(ValueError, match="last activation is not shared"):
        distill(shared, X)
    with pytest.raises(ValueError, match="`epochs` must be an integer >= 1"):
        distill(plain, X, epochs=0)
