"""`OneCycle("auto")`: the fit is that with the rate that `find_lr` gives."""

import keras
import numpy as np
import pytest

import keras_trainkit as kt

RNG = np.random.default_rng(0)
X = RNG.normal(size=(640, 8)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")


class Scale(keras.layers.Layer):
    """Not registered."""

    def call(self, x):
        return 2 * x


def build():
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            Scale(),
            keras.layers.Dense(16, "relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(2, "softmax"),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def fit(callback, epochs=2, **options):
    model = build()
    history = model.fit(
        X, Y, epochs=epochs, batch_size=32, verbose=0, callbacks=[callback], **options
    )
    return model, history.history


def test_it_is_the_fit_with_the_rate_that_the_finder_gives():
    callback = kt.callbacks.OneCycle("auto")
    model, history = fit(callback)
    assert callback.found.one_cycle == callback.max_lr
    if keras.backend.backend() != "torch":
        # PyTorch's dropout draws from one generator for all.
        found = kt.find_lr(build(), X, Y, batch_size=32)
        assert found.one_cycle == callback.max_lr
    expected, by_hand = fit(kt.callbacks.OneCycle(callback.max_lr))
    assert history == by_hand
    for a, b in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    # A second fit with the same callback keeps the rate.
    before = callback.found
    model.fit(X, Y, verbose=0, callbacks=[callback])
    assert callback.found is before


def test_a_line_is_printed_where_the_fit_prints(capsys):
    build().fit(X, Y, verbose=2, callbacks=[callback := kt.callbacks.OneCycle("auto")])
    line = f"OneCycle: max_lr={callback.max_lr:.3g}, found in"
    assert line in capsys.readouterr().out


def test_a_resumed_fit_has_the_rate_of_the_first(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    first, second = (kt.callbacks.OneCycle("auto") for _ in range(2))

    def run(callback, *more):
        backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
        model = build()
        callbacks = [callback, backup, *more]
        model.fit(X, Y, epochs=4, verbose=0, callbacks=callbacks)

    with pytest.raises(KeyboardInterrupt):
        run(first, Stop())
    run(second)
    assert second.found is None
    assert second.max_lr == first.max_lr == first.found.one_cycle


def test_what_it_cannot_find_is_refused_and_nothing_changes():
    model = build()
    before = [np.array(w) for w in model.get_weights()]
    auto = [kt.callbacks.OneCycle("auto")]
    with pytest.raises(ValueError, match="goes on in epoch 1"):
        model.fit(X, Y, epochs=2, initial_epoch=1, verbose=0, callbacks=auto)
    batches = (batch for batch in [(X[:32], Y[:32])] * 20)
    with pytest.raises(ValueError, match="data that can be read once"):
        model.fit(batches, steps_per_epoch=20, shuffle=False, verbose=0, callbacks=auto)
    with pytest.raises(ValueError, match="a rate, since none was found"):
        model.fit(X, 0 * Y, sample_weight=0 * X[:, 0], verbose=0, callbacks=auto)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

        def fit(self, *args, **kwargs):
            return super().fit(*args, **kwargs)

    model = Own()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="outside of Keras's own `fit`"):
        model.fit(X, X[:, :2], verbose=0, callbacks=auto)
    with pytest.raises(ValueError, match="max_lr='automatic'"):
        kt.callbacks.OneCycle("automatic")
