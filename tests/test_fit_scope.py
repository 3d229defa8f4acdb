"""What a callback changes for a fit ends with it, also where the fit raised."""

import keras
import numpy as np
import pytest
from helpers import one_weight_model, save_and_load

import keras_trainkit as kt

X = np.random.default_rng(0).normal(size=(8, 1)).astype("float32")
CYCLE = kt.schedules.OneCycle(0.5, 20)
FIT = {"batch_size": 2, "verbose": 0, "shuffle": False}


class Stop(keras.callbacks.Callback):
    """Ctrl-C in the middle of the second epoch."""

    def on_train_batch_end(self, batch, logs=None):
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen == 6:
            raise KeyboardInterrupt


def interrupted(make=lambda: keras.optimizers.SGD(0.25, momentum=0.5)):
    """A model whose fit with a schedule was interrupted."""
    model = one_weight_model(make())
    schedule = kt.callbacks.ApplySchedule(CYCLE)
    if isinstance(model.optimizer, keras.optimizers.SGD):
        schedule = kt.callbacks.OneCycle(0.5)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, X, epochs=5, callbacks=[schedule, Stop()], **FIT)
    return model


def by_hand(weight, rate, momentum=0.0, velocity=0.0):
    for gradient in X.reshape(4, 2).mean(1):
        velocity = momentum * velocity - rate * gradient
        weight += velocity
    return weight


@pytest.mark.parametrize("look", ["learning_rate", "momentum", "variables"])
def test_the_users_rate_is_back_for_whoever_looks(look):
    model = interrupted()
    getattr(model.optimizer, look)
    assert float(vars(model.optimizer)["_learning_rate"]) == 0.25
    assert model.optimizer.momentum == 0.5
    assert type(model.optimizer) is type(keras.optimizers.SGD())


@pytest.mark.parametrize("callbacks", [[], [kt.callbacks.ApplySchedule(CYCLE)]])
def test_a_fit_after_one_that_raised(callbacks):
    """A plain fit at once, or after one more cycle, moves at the user's own rate."""
    model = interrupted(lambda: keras.optimizers.RMSprop(0.25))
    if callbacks:
        model.fit(X, X, callbacks=callbacks, **FIT)
    plain = one_weight_model(keras.optimizers.RMSprop(0.25))
    plain.fit(X, X, **FIT)
    plain.set_weights(model.get_weights())
    for ours, theirs in zip(
        model.optimizer.variables, plain.optimizer.variables, strict=True
    ):
        # A copy, since JAX gives the old buffers up to the compiled step.
        theirs.assign(np.array(keras.ops.convert_to_numpy(ours)))
    for one in (model, plain):
        one.fit(X, X, **FIT)
    np.testing.assert_array_equal(model.get_weights()[0], plain.get_weights()[0])
    assert float(model.optimizer.learning_rate) == 0.25


def test_a_file_after_a_fit_that_raised(tmp_path):
    loaded = save_and_load(interrupted(), tmp_path)
    assert float(loaded.optimizer.learning_rate) == 0.25
    assert int(loaded.optimizer.iterations) in (5, 6)


def test_a_file_in_the_middle_of_a_fit_is_the_users(tmp_path):
    path = str(tmp_path / "{epoch}.keras")
    model = one_weight_model(keras.optimizers.SGD(0.25, momentum=0.5))
    checkpoint = keras.callbacks.ModelCheckpoint(path)
    cycle = kt.callbacks.OneCycle(0.5)
    model.fit(X, X, epochs=4, callbacks=[cycle, checkpoint], **FIT)
    loaded = keras.saving.load_model(tmp_path / "2.keras")
    assert float(loaded.optimizer.learning_rate) == 0.25
    assert type(loaded.optimizer) is type(model.optimizer)
    assert int(loaded.optimizer.iterations) == 8
    loaded.fit(X, X, epochs=4, initial_epoch=2, callbacks=[cycle], **FIT)
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])


@pytest.mark.parametrize(
    "other",
    [
        lambda: kt.callbacks.ExponentialSchedule(0.1, 2),
        lambda: keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate),
        lambda: keras.callbacks.ReduceLROnPlateau(monitor="loss"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_two_that_set_the_rate_are_refused(other, first):
    optimizer = keras.optimizers.SGD(0.25, momentum=0.5)
    model = one_weight_model(optimizer)
    callbacks = [kt.callbacks.OneCycle(0.5), other()]
    names = [type(callback).__name__ for callback in callbacks]
    with pytest.raises(ValueError, match=f"{names[0]}|{names[1]}") as error:
        model.fit(
            X, X, callbacks=callbacks if first else list(reversed(callbacks)), **FIT
        )
    assert all(name in str(error.value) for name in names)
    assert model.optimizer is optimizer
    assert float(optimizer.learning_rate) == 0.25
    model.fit(X, X, **FIT)
    weight, velocity = 1.0, 0.0
    for gradient in X.reshape(4, 2).mean(1):
        velocity = 0.5 * velocity - 0.25 * gradient
        weight += velocity
    np.testing.assert_allclose(model.get_weights()[0], [[weight]], rtol=1e-6)


def test_an_optimizer_whose_config_lacks_an_argument():
    class Boosted(keras.optimizers.SGD):
        def __init__(self, learning_rate=0.1, boost=1.0, **kwargs):
            super().__init__(learning_rate, **kwargs)
            self.boost = boost

        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate * self.boost)

    model = one_weight_model(Boosted(0.25, boost=3.0))
    constant = kt.callbacks.ApplySchedule(kt.schedules.Constant(0.1))
    model.fit(X, X, callbacks=[constant], **FIT)
    np.testing.assert_allclose(model.get_weights()[0], [[by_hand(1.0, 0.3)]], 1e-6)
    assert model.optimizer.boost == 3


class Traces(keras.layers.Layer):
    """Counts how often it is called in training, in Python."""

    def call(self, x, training=False):
        if training:
            self.count = getattr(self, "count", 0) + 1
        return x


CALLBACKS = {
    "OneCycle": lambda: kt.callbacks.OneCycle(0.1),
    "ExponentialSchedule": lambda: kt.callbacks.ExponentialSchedule(0.1, 2),
    "PlateauSchedule": lambda: kt.callbacks.PlateauSchedule(monitor="loss"),
    "MagnitudePruning": lambda: kt.pruning.MagnitudePruning(
        0.5, end_step=4, frequency=2
    ),
    "GradualUnfreezing": lambda: kt.callbacks.GradualUnfreezing({0: "a|b"}),
}


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="nothing is compiled")
@pytest.mark.parametrize("name", CALLBACKS)
def test_the_second_fit_uses_the_compiled_step(name):
    traces = Traces()
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(4, name="a"),
            traces,
            keras.layers.Dense(1, name="b"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    for _ in range(2 if name == "PlateauSchedule" else 1):
        # The first leaves the optimizer with a schedule.
        model.fit(X, X, epochs=2, callbacks=[CALLBACKS[name]()], **FIT)
    once = traces.count
    model.fit(X, X, epochs=2, callbacks=[CALLBACKS[name]()], **FIT)
    assert traces.count == once
    if name == "MagnitudePruning":
        # Where zeros have grown back it begins at another step.
        return
    # A plain one has its own, and the other step is still there.
    model.fit(X, X, epochs=2, **FIT)
    plain = traces.count
    assert plain > once
    model.fit(X, X, epochs=2, callbacks=[CALLBACKS[name]()], **FIT)
    model.fit(X, X, epochs=2, **FIT)
    assert traces.count == plain


def test_a_second_fit_with_other_arguments_is_another():
    model = one_weight_model(keras.optimizers.SGD(0.25))
    weight = 1.0
    for rate in (0.1, 0.2, 0.1):
        constant = kt.callbacks.ApplySchedule(kt.schedules.Constant(rate))
        model.fit(X, X, callbacks=[constant], **FIT)
        weight = by_hand(weight, rate)
    model.fit(X, X, **FIT)
    np.testing.assert_allclose(model.get_weights()[0], [[by_hand(weight, 0.25)]], 1e-5)


def test_freezing_between_two_fits_is_seen():
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(2), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    cycle = kt.callbacks.OneCycle(0.1)
    model.fit(X, X, callbacks=[cycle], **FIT)
    kt.transfer.freeze(model, until=-1)
    before = model.get_weights()
    model.fit(X, X, callbacks=[cycle], **FIT)
    after = model.get_weights()
    np.testing.assert_array_equal(after[0], before[0])
    assert not np.array_equal(after[2], before[2])
    kt.transfer.unfreeze(model)
    model.fit(X, X, callbacks=[cycle], **FIT)
    assert not np.array_equal(model.get_weights()[0], before[0])


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="Keras's own export to SavedModel"
)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_model_can_be_exported_after_the_fit(optimizer, tmp_path):
    """TensorFlow does not save lists from which something was deleted."""
    x = np.ones((8, 2), "float32")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    for number, callback in enumerate(
        [
            kt.callbacks.OneCycle(0.05),
            kt.callbacks.OneCycle(0.05),
            kt.callbacks.PlateauSchedule(monitor="loss"),
            kt.callbacks.ExponentialSchedule(0.05, 1),
        ]
    ):
        model.fit(x, x[:, :1], epochs=2, verbose=0, callbacks=[callback])
        model.export(tmp_path / str(number), verbose=False)
