"""Time of a whole `fit` with a callback, and how often it compiles, over a plain one.

KERAS_BACKEND=jax python benchmarks/bench_fit.py

A 784-300-100-10 network with SGD and momentum, batches of 32, 500 steps. The first fit
is that of a new model, its compiling included; the second is one more of the same
model. The variants take turns in one process. Printed are the medians over the rounds
of the ratio to the plain fit of the same round, and how often the loss was traced; on
PyTorch, which compiles nothing, that is the number of steps.
"""

import argparse
import time

import keras
import numpy as np

import keras_trainkit as kt

VARIANTS = {
    "plain": lambda steps: [],
    "OneCycle": lambda steps: [kt.callbacks.OneCycle(0.05)],
    "MagnitudePruning": lambda steps: [
        kt.callbacks.MagnitudePruning(0.5, end_step=steps, frequency=steps // 5)
    ],
    "layerwise": lambda steps: [],
}
FITS = ("first", "second")


class TracedLoss(keras.losses.SparseCategoricalCrossentropy):
    """Counts how often Python calls it."""

    calls = 0

    def call(self, y_true, y_pred):
        self.calls += 1
        return super().call(y_true, y_pred)


def make(name):
    model = kt.models.build_mlp((784,), 10)
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    if name == "layerwise":
        optimizer = kt.optimizers.layerwise(optimizer, {"dense": 0.1})
    model.compile(optimizer, TracedLoss())
    return model


def measure(name, x, y):
    """Seconds and traces of two fits of one new model."""
    keras.utils.clear_session()
    model = make(name)
    found = []
    for _ in FITS:
        before = model.loss.calls
        callbacks = VARIANTS[name](len(x) // 32)
        begun = time.perf_counter()
        model.fit(x, y, batch_size=32, callbacks=callbacks, verbose=0)
        found.append((time.perf_counter() - begun, model.loss.calls - before))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    x = rng.normal(size=(32 * options.steps, 784)).astype("float32")
    y = rng.integers(0, 10, len(x))
    measure("plain", x, y)
    rounds = []
    for number in range(options.rounds):
        # Each round begins with another variant.
        order = np.roll(list(VARIANTS), number)
        rounds.append({str(name): measure(str(name), x, y) for name in order})
    print(
        f"{keras.backend.backend()}, {options.rounds} rounds of {options.steps} steps"
    )
    print("| | first fit | traces | second fit | traces |\n|---|---:|---:|---:|---:|")
    for name in VARIANTS:
        cells = []
        for k in range(len(FITS)):
            ratios = [one[name][k][0] / one["plain"][k][0] for one in rounds]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            cells += [f"{np.median(ratios):.2f} ({spread})", rounds[-1][name][k][1]]
        print(f"| {name} | {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
