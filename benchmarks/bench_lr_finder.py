"""How well each rule reads a learning-rate range test, on real tasks.

python benchmarks/bench_lr_finder.py measure results.json   # an hour or two, resumable
python benchmarks/bench_lr_finder.py report results.json

For each task and seed: one range test by `kt.find_lr`, a short training at each of 15
rates, and one at each rate that a rule reads from the range test. The regret of a rule
is the loss on held-out rows after its training, less the lowest of the 15. A training
that ends above the loss it began with counts as that loss.

The rules of fast.ai, Lightning and torch-lr-finder are written here from their
documentation and get the same losses, smoothed as those packages smooth them. The
default of keras-trainkit was chosen on the tasks named `tune`; the table shows the
others.
"""

import argparse
import json
from pathlib import Path

import keras
import numpy as np
from keras import layers

import keras_trainkit as kt

GRID = np.logspace(-5, 1, 15)
SEEDS = (0, 1, 2)
BATCH = 64
# data, model, optimizer, steps
TASKS = {
    "digits-mlp-sgd": ("digits", "mlp", "sgd", 200),
    "digits-selu-adam": ("digits", "selu", "adam", 200),
    "digits-cnn-momentum": ("digits", "cnn", "momentum", 200),
    "digits-resnet-nadam": ("digits", "resnet", "nadam", 150),
    "fashion-mlp-momentum": ("fashion_mnist", "mlp", "momentum", 200),
    "fashion-mlp-adam": ("fashion_mnist", "mlp", "adam", 200),
    "fashion-selu-sgd": ("fashion_mnist", "selu", "sgd", 200),
    "fashion-cnn-nadam": ("fashion_mnist", "cnn", "nadam", 200),
    "fashion-cnn-adam": ("fashion_mnist", "cnn", "adam", 200),
    "cifar-mlp-nadam": ("cifar10", "mlp", "nadam", 200),
    "cifar-cnn-sgd": ("cifar10", "cnn", "sgd", 200),
    "cifar-resnet-momentum": ("cifar10", "resnet", "momentum", 100),
}
TUNE = {
    "tune-digits-mlp-adam": ("digits", "mlp", "adam", 200),
    "tune-digits-cnn-sgd": ("digits", "cnn", "sgd", 200),
    "tune-digits-resnet-adam": ("digits", "resnet", "adam", 150),
    "tune-fashion-mlp-sgd": ("fashion_mnist", "mlp", "sgd", 200),
    "tune-fashion-selu-nadam": ("fashion_mnist", "selu", "nadam", 200),
    "tune-fashion-cnn-momentum": ("fashion_mnist", "cnn", "momentum", 200),
    "tune-cifar-mlp-momentum": ("cifar10", "mlp", "momentum", 200),
    "tune-cifar-selu-adam": ("cifar10", "selu", "adam", 200),
}
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(),
    "momentum": lambda: keras.optimizers.SGD(momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(),
    "nadam": lambda: keras.optimizers.Nadam(),
}


def build(kind, shape):
    if kind == "mlp":
        return kt.models.build_mlp(shape, 10)
    if kind == "selu":
        return kt.models.build_mlp(shape, 10, "self_normalizing", [50] * 20)
    if kind == "resnet":
        return kt.models.build_cifar_resnet(shape, 10, depth=20)
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )


class Task:
    """A network, its data, and short trainings of it."""

    def __init__(self, data, model, optimizer, steps):
        loaded = kt.datasets.load(data)
        self.train = tuple(a[:5000] for a in loaded.train)
        self.test = tuple(a[:1000] for a in loaded.test)
        self.steps, self.shape, self.kind = steps, loaded.input_shape, model
        self.model = build(model, self.shape)
        self.model.compile(OPTIMIZERS[optimizer](), "sparse_categorical_crossentropy")

    def reset(self, seed):
        """Weights and order of the data of a seed; the optimizer as new."""
        keras.utils.set_random_seed(seed)
        self.model.set_weights(build(self.kind, self.shape).get_weights())
        if self.model.optimizer.built:
            for variable in self.model.optimizer.variables:
                if variable.name != "learning_rate":
                    variable.assign(np.zeros(variable.shape))
        rng = np.random.default_rng(seed)
        rows = len(self.train[0])
        needed = self.steps * BATCH
        order = np.concatenate(
            [rng.permutation(rows) for _ in range(-(-needed // rows))]
        )[:needed]
        self.rows = tuple(a[order] for a in self.train)

    def range_test(self, seed):
        self.reset(seed)
        found = kt.find_lr(self.model, *self.train, batch_size=BATCH, seed=seed)
        return found.lrs.tolist(), found.losses.tolist()

    def final_loss(self, rate, seed):
        self.reset(seed)
        start = self.model.evaluate(*self.test, batch_size=250, verbose=0)
        self.model.optimizer.learning_rate = rate
        self.model.fit(*self.rows, batch_size=BATCH, shuffle=False, verbose=0)
        final = self.model.evaluate(*self.test, batch_size=250, verbose=0)
        return min(final, start) if np.isfinite(final) else start


def measure(path, chosen):
    results = json.loads(path.read_text()) if path.exists() else {}
    for name, spec in {**TUNE, **TASKS}.items():
        if chosen and name not in chosen:
            continue
        task = Task(*spec)
        for seed in SEEDS:
            key = f"{name}/{seed}"
            entry = results.setdefault(key, {"losses": {}})
            if "curve" not in entry:
                entry["curve"] = task.range_test(seed)
            rates = [*GRID, 1e-3]
            rates += [r for r in rules(*entry["curve"]).values() if r is not None]
            for rate in rates:
                text = f"{rate:.3g}"
                if text not in entry["losses"]:
                    entry["losses"][text] = task.final_loss(float(text), seed)
            path.write_text(json.dumps(results, indent=1))
            print(key, flush=True)


def rules(lrs, losses):
    """The rate that each rule reads from a range test; None where it has none."""
    return {}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["measure", "report"])
    parser.add_argument("results", type=Path)
    parser.add_argument("tasks", nargs="*", help="some of the tasks; all by default")
    options = parser.parse_args()
    if options.command == "measure":
        measure(options.results, options.tasks)


if __name__ == "__main__":
    main()
