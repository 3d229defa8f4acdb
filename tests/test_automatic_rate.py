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
    assert second.max_lr == first.max_lr == first.found.one_cycle
    # It is that of the first, and was not found anew on the weights of epoch 2.
    np.testing.assert_array_equal(second.found.losses, first.found.losses)


@pytest.mark.parametrize("make", [None, lambda rate: kt.schedules.Step(rate, 20)])
def test_any_schedule_of_a_rate_that_is_found(make):
    callback = kt.callbacks.ApplySchedule("auto", make)
    model, history = fit(callback)
    rate = callback.found.suggestion
    schedule = (make or kt.schedules.Constant)(rate)
    expected, by_hand = fit(kt.callbacks.ApplySchedule(schedule))
    assert history == by_hand
    for a, b in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="`make` must be None unless"):
        kt.callbacks.ApplySchedule(schedule, make=kt.schedules.Constant)
    with pytest.raises(ValueError, match="must be a LearningRateSchedule"):
        build().fit(
            X,
            Y,
            verbose=0,
            callbacks=[kt.callbacks.ApplySchedule("auto", lambda rate: rate)],
        )


def test_resumable_goes_on_exactly_with_the_rate(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def run(folder, *more):
        model, cycle = build(), kt.callbacks.OneCycle("auto")
        backup = kt.callbacks.Resumable([cycle], tmp_path / folder)
        options = {"epochs": 4, "shuffle": False, "verbose": 0}
        model.fit(X, Y, callbacks=[backup, *more], **options)
        return model, cycle

    model, whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("broken", Stop())
    again, cycle = run("broken")
    assert cycle.max_lr == whole.max_lr
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not list((tmp_path / "broken").iterdir())


def test_a_test_that_is_not_clear_is_repeated_with_more_steps():
    callback = kt.callbacks.OneCycle("auto")
    model = build()
    # So small a loss falls only at rates where its noise is large.
    weight = np.full(len(X), 1e-2, "float32")
    model.fit(X, Y, sample_weight=weight, verbose=0, callbacks=[callback])
    found = callback.found
    assert found.first.verdict != "clear"
    assert len(found.lrs) > 2 * len(found.first.lrs)


def test_fine_tune_trains_at_half_the_rate_that_is_found_for_the_head(capsys):
    def run(rate, verbose=0):
        model = build()
        history = kt.transfer.fine_tune(
            *(model, X, Y),
            epochs=1,
            learning_rate=rate,
            shuffle=False,
            verbose=verbose,
        )
        return model, history.history["learning_rate"]

    model, rates = run("auto", verbose=2)
    said = capsys.readouterr().out
    places = [said.index(part) for part in ("the head", "max_lr=", "the whole model")]
    assert places == sorted(places)
    head = build()
    kt.transfer.freeze(head, until=-1)
    if keras.backend.backend() != "torch":
        expected, by_hand = run(kt.find_lr(head, X, Y).one_cycle)
        assert rates == by_hand
        for a, b in zip(model.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    assert capsys.readouterr().out == ""
    # Without a fit for the head the rate is that of the highest layer.
    model = build()
    history = kt.transfer.fine_tune(
        *(model, X, Y), epochs=1, freeze_epochs=0, learning_rate="auto", verbose=0
    )
    assert np.isfinite(history.history["loss"][0])
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)


def test_presets_find_their_rate():
    callbacks = kt.models.PRESETS["default"].callbacks("auto")
    build().fit(X, Y, validation_split=0.2, verbose=0, callbacks=callbacks)
    assert callbacks[0].found.one_cycle == callbacks[0].max_lr


def test_what_it_cannot_find_is_refused_and_nothing_changes():
    model = build()
    before = [np.array(w) for w in model.get_weights()]
    auto = [kt.callbacks.OneCycle("auto")]
    with pytest.raises(ValueError, match="goes on in epoch 1"):
        model.fit(X, Y, epochs=2, initial_epoch=1, verbose=0, callbacks=auto)
    batches = (batch for batch in [(X[:32], Y[:32])] * 20)
    with pytest.raises(ValueError, match="data that can be read once"):
        model.fit(batches, steps_per_epoch=20, shuffle=False, verbose=0, callbacks=auto)
    with pytest.raises(ValueError, match="since a range test found none"):
        model.fit(X, 0 * Y, sample_weight=0 * X[:, 0], verbose=0, callbacks=auto)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)

    with pytest.raises(ValueError, match="outside of `fit`"):
        keras.callbacks.CallbackList(auto, model=model, epochs=1, steps=2)
    with pytest.raises(ValueError, match="max_lr='automatic'"):
        kt.callbacks.OneCycle("automatic")


def test_a_fit_that_prepares_its_data_does_so_once():
    """As the tasks of KerasHub have it."""

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)
            self.calls = 0

        def call(self, x):
            return self.dense(x)

        def fit(self, x, y, **kwargs):
            self.calls += 1
            values = np.array([[float(word) for word in row.split()] for row in x])
            return super().fit(values, y, **kwargs)

    texts = [" ".join(f"{value:.3f}" for value in row) for row in X]
    model = Own()
    model.compile(keras.optimizers.SGD(0.01), "mse")
    cycle = kt.callbacks.OneCycle("auto")
    model.fit(texts, X[:, :2], verbose=0, callbacks=[cycle])
    assert model.calls == 1
    assert cycle.max_lr == cycle.found.one_cycle
