"""What measures in the middle of a fit is right, and changes nothing."""

import keras
import numpy as np
import pytest
from helpers import one_weight_model

import keras_trainkit as kt

X = np.random.default_rng(0).normal(size=(512, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")
FIT = {"batch_size": 64, "epochs": 2, "shuffle": False, "verbose": 0}
ONES = np.random.default_rng(1).normal(1.0, 0.3, (8, 1)).astype("float32")


def classifier():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, "relu"), keras.layers.Dense(2, "softmax")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    return model


MEASURES = {
    "SignalLogger": lambda: kt.callbacks.SignalLogger(X[:64], Y[:64]),
    "NoiseScale": lambda: kt.callbacks.NoiseScale(X, Y),
    "Monitor": lambda: kt.callbacks.Monitor(X[:64]),
}


@pytest.fixture(scope="module")
def unmeasured():
    """The weights after a fit on one cycle, and after a plain fit that follows."""
    return two_fits(lambda: [kt.callbacks.OneCycle(0.05)])


def two_fits(callbacks):
    model = classifier()
    model.fit(X, Y, callbacks=callbacks(), **FIT)
    first = model.get_weights()
    model.fit(X, Y, **FIT)
    return first, model.get_weights()


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("name", MEASURES)
def test_neither_this_fit_nor_the_next_one_changes(name, is_first, unmeasured):
    def callbacks():
        both = [MEASURES[name](), kt.callbacks.OneCycle(0.05)]
        return both if is_first else both[::-1]

    for ours, theirs in zip(two_fits(callbacks), unmeasured, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def logged(optimizer, *callbacks, epochs):
    """The update over the weight after each epoch of 4 batches of 2 rows."""
    model = one_weight_model(optimizer)
    weights = []
    logger = kt.callbacks.SignalLogger(ONES, ONES)
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: weights.append(
            float(model.get_weights()[0][0, 0])
        )
    )
    callbacks = [*callbacks, keep, logger]
    options = {"batch_size": 2, "shuffle": False, "verbose": 0}
    model.fit(ONES, ONES, epochs=epochs, callbacks=callbacks, **options)
    ratios = [logger.reports[e].layers[0].update_ratio for e in range(epochs)]
    return np.array(ratios), np.array(weights)


def test_updates_are_those_of_the_scheduled_rate_and_momentum():
    ratios, weights = logged(
        keras.optimizers.SGD(0.25, momentum=0.5), kt.callbacks.OneCycle(0.1), epochs=3
    )
    rate = kt.schedules.OneCycle(0.1, 12)
    momentum = kt.schedules.OneCycleMomentum(12, 0.95, 0.85)
    weight, velocity, expected = 1.0, 0.0, []
    for step, gradient in enumerate([*ONES.reshape(4, 2).mean(1)] * 3):
        velocity = float(momentum(step)) * velocity - float(rate(step)) * gradient
        weight += velocity
        if step % 4 == 3:
            step += 1
            update = float(momentum(step)) * velocity - float(rate(step)) * ONES.mean()
            expected.append(abs(update / weight))
    np.testing.assert_allclose(weights[-1], weight, rtol=1e-5)
    np.testing.assert_allclose(ratios, expected, rtol=1e-4)


def test_updates_where_gradients_are_accumulated():
    """The report's batch makes an update of its own."""
    optimizer = keras.optimizers.SGD(0.25, gradient_accumulation_steps=3)
    ratios, weights = logged(optimizer, epochs=2)
    np.testing.assert_allclose(ratios, abs(0.25 * ONES.mean() / weights), rtol=1e-4)


def test_accumulated_steps_count_once_in_the_correction_of_adam():
    """The correction of Adam's moments after 2 updates, of 8 batches, is the third."""
    make = keras.optimizers.Adam
    ratios, weights = logged(make(0.1, gradient_accumulation_steps=4), epochs=2)
    gradients = [*[ONES.mean()] * 3]
    mean, square = 0.0, 0.0
    for gradient in gradients:
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 1e-3 * gradient**2
    update = 0.1 * (mean / (1 - 0.9**3)) / (np.sqrt(square / (1 - 0.999**3)) + 1e-7)
    np.testing.assert_allclose(ratios[-1], update / abs(weights[-1]), rtol=1e-3)


def test_freezing_in_the_middle_of_a_scheduled_fit_is_refused():
    model = classifier()
    optimizer = model.optimizer

    def freeze(epoch, logs):
        kt.transfer.freeze(model, until=-1)

    late = keras.callbacks.LambdaCallback(on_epoch_end=freeze)
    with pytest.raises(ValueError, match=r"replaces the optimizer.*'OneCycle'"):
        model.fit(X, Y, callbacks=[kt.callbacks.OneCycle(0.05), late], **FIT)
    assert model.optimizer is optimizer
    assert len(model.trainable_variables) == 4
    assert abs(float(model.optimizer.learning_rate) - 1e-3) < 1e-9
