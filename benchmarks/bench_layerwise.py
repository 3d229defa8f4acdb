"""The cost of a learning rate for each layer: training steps, by turns.

    KERAS_BACKEND=… python benchmarks/bench_layerwise.py

Prints the time of a compiled step with `kt.optimizers.layerwise` over that with the
optimizer itself: the median of the ratios of pairs, which follow each other.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_trainkit as kt

OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "Adam": lambda: keras.optimizers.Adam(1e-3),
    "AdamW": lambda: keras.optimizers.AdamW(1e-3),
}


def network(shape, hidden):
    model = kt.models.build_mlp(shape, 10, hidden_units=hidden)
    return model, np.zeros((64, *shape), "float32"), np.zeros(64, "int32")


def stepper(shape, hidden, optimizer):
    keras.utils.set_random_seed(0)
    model, x, y = network(shape, hidden)
    model.compile(optimizer, "sparse_categorical_crossentropy")

    def steps(number):
        start = time.perf_counter()
        for _ in range(number):
            model.train_on_batch(x, y)
        return time.perf_counter() - start

    steps(20)
    return steps


def main(rounds):
    print(
        f"Keras {keras.__version__}, {keras.backend.backend()}, {os.cpu_count()} cores"
    )
    for label, shape, hidden in (
        ("784-300-100-10", (28, 28, 1), (300, 100)),
        ("3072-20x100-10", (32, 32, 3), (100,) * 20),
    ):
        for name, make in OPTIMIZERS.items():
            plain = stepper(shape, hidden, make())
            rates = slice(1e-5, 1e-3)
            ours = stepper(shape, hidden, kt.optimizers.layerwise(make(), rates))
            ratios = []
            for number in range(rounds):
                pair = (plain, ours) if number % 2 else (ours, plain)
                times = {steps: steps(20) for steps in pair}
                ratios.append(times[ours] / times[plain])
            low, middle, high = np.percentile(ratios, [25, 50, 75])
            print(f"{label} {name:6s} {middle:.2f} (quartiles {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    main(parser.parse_args().rounds)
