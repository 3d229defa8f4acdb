import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_trainkit as kt

RNG = np.random.default_rng(0)
X = RNG.normal(size=(160, 5)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")


def network(optimizer=None, activation="relu", **options):
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(8, activation, name="hidden", **options),
            layers.Dense(2, "softmax", name="out"),
        ]
    )
    model.compile(optimizer or keras.optimizers.Adam(0.01), _SPARSE)
    return model


_SPARSE = "sparse_categorical_crossentropy"


def test_a_healthy_training_is_as_without():
    def weights(callbacks, watch):
        keras.utils.set_random_seed(3)
        model = network()
        batches = watch(X, Y)
        model.fit(batches, epochs=3, callbacks=callbacks, verbose=0, shuffle=False)
        return model.get_weights()

    monitor = kt.callbacks.Monitor()
    seen = weights([monitor], monitor.watch)
    unseen = weights([], kt.callbacks.Monitor().watch)
    for a, b in zip(seen, unseen, strict=True):
        np.testing.assert_array_equal(a, b)
    assert monitor.findings == ()
    assert monitor.bad_step is None


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_batch_with_nan_is_kept(shuffle):
    x = X.copy()
    x[77, 2] = np.nan
    monitor = kt.callbacks.Monitor(stop=True)
    model = network()
    with pytest.warns(UserWarning, match="nan_in_data"):
        model.fit(
            monitor.watch(x, Y, batch_size=16),
            epochs=3,
            callbacks=[monitor],
            verbose=0,
            shuffle=shuffle,
        )
    assert monitor.findings[0].kind == "nan_in_data"
    assert monitor.bad_step[0] == 0
    inputs, targets = monitor.bad_batch
    assert inputs.shape == (16, 5)
    (row,) = np.flatnonzero(np.isnan(inputs).any(1))
    np.testing.assert_array_equal(inputs[row], x[77])
    assert targets[row] == Y[77]
    assert monitor.bad_layer == "hidden"
    assert len(model.history.history["loss"]) == 1


def test_nan_that_the_loss_does_not_show():
    """A ReLU may make 0 of NaN: the loss stays finite, the weights are lost."""

    def relu(z):
        return keras.ops.where(z > 0, z, 0.0)

    x = X.copy()
    x[77, 2] = np.nan
    monitor = kt.callbacks.Monitor(stop=True)
    model = network(activation=relu)
    with pytest.warns(UserWarning, match="nan_in_data"):
        model.fit(monitor.watch(x, Y), epochs=3, callbacks=[monitor], verbose=0)
    assert np.isnan(monitor.bad_batch[0]).sum() == 1
    assert monitor.bad_step[0] == 0
    (loss,) = model.history.history["loss"]
    assert np.isfinite(loss)


def test_a_training_that_blows_up():
    monitor = kt.callbacks.Monitor()
    model = network(keras.optimizers.SGD(1e30), "linear")
    model.compile(keras.optimizers.SGD(1e30), "mse")
    with pytest.warns(UserWarning, match="learning_rate_too_high"):
        model.fit(X, Y[:, None] * X[:, :2], epochs=2, callbacks=[monitor], verbose=0)
    assert monitor.bad_batch is None
    assert monitor.bad_layer in ("hidden", "out")
    kinds = [finding.kind for finding in monitor.findings]
    assert kinds.count("learning_rate_too_high") == 1


def test_a_spike():
    """One row among many whose target is far off."""
    y = X[:, :1].copy()
    y[100] = 1e3
    model = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e-6), "mse")
    monitor = kt.callbacks.Monitor()
    with pytest.warns(UserWarning, match="oscillating_loss"):
        model.fit(
            monitor.watch(X, y, batch_size=2),
            epochs=2,
            callbacks=[monitor],
            verbose=0,
            shuffle=False,
        )
    assert 1e3 in monitor.bad_batch[1]


def test_dead_units():
    monitor = kt.callbacks.Monitor(X)
    model = network(bias_initializer=keras.initializers.Constant(-50.0))
    with pytest.warns(UserWarning, match="dead_units") as caught:
        model.fit(X, Y, epochs=3, callbacks=[monitor], verbose=0)
    assert len([w for w in caught if "dead_units" in str(w.message)]) == 1
    assert monitor.findings[0].where == "hidden"


def test_a_second_fit_begins_anew():
    monitor = kt.callbacks.Monitor(X)
    with pytest.warns(UserWarning, match="dead_units"):
        network(bias_initializer=keras.initializers.Constant(-50.0)).fit(
            X, Y, callbacks=[monitor], verbose=0
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        network().fit(X, Y, callbacks=[monitor], verbose=0)
    assert monitor.findings == ()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"every": 0}, "`every` must be an integer >= 1"),
        ({"spike": 0}, "`spike` must be a finite number > 0"),
    ],
)
def test_bad_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        kt.callbacks.Monitor(**options)


def test_what_cannot_be_watched():
    monitor = kt.callbacks.Monitor()
    with pytest.raises(ValueError, match="arrays, with their targets in `y`"):
        monitor.watch(iter([]), None)
    with pytest.raises(ValueError, match="of as many rows as"):
        monitor.watch(X, Y[:3])
