"""How well each rule reads a learning-rate range test, on real tasks.

python benchmarks/bench_lr_finder.py measure results.json   # an hour or two, resumable
python benchmarks/bench_lr_finder.py report results.json
python benchmarks/bench_lr_finder.py cost

For each task and seed: one range test by `kt.find_lr`, a short training at each of 15
rates, and one at each rate that a rule reads from the range test. The regret of a rule
is the loss on held-out rows after its training, less the lowest of the 15. A training
that ends above the loss it began with counts as that loss.

The rules of fast.ai, Lightning and torch-lr-finder are written here from their
documentation and get the same losses, smoothed as those packages smooth them. Where
keras-trainkit finds no descent it gets a longer test, as its documentation advises. The
default of keras-trainkit was chosen on the tasks named `tune`; the table shows the
others.
"""

import argparse
import json
import time
from pathlib import Path

import keras
import numpy as np
from keras import layers

import keras_trainkit as kt
from keras_trainkit.lr_finder._analyse import slide, valley

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

    def range_test(self, seed, num_steps=None):
        self.reset(seed)
        found = kt.find_lr(
            self.model, *self.train, batch_size=BATCH, seed=seed, num_steps=num_steps
        )
        return found.lrs.tolist(), found.losses.tolist()

    def confirmed(self, seed):
        """The rate that is left of three in short trainings."""
        self.reset(seed)
        found = kt.find_lr(
            self.model, *self.train, batch_size=BATCH, seed=seed, confirm=3
        )
        return found.suggestion

    def final_loss(self, rate, seed):
        self.reset(seed)
        start = self._held_out_loss()
        self.model.optimizer.learning_rate = rate
        self.model.fit(*self.rows, batch_size=BATCH, shuffle=False, verbose=0)
        final = self._held_out_loss()
        return min(final, start) if np.isfinite(final) else start

    def _held_out_loss(self):
        """The mean loss of held-out rows, by the statistics of their batches.

        After some hundred steps, the moving averages of a BatchNorm are still half of
        what they began with, and would decide.
        """
        x, y = self.test
        losses = []
        for begin in range(0, len(x), 250):
            p = self.model(x[begin : begin + 250], training=True)
            rows = y[begin : begin + 250]
            losses.append(keras.losses.sparse_categorical_crossentropy(rows, p))
        return float(np.mean(keras.ops.convert_to_numpy(keras.ops.concatenate(losses))))


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
                if kt.lr_finder.analyse(*entry["curve"]).suggestion is None:
                    entry["longer"] = task.range_test(seed, num_steps=300)
            if "confirm=3" not in entry:
                entry["confirm=3"] = task.confirmed(seed)
            rates = [*GRID, 1e-3]
            rates += [r for r in rules(entry).values() if r is not None]
            for rate in rates:
                text = f"{rate:.3g}"
                if text not in entry["losses"]:
                    entry["losses"][text] = task.final_loss(float(text), seed)
            path.write_text(json.dumps(results, indent=1))
            print(key, flush=True)


def rules(entry):
    """The rate that each rule reads from a range test; None where it has none."""
    lrs, losses = entry["curve"]
    found = kt.lr_finder.analyse(*entry.get("longer", (lrs, losses)))
    rates = {"default": found.suggestion}
    if "confirm=3" in entry:
        rates["confirm=3"] = entry["confirm=3"]
    for name in ("steepest", "valley", "slide", "minimum"):
        rates[name] = found.suggestions.get(name)
    lrs, losses = np.asarray(lrs), np.asarray(losses)
    slow = _until_it_diverges(_average(losses, 0.98))
    count = len(slow)
    # fast.ai leaves out the first tenth and the last five points.
    begin, end = len(losses) // 10, count - 5 if count == len(losses) else count
    part = lrs[begin:end], slow[begin:end]
    rates["fast.ai steepest"] = part[0][int(np.argmin(np.gradient(part[1])))]
    rates["fast.ai valley"] = valley(*part)
    rates["fast.ai slide"] = slide(*part)
    rates["fast.ai minimum"] = part[0][int(np.argmin(part[1]))] / 10
    # Lightning leaves out the first ten points and the last.
    slope = np.gradient(slow[10 : count - 1])
    rates["Lightning"] = lrs[10 + int(np.argmin(slope))]
    # torch-lr-finder: first 10 and last 5, an average without bias correction.
    quick = losses.copy()
    for step in range(1, len(quick)):
        quick[step] = 0.05 * losses[step] + 0.95 * quick[step - 1]
    count = len(_until_it_diverges(quick, 5))
    slope = np.gradient(quick[10 : count - 5])
    rates["torch-lr-finder"] = lrs[10 + int(np.argmin(slope))]
    return rates


def _average(losses, beta):
    average, averages = 0.0, []
    for step, loss in enumerate(losses):
        average = beta * average + (1 - beta) * loss
        averages.append(average / (1 - beta ** (step + 1)))
    return np.array(averages)


def _until_it_diverges(losses, factor=4):
    bad = ~np.isfinite(losses) | (losses > factor * np.fmin.accumulate(losses))
    return losses[: int(np.argmax(bad))] if bad.any() else losses


def report(path):
    results = json.loads(path.read_text())
    regrets = {}
    # All tasks, or those that were chosen for the measurement.
    tasks = {n: spec for n, spec in TASKS.items() if f"{n}/{SEEDS[-1]}" in results}
    for name, (*_, optimizer, _) in tasks.items():
        usual = 1e-3 if "adam" in optimizer else 1e-2
        for seed in SEEDS:
            entry = results[f"{name}/{seed}"]
            losses = {float(rate): loss for rate, loss in entry["losses"].items()}
            best = min(losses[float(f"{rate:.3g}")] for rate in GRID)
            found = {**rules(entry), "1e-3 always": 1e-3}
            for rule, rate in found.items():
                # Who gets no rate keeps the optimizer's own.
                rate = float(f"{usual if rate is None else rate:.3g}")
                regrets.setdefault(rule, []).append(losses[rate] - best)
    print("| rule | median regret | mean | worst |")
    print("|---|---|---|---|")
    order = sorted(regrets, key=lambda rule: np.median(regrets[rule]))
    for rule in order:
        values = np.array(regrets[rule])
        print(
            f"| {rule} | {np.median(values):.3f} | {values.mean():.3f} | "
            f"{values.max():.3f} |"
        )
    print("\n| task | " + " | ".join(order) + " |")
    print("|---" * (len(order) + 1) + "|")
    for place, name in enumerate(tasks):
        part = slice(len(SEEDS) * place, len(SEEDS) * (place + 1))
        cells = (f"{np.mean(regrets[rule][part]):.2f}" for rule in order)
        print(f"| {name} | " + " | ".join(cells) + " |")


def cost(rounds):
    """Time of a range test over that of a plain fit of as many steps, both as new."""
    rng = np.random.default_rng(0)
    print(f"Keras {keras.__version__} on {keras.backend.backend()}")
    for kind, shape in (("mlp", (784,)), ("cnn", (28, 28, 1))):
        x = rng.normal(size=(BATCH * 200, *shape)).astype("float32")
        y = rng.integers(0, 10, len(x))

        def new(kind=kind, shape=shape):
            model = build(kind, shape)
            model.compile(OPTIMIZERS["momentum"](), "sparse_categorical_crossentropy")
            return model

        def fit(model, x=x, y=y):
            model.fit(x, y, batch_size=BATCH, verbose=0)

        def search(model, x=x, y=y):
            # To a rate at which nothing explodes, so that no step is left out.
            found = kt.find_lr(model, x, y, batch_size=BATCH, max_lr=1e-3)
            assert len(found.lrs) == 200

        seconds = {fit: [], search: []}
        for _ in range(rounds + 1):
            for function, times in seconds.items():
                model = new()
                begun = time.perf_counter()
                function(model)
                times.append(time.perf_counter() - begun)
        plain, test = (np.array(times[1:]) for times in seconds.values())
        print(
            f"{kind}: fit {np.median(plain):.3f} s, test {np.median(test):.3f} s, "
            f"ratio {np.median(test / plain):.2f} "
            f"({(test / plain).min():.2f} to {(test / plain).max():.2f})"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["measure", "report", "cost"])
    parser.add_argument("results", type=Path, nargs="?", help="a JSON file")
    parser.add_argument("tasks", nargs="*", help="some of the tasks; all by default")
    options = parser.parse_args()
    if options.command == "measure":
        measure(options.results, options.tasks)
    elif options.command == "report":
        report(options.results)
    else:
        cost(rounds=7)


if __name__ == "__main__":
    main()
