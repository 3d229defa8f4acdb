"""What looks at a batch sees it as the model's own `fit` gives it to the training."""

import keras
import numpy as np
import pytest
from helpers import to_numpy
from keras import layers

import keras_trainkit as kt

report_of = kt.diagnostics.signal_report


class Lengths(keras.Model):
    """A `fit` that turns texts into numbers, and takes nothing else."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2, kernel_initializer="ones", name="dense")

    def call(self, x):
        return self.dense(x)

    def fit(self, x=None, y=None, batch_size=None, sample_weight=None, **kwargs):
        x = np.array([[len(text)] for text in x], "float32")
        y = x if y is None else y
        return super().fit(x, y, batch_size, sample_weight=sample_weight, **kwargs)


def lengths():
    model = Lengths()
    model(np.zeros((1, 1), "float32"))
    model.compile(keras.optimizers.Adam(0.1), "mse", metrics=["mae"])
    return model


@pytest.mark.parametrize("y", [None, np.zeros((3, 2), "float32")])
def test_a_fit_that_preprocesses(y):
    model = lengths()
    before = [to_numpy(v) for v in model.variables], len(model.optimizer.variables)
    (line,) = report_of(model, ["a", "bcd", "ef"], y).layers
    x = np.array([[1.0], [3.0], [2.0]])
    outputs = np.repeat(x, 2, axis=1)
    assert (line.mean, line.std) == pytest.approx((outputs.mean(), outputs.std()))
    error = outputs - (x if y is None else y)
    gradients = [x.T @ error / 3, error.mean(0)]
    norm = np.sqrt(sum(np.square(g).sum() for g in gradients))
    assert line.gradient_norm == pytest.approx(norm)
    after = [to_numpy(v) for v in model.variables], len(model.optimizer.variables)
    for a, b in zip(before[0], after[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert before[1] == after[1]
    assert model.run_eagerly is False
    assert getattr(model, "history", None) is None


class Twice(layers.Layer):
    """Returns outputs of different widths, by the name of its argument alone."""

    def call(self, inputs, wide=False):
        return keras.ops.concatenate([inputs, 1 - inputs], -1) if wide else inputs


def test_a_layer_with_outputs_of_different_widths_has_a_line_for_each():
    inputs = keras.Input((2,))
    twice = Twice(name="twice")
    model = keras.Model(inputs, twice(inputs=twice(inputs=inputs), wide=True))
    x = np.array([[1.0, 3.0], [5.0, 7.0]], "float32")
    narrow, wide = report_of(model, x).layers
    assert (narrow.name, wide.name) == ("twice (2 units)", "twice (4 units)")
    assert (narrow.mean, wide.mean) == (4.0, 0.5)


class Pairs(keras.Sequential):
    def train_step(self, *state_and_data):
        x, y = state_and_data[-1]
        return super().train_step(*state_and_data[:-1], (x, y))


def test_a_step_that_unpacks_pairs(rng):
    x = rng.normal(size=(16, 6)).astype("float32")
    lines = []
    for cls in (Pairs, keras.Sequential):
        keras.utils.set_random_seed(3)
        model = cls([keras.Input((6,)), layers.Dense(1)])
        model.compile("sgd", "mse")
        lines.append(report_of(model, x, x[:, :1]).layers[0])
    assert lines[0].gradient_norm == pytest.approx(lines[1].gradient_norm, rel=1e-5)
    assert lines[0].update_ratio == pytest.approx(lines[1].update_ratio, rel=1e-5)


def test_int8_layers_have_a_line(rng):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.Dense(2)])
    for layer in model.layers:
        layer.quantize("int8")
    x = rng.normal(size=(8, 6)).astype("float32")
    lines = report_of(model, x).layers
    assert [line.kind for line in lines] == ["Dense", "Dense"]
    assert lines[1].mean == pytest.approx(to_numpy(model(x)).mean(), rel=1e-5)


def test_a_model_without_targets_has_gradients_where_they_are_asked_for(rng):
    x = rng.normal(size=(8, 3)).astype("float32")

    class Energy(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, *_, **__):
            return keras.ops.mean(keras.ops.square(y_pred))

    inputs = keras.Input((3,))
    model = Energy(inputs, layers.Dense(1, use_bias=False)(inputs))
    outputs = model(x)
    model.compile("sgd")
    assert report_of(model, x).layers[0].gradient_norm is None
    (line,) = report_of(model, x, gradients=True).layers
    wanted = np.linalg.norm(2 * x.T @ to_numpy(outputs) / 8)
    assert line.gradient_norm == pytest.approx(wanted, rel=1e-5)
    (batched,) = report_of(model, [(x,), (x,)], gradients=True).layers
    assert batched.gradient_norm == pytest.approx(wanted, rel=1e-5)


@pytest.fixture
def texts(rng):
    words = np.array(["a" * n for n in rng.integers(1, 9, 64)])
    return words, np.array([[len(word)] * 2 for word in words], "float32")


def plain():
    """The same model, with Keras's `fit`."""
    inputs = keras.Input((1,))
    dense = layers.Dense(2, kernel_initializer="ones", name="dense")
    model = keras.Model(inputs, dense(inputs))
    model.compile(keras.optimizers.Adam(0.1), "mse", metrics=["mae"])
    return model


def test_batch_size_and_check_up_of_a_fit_that_preprocesses(texts):
    words, y = texts
    x, y = y[:, :1].copy(), np.sin(y)
    noise = kt.batch_size.gradient_noise_scale(lengths(), words, y, small_batch=2)
    same = kt.batch_size.gradient_noise_scale(plain(), x, y, small_batch=2)
    assert noise.noise_scale == pytest.approx(same.noise_scale, rel=1e-4)
    found = kt.find_batch_size(lengths(), words, y, small_batch=2, max_batch_size=16)
    assert found.batch_sizes.tolist() == [16]
    report = kt.diagnostics.check_up(lengths(), words, y, epochs=1)
    assert report.skipped == {}
    assert report.rounds >= 1


def test_monitor_of_a_fit_that_preprocesses(texts):
    words, y = texts
    monitor = kt.callbacks.Monitor(words[:8])
    lengths().fit(words, y, callbacks=[monitor], verbose=0)
    assert monitor.findings == ()
