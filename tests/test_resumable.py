"""A training that was broken off goes on as if it had not been."""

import json

import keras
import numpy as np
import pytest

import keras_trainkit as kt

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6)).astype("float32")
Y = (X[:, :1] + 0.3 * RNG.normal(size=(64, 1))).astype("float32")


class Counter(keras.callbacks.Callback):
    """A callback of a user's own, which keeps an object that JSON cannot hold."""

    def __init__(self):
        super().__init__()
        self.seen = {1, 2}

    def get_state(self):
        return {"seen": sorted(self.seen)}

    def set_state(self, state):
        self.seen = set(state["seen"])

    def on_epoch_end(self, epoch, logs=None):
        self.seen.add(10 * epoch)


class Break(keras.callbacks.Callback):
    """The process dies in an epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations == 11:
            raise KeyboardInterrupt


def build():
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Normalization(mean=0.5, variance=2.0),
            keras.layers.Dense(16, "relu"),
            keras.layers.Dropout(0.3),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
    )
    model.compile("adam", "mse")
    return model


def callbacks_of(folder):
    return [
        keras.callbacks.EarlyStopping(
            "val_loss", patience=2, restore_best_weights=True
        ),
        keras.callbacks.ReduceLROnPlateau("val_loss", patience=1, min_delta=0.2),
        keras.callbacks.ModelCheckpoint(
            folder / "best.weights.h5",
            "val_loss",
            save_best_only=True,
            save_weights_only=True,
        ),
        Counter(),
    ]


def train(folder, *more):
    model = build()
    inner = callbacks_of(folder)
    backup = kt.callbacks.Resumable(inner, folder / "backup")
    history = model.fit(
        X,
        Y,
        batch_size=16,
        epochs=6,
        shuffle=False,
        validation_split=0.25,
        verbose=0,
        callbacks=[backup, *more],
    )
    return model, inner, history


def state(callback):
    return {
        name: value
        for name, value in vars(callback).items()
        if isinstance(value, int | float | set)
    }


@pytest.mark.parametrize("damaged", [False, True])
def test_it_goes_on_as_if_it_had_not_been_broken(tmp_path, damaged):
    model, inner, history = train(tmp_path / "whole")
    assert not list((tmp_path / "whole" / "backup").iterdir())
    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        train(broken, Break())
    if damaged:
        # Killed while the last one was written: the one before counts.
        latest = broken / "backup" / "latest.npz"
        latest.write_bytes(latest.read_bytes()[:100])
    again, inner_again, history_again = train(broken)
    assert history_again.epoch == history.epoch
    assert history_again.history == history.history
    for a, b in zip(model.variables, again.variables, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (a, b)))
    rates = (m.optimizer.learning_rate for m in (model, again))
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, rates))
    for a, b in zip(inner, inner_again, strict=True):
        assert state(a) == state(b)
    for a, b in zip(inner[0].best_weights, inner_again[0].best_weights, strict=True):
        np.testing.assert_array_equal(a, b)
    files = (tmp_path / name / "best.weights.h5" for name in ("whole", "broken"))
    best = []
    for file in files:
        model.load_weights(file)
        best.append(model.get_weights())
    for a, b in zip(*best, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_cycle_goes_on_in_its_middle(tmp_path):
    def run(folder, *more):
        model = build()
        backup = kt.callbacks.Resumable([kt.callbacks.OneCycle(0.01)], folder)
        options = {"batch_size": 16, "epochs": 4, "shuffle": False, "verbose": 0}
        return model, model.fit(X, Y, callbacks=[backup, *more], **options)

    model, history = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", Break())
    again, history_again = run(tmp_path / "broken")
    assert history_again.history == history.history
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_backup_of_something_else_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Break())
    other = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    other.compile("sgd", "mse")
    backup = kt.callbacks.Resumable(callbacks_of(tmp_path), tmp_path / "backup")
    with pytest.raises(ValueError, match="of the backup of this model"):
        other.fit(X, Y, validation_split=0.25, verbose=0, callbacks=[backup])
    backup = kt.callbacks.Resumable([Counter()], tmp_path / "backup")
    with pytest.raises(ValueError, match="those of the backup"):
        build().fit(X, Y, verbose=0, callbacks=[backup])
    with pytest.raises(ValueError, match="`callbacks` must be Keras callbacks"):
        kt.callbacks.Resumable(["stop"], tmp_path)
    # Nothing in a backup is code.
    with np.load(tmp_path / "backup" / "latest.npz", allow_pickle=False) as file:
        json.loads(file["record"].tobytes())
