"""Pruning beside TF-MOT: time of a step, accuracy, size; and what channels give.

    python benchmarks/bench_pruning.py steps
    python benchmarks/bench_pruning.py accuracy
    python benchmarks/bench_pruning.py channels
    python benchmarks/bench_pruning.py importance
    python benchmarks/bench_pruning.py resnet

`steps` takes epochs of 100 steps by turns of the plain model, the one that is pruned
here and TF-MOT's (with its own plain model in tf_keras), and gives the median of the
ratios of neighbours. `accuracy` trains on Fashion-MNIST with the same epochs and seeds.
Needs `pip install -e ".[demo,tfmot]"`. On another backend than TensorFlow TF-MOT is
left out of `steps`.
"""

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_trainkit as kt
from keras_trainkit._stopwatch import latencies

TENSORFLOW = keras.backend.backend() == "tensorflow"
BATCH, STEPS = 32, 100
LOSS = "sparse_categorical_crossentropy"


def mlp(seed=0):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(units, activation="relu") for units in (300, 100)]
    flat = [keras.Input((28, 28, 1)), keras.layers.Flatten()]
    head = keras.layers.Dense(10, activation="softmax")
    return keras.Sequential([*flat, *layers, head])


def cnn(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


class EpochTime(keras.callbacks.Callback):
    """Keeps the seconds of the last epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.begin = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds = time.perf_counter() - self.begin


def start_pruning(model, end_step):
    """Begin a pruning that goes on over many fits, as one long fit would."""
    pruning = kt.pruning.MagnitudePruning(0.8, end_step=end_step)
    pruning.set_model(model)
    pruning.set_params({"epochs": 1, "steps": None})
    pruning.on_epoch_begin(0)


def tfmot_model(build, end_step):
    """The model pruned by TF-MOT, and the same in tf_keras without."""
    import tensorflow_model_optimization as tfmot

    plain, pruned = (kt.tfmot.to_tf_keras(build()) for _ in range(2))
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.8, 0, end_step)
    pruned = tfmot.sparsity.keras.prune_low_magnitude(pruned, schedule)
    for model in (plain, pruned):
        model.compile("adam", LOSS)
    return plain, pruned, [tfmot.sparsity.keras.UpdatePruningStep()]


def steps(rounds):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH * STEPS, 28, 28, 1)).astype("float32")
    y = rng.integers(0, 10, len(x))
    end_step = 10 * rounds * STEPS
    for build in (mlp, cnn):
        plain, pruned = build(), build()
        for model in (plain, pruned):
            model.compile("adam", LOSS)
        start_pruning(pruned, end_step)
        pairs = [("here", plain, pruned, [], keras)]
        if TENSORFLOW:
            import tf_keras

            pairs.append(("TF-MOT", *tfmot_model(build, end_step), tf_keras))
        for name, a, b, extra, library in pairs:
            clock = type(
                "Clock", (library.callbacks.Callback,), dict(vars(EpochTime))
            )()
            ratios, times = [], []
            for i in range(rounds + 3):
                seconds = []
                for model, more in ((a, []), (b, extra)):
                    model.fit(x, y, BATCH, verbose=0, callbacks=[clock, *more])
                    seconds.append(clock.seconds / STEPS * 1e3)
                if i >= 3:
                    ratios.append(seconds[1] / seconds[0])
                    times.append(seconds)
            low, middle, high = np.percentile(ratios, (25, 50, 75))
            ms = np.median(times, axis=0)
            print(
                f"{build.__name__:4} {name:7} plain {ms[0]:.2f} ms, pruned {ms[1]:.2f}"
                f", ratio {middle:.2f} (quartiles {low:.2f} to {high:.2f})",
                flush=True,
            )


def data(rows=20000):
    found = kt.datasets.load("fashion_mnist")
    train, test = found.train, found.test
    return train[0][:rows], train[1][:rows], *test


def ours(sparsity, seed, x, y, epochs, batch):
    model = mlp(seed)
    model.compile("adam", LOSS, metrics=["accuracy"])
    total = epochs * -(-len(x) // batch)
    callbacks = []
    if sparsity:
        callbacks = [kt.pruning.MagnitudePruning(sparsity, end_step=total // 2)]
    model.fit(x, y, batch, epochs, verbose=0, callbacks=callbacks)
    return model


def theirs(sparsity, seed, x, y, epochs, batch):
    import tensorflow_model_optimization as tfmot
    import tf_keras

    model = kt.tfmot.to_tf_keras(mlp(seed))
    total = epochs * -(-len(x) // batch)
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, sparsity, 0, total // 2)
    model = tfmot.sparsity.keras.prune_low_magnitude(model, schedule)
    tf_keras.utils.set_random_seed(seed)
    model.compile("adam", LOSS)
    step = tfmot.sparsity.keras.UpdatePruningStep()
    model.fit(x, y, batch, epochs, verbose=0, callbacks=[step])
    return kt.tfmot.from_tf_keras(tfmot.sparsity.keras.strip_pruning(model))


def accuracy_of(model, x, y):
    return float((model.predict(x, 1000, verbose=0).argmax(-1) == y).mean())


def accuracy(seeds, epochs=6, batch=64):
    x, y, x_test, y_test = data()
    print(f"| sparsity | here | TF-MOT | gzip here | gzip TF-MOT | ({seeds} seeds)")
    print("|---|---|---|---|---|")
    for sparsity in (0.0, 0.5, 0.8, 0.9, 0.95):
        cells, sizes = [], []
        for train in (ours, theirs):
            if train is theirs and not sparsity:
                cells.append("")
                sizes.append("")
                continue
            models = [train(sparsity, s, x, y, epochs, batch) for s in range(seeds)]
            scores = [accuracy_of(model, x_test, y_test) for model in models]
            reports = [kt.pruning.sparsity_report(model) for model in models]
            size = np.mean([report.gzip_bytes for report in reports])
            kernels = [k for r in reports for k in r.layers]
            found = 1 - sum(k.nonzeros for k in kernels) / sum(
                k.parameters for k in kernels
            )
            cells.append(
                f"{np.mean(scores):.2%} ± {np.std(scores):.2%} (at {found:.2%})"
            )
            sizes.append(f"{size / 1e3:.0f} kB")
        print(
            f"| {sparsity:.0%} | {' | '.join(cells)} | {' | '.join(sizes)} |",
            flush=True,
        )


def litert_ratios(models, rounds):
    """Median time of each model in LiteRT, batch 32, over the first one's."""
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for i, model in enumerate(models):
            path = kt.export.to_litert(model, Path(folder, f"{i}.tflite"))
            runs.append(kt.export.load_litert(path, batch_size=32).invoke)
        times = latencies(runs, repetitions=rounds)
    return [float(np.median(t / times[0])) for t in times]


def channels(seeds, epochs=6, batch=64):
    x, y, x_test, y_test = data()
    print("| ratio | parameters | FLOPs | LiteRT time | accuracy | after fine-tuning |")
    print("|---|---|---|---|---|---|")
    ratios = (0.0, 0.25, 0.5, 0.75)
    rows = []
    for seed in range(seeds):
        model = cnn(seed)
        model.compile("adam", LOSS)
        model.fit(x, y, batch, epochs, verbose=0)
        results = [kt.pruning.prune_channels(model, r) for r in ratios]
        times = litert_ratios([result.model for result in results], 200)
        for result, seconds in zip(results, times, strict=True):
            before = accuracy_of(result.model, x_test, y_test)
            result.model.compile(keras.optimizers.Adam(5e-4), LOSS)
            result.model.fit(x, y, batch, 2, verbose=0)
            after = accuracy_of(result.model, x_test, y_test)
            cost = result.after
            rows.append((cost.parameters, cost.flops, seconds, before, after))
    found = np.array(rows).reshape(seeds, len(ratios), -1)
    for ratio, mean, std in zip(ratios, found.mean(0), found.std(0), strict=True):
        print(
            f"| {ratio:.0%} | {mean[0]:,.0f} | {mean[1]:,.0f} | {mean[2]:.2f} | "
            f"{mean[3]:.1%} | {mean[4]:.1%} ± {std[4]:.1%} |"
        )


def importance(seeds, epochs=3, batch=64):
    """Accuracy right after the cut, without training, for each importance."""
    x, y, x_test, y_test = data()
    ratios, names = (0.25, 0.5), ("l1", "l2", "group_l2")
    rows = []
    for seed in range(seeds):
        model = cnn(seed)
        model.compile("adam", LOSS)
        model.fit(x, y, batch, epochs, verbose=0)
        for ratio in ratios:
            for name in names:
                cut = kt.pruning.prune_channels(model, ratio, importance=name)
                rows.append(accuracy_of(cut.model, x_test, y_test))
    found = np.array(rows).reshape(seeds, len(ratios), len(names))
    print("| ratio | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for ratio, means, stds in zip(ratios, found.mean(0), found.std(0), strict=True):
        cells = [f"{m:.1%} ± {s:.1%}" for m, s in zip(means, stds, strict=True)]
        print(f"| {ratio:.0%} | " + " | ".join(cells) + " |")


def resnet(rounds):
    model = kt.models.build_cifar_resnet()
    smaller = kt.pruning.prune_channels(model, 0.5)
    print(smaller)
    folded = [kt.folding.fold_batch_norm(m).model for m in (model, smaller.model)]
    x = np.random.default_rng(0).normal(size=(32, 32, 32, 3)).astype("float32")
    times = latencies(
        [lambda m=m: m.predict_on_batch(x) for m in folded], repetitions=rounds
    )
    print(f"folded, batch 32: {np.median(times[1] / times[0]):.2f} of the time")
    if TENSORFLOW:
        print(f"folded, batch 32, LiteRT: {litert_ratios(folded, rounds)[1]:.2f}")


WHAT = {
    "steps": steps,
    "accuracy": accuracy,
    "channels": channels,
    "importance": importance,
    "resnet": resnet,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=list(WHAT))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.what in ("steps", "resnet"):
        WHAT[options.what](options.rounds)
    else:
        WHAT[options.what](options.seeds)
