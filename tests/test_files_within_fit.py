"""`.keras` files that are written in the middle of a fit load whole."""

import keras
import numpy as np
import pytest
from helpers import to_numpy

import keras_trainkit as kt

X = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
Y = X[:, :2]
FIT = {"batch_size": 16, "shuffle": False, "verbose": 0}


def make_model(rate=0.01, dtype=None):
    keras.utils.set_random_seed(0)
    names = ("low", "middle", "head")
    layers = [keras.layers.Dense(2, dtype=dtype, name=name) for name in names]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile(keras.optimizers.Adam(rate), "mse")
    return model


def state(model):
    return [to_numpy(v) for v in (*model.variables, *model.optimizer.variables)]


class Saver(keras.callbacks.Callback):
    """Saves the model and keeps its state after the first epoch."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            self.trainable = [layer.trainable for layer in self.model.layers]
            self.model.save(self.path)
            assert self.trainable == [layer.trainable for layer in self.model.layers]
            self.state = state(self.model)


@pytest.mark.parametrize("fitted", [False, True])
def test_a_file_of_a_stage_goes_on(tmp_path, fitted):
    whole, saver = make_model(), Saver(tmp_path / "model.keras")
    if fitted:
        whole.fit(X, Y, **FIT)

    def gradual():
        return kt.callbacks.GradualUnfreezing({0: "head", 1: "middle", 2: "low"})

    whole.fit(X, Y, epochs=3, callbacks=[gradual(), saver], **FIT)
    assert saver.trainable == [False, False, True]
    loaded = keras.saving.load_model(saver.path)
    for a, b in zip(saver.state, state(loaded), strict=True):
        np.testing.assert_array_equal(a, b)
    loaded.fit(X, Y, epochs=3, initial_epoch=1, callbacks=[gradual()], **FIT)
    for a, b in zip(state(whole), state(loaded), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert "get_config" not in vars(whole)


@pytest.mark.parametrize("policy", [None, "mixed_float16"])
@pytest.mark.parametrize("scheduled", [False, True])
def test_a_file_of_a_range_test_loads(tmp_path, scheduled, policy):
    rate = kt.schedules.Constant(0.01) if scheduled else 0.01
    model, saver = make_model(rate, policy), Saver(tmp_path / "model.keras")
    before = model.get_weights()
    model.fit(
        X, Y, epochs=9, callbacks=[kt.callbacks.LRFinder(num_steps=10), saver], **FIT
    )
    loaded = keras.saving.load_model(saver.path)
    rate = loaded.optimizer.learning_rate
    assert float(to_numpy(keras.ops.convert_to_tensor(rate))) == pytest.approx(0.01)
    slots = [v for v in state(loaded) if v.shape]
    for a, b in zip([v for v in saver.state if v.shape], slots, strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(loaded.optimizer.iterations) == 2
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
