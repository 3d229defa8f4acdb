"""Time of a training step with each schedule callback, over that of a plain fit.

KERAS_BACKEND=jax python benchmarks/bench_schedules.py

A 784-300-100-10 network on random images, batches of 32. The variants take turns, in
one process; an epoch counts from its second on, so that compiling does not. The ratio
of each round is that of the medians of its epochs; printed is the median over the
rounds, with the lowest and the highest.
"""

import argparse
import time

import keras
import numpy as np

import keras_trainkit as kt


class EpochTimes(keras.callbacks.Callback):
    """Seconds of each epoch."""

    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self._begun = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self._begun)


class PerBatch(keras.callbacks.Callback):
    """One cycle as in A. Géron's notebook: Python sets the rate at each batch."""

    def __init__(self, max_lr, total_steps):
        super().__init__()
        self.max_lr, self.total_steps, self.step = max_lr, total_steps, 0

    def on_train_batch_begin(self, batch, logs=None):
        half = self.total_steps // 2
        distance = abs(self.step - half) / half
        self.model.optimizer.learning_rate = self.max_lr * (1 - 0.9 * distance)
        self.step += 1


def make_variants(epochs, steps):
    return {
        "plain": list,
        "OneCycle": lambda: [kt.callbacks.OneCycle(0.05)],
        "ExponentialSchedule": lambda: [kt.callbacks.ExponentialSchedule(0.05, 20)],
        "PowerSchedule": lambda: [kt.callbacks.PowerSchedule(0.05, 5)],
        "PiecewiseConstantSchedule": lambda: [
            kt.callbacks.PiecewiseConstantSchedule([1, 2], [0.05, 0.02, 0.01])
        ],
        "PlateauSchedule": lambda: [kt.callbacks.PlateauSchedule(monitor="loss")],
        "per-batch Python callback": lambda: [PerBatch(0.05, epochs * steps)],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=300, help="batches in an epoch")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    x = rng.normal(size=(32 * options.steps, 784)).astype("float32")
    y = rng.integers(0, 10, len(x))
    variants = make_variants(options.epochs, options.steps)
    models = {}
    for name in variants:
        models[name] = kt.models.build_mlp((784,), 10)
        models[name].compile(
            keras.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy"
        )

    seconds = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, callbacks in variants.items():
            times = EpochTimes()
            models[name].fit(
                x,
                y,
                epochs=options.epochs,
                callbacks=[*callbacks(), times],
                verbose=0,
            )
            seconds[name].append(np.median(times.seconds[1:]))

    print(f"Keras {keras.__version__} on {keras.backend.backend()}, NumPy seed 0")
    print(f"{'':28}  step (ms)  over plain (median, lowest, highest)")
    plain = np.array(seconds["plain"])
    for name, values in seconds.items():
        ratios = np.array(values) / plain
        print(
            f"{name:28}  {1000 * np.median(values) / options.steps:9.3f}  "
            f"{np.median(ratios):.3f} {ratios.min():.3f} {ratios.max():.3f}"
        )


if __name__ == "__main__":
    main()
