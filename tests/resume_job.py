"""The job that test_resume.py runs in a process of its own, and goes on with."""

import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np

import keras_trainkit as kt

EPOCHS, STEPS = 6, 4
JOBS = {
    "SGD": (
        lambda: "sgd",
        lambda: kt.callbacks.OneCycle(0.3, total_steps=EPOCHS * STEPS),
    ),
    "Adam": (
        lambda: keras.optimizers.Adam(0.01),
        lambda: kt.callbacks.OneCycle(0.05, total_steps=EPOCHS * STEPS),
    ),
    "exponential": (
        lambda: keras.optimizers.RMSprop(0.01),
        lambda: kt.callbacks.ExponentialSchedule(0.02, 4),
    ),
    "pruning": (
        lambda: keras.optimizers.Adam(0.01),
        lambda: kt.pruning.MagnitudePruning(
            0.7, begin_step=1, end_step=12, frequency=2
        ),
    ),
    "plateau": (
        lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        lambda: kt.callbacks.PlateauSchedule(
            kt.schedules.Warmup(kt.schedules.Constant(0.3), 6),
            monitor="loss",
            patience=1,
            min_delta=0.1,
        ),
    ),
}


class Rates(keras.callbacks.Callback):
    """Keeps the learning rate and the momentum of every step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        optimizer = self.model.optimizer
        momentum = getattr(optimizer, "momentum", getattr(optimizer, "beta_1", 0))
        self.seen.append((float(optimizer.learning_rate), float(momentum)))


class KillInMidEpoch(keras.callbacks.Callback):
    """Ends the process at once, as a power failure would."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 3 and batch == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def build(name):
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(JOBS[name][0](), "sparse_categorical_crossentropy")
    return model


def fit(model, name, *others, schedule_first=True, epochs=EPOCHS, **options):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS * 8, 5)).astype("float32")
    y = (x @ rng.normal(size=(5, 3))).argmax(-1)
    rates = Rates()
    schedule = JOBS[name][1]()
    callbacks = [schedule, *others] if schedule_first else [*others, schedule]
    callbacks.append(rates)
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, **options}
    model.fit(x, y, epochs=epochs, callbacks=callbacks, **options)
    return rates.seen


def backup(folder, name):
    return keras.callbacks.BackupAndRestore(Path(folder, f"backup_{name}"))


def main(folder, name):
    """Train half and save; train again with backups until the process dies."""
    model = build(name)
    fit(model, name, epochs=3)
    model.save(Path(folder, f"{name}.keras"))
    fit(build(name), name, backup(folder, name), KillInMidEpoch())


if __name__ == "__main__":
    main(*sys.argv[1:])
