"""`kt.compress` beside fixed recipes of as many epochs.

    python benchmarks/bench_compress.py --task fashion_cnn --seeds 3
    python benchmarks/bench_compress.py --task digits_mlp
    python benchmarks/bench_compress.py --task tokens
    python benchmarks/bench_compress.py --task cifar_resnet

For each seed a model is trained and compressed: to the smallest file within one point,
which gives the front, and to the target in bytes where there is one. The fixed recipes
cut 25, 50 and 75% of the channels everywhere, train on for as many epochs as the search
for the front took in all, on one cycle, and quantize to int8. The area between the two
fronts is over the logarithm of the size, where both have files: the mean number of
points by which the search is above. `--task fashion_cnn --torch-pruning` also shows
what the uniform cuts of Torch-Pruning, which must be installed, give for the same
network in PyTorch, in float32, with a byte counted for each weight. Everything is
measured on the test data, which no search looks at. Needs
`pip install -e ".[export,demo]"`.
"""

import argparse
import copy
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from bench_deployment import cnn

import keras_trainkit as kt

LOSS = "sparse_categorical_crossentropy"
RATIOS = (0.25, 0.5, 0.75)
EPOCHS = 2


def fashion_cnn():
    data = kt.datasets.load("fashion_mnist")
    x, y = (array[:20_000] for array in data.train)
    return cnn(data.input_shape, data.num_classes), x, y, data.test, 64, 3


def digits_mlp():
    data = kt.datasets.load("digits")
    model = kt.models.build_mlp(data.input_shape, data.num_classes)
    return model, *data.train, data.validation, 32, 20


def cifar_resnet():
    data = kt.datasets.load("cifar10")
    model = kt.models.build_cifar_resnet(data.input_shape, data.num_classes, depth=20)
    return model, *data.train, data.test, 128, 10


def tokens():
    """Sequences in which a token of one of four kinds comes first before the others.

    The class is which of the kinds is first, and whether a mark is behind it.
    """
    rng = np.random.default_rng(0)
    x = rng.integers(6, 64, (6_000, 24))
    kind, place = rng.integers(0, 4, 6_000), rng.integers(0, 12, 6_000)
    x[np.arange(6_000), place] = kind
    other = rng.integers(0, 4, 6_000)
    x[np.arange(6_000), place + rng.integers(1, 6, 6_000)] = other
    mark = rng.random(6_000) < 0.5
    x[mark, place[mark] + rng.integers(6, 12, mark.sum())] = 4
    y = 2 * kind + mark
    model = transformer(24, 64, 8)
    return model, x[:5_000], y[:5_000], (x[5_000:], y[5_000:]), 64, 10


class Positions(keras.layers.Layer):
    """Adds an embedding of each position."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], initializer="random_normal")

    def call(self, x):
        return x + self.table


def transformer(length, vocabulary, classes, width=32):
    layers = keras.layers
    inputs = keras.Input((length,), dtype="int32")
    x = Positions()(layers.Embedding(vocabulary, width)(inputs))
    for _ in range(2):
        normal = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(4, 8)(normal, normal)])
        normal = layers.LayerNormalization()(x)
        inner = layers.Dense(4 * width, activation="relu")(normal)
        x = layers.Add()([x, layers.Dense(width)(inner)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(x))


# Each with the share of the float32 file's bytes to reach, where the issue has one.
TASKS = {
    "fashion_cnn": (fashion_cnn, 26_000),
    "digits_mlp": (digits_mlp, None),
    "tokens": (tokens, None),
    "cifar_resnet": (cifar_resnet, 1 / 12),
}


def fit(model, x, y, batch_size, epochs, peak=5e-3):
    model.compile(keras.optimizers.Adam(2e-3), LOSS)
    cycle = kt.callbacks.OneCycle(peak)
    model.fit(x, y, batch_size, epochs, verbose=0, callbacks=[cycle])
    return model


def epochs_of(name):
    """How many epochs a step of a search took."""
    if name == "int8":
        return 0
    longer = 0 if name.endswith("aware") else name.count(", trained on")
    return EPOCHS * 2**longer


def of_file(path, test):
    outputs = kt.export.predict_litert(path, test[0])
    return path.stat().st_size / 1e3, float(np.mean(outputs.argmax(-1) == test[1]))


def fixed(model, ratio, x, y, test, batch_size, epochs, folder):
    smaller = kt.pruning.prune_channels(model, ratio).model
    fit(smaller, x, y, batch_size, epochs, peak=2e-3)
    path = folder / f"fixed-{ratio}.tflite"
    small = kt.export.optimize_for_inference(smaller)
    return of_file(kt.export.to_litert(small, path, "int8", x[:200]), test)


def best_by_size(points):
    """The points that no other is both smaller and better than, by size."""
    kept = []
    for size, metric in sorted(points, key=lambda p: (p[0], -p[1])):
        if not kept or metric > kept[-1][1]:
            kept.append((size, metric))
    return np.array(kept)


def area(ours, theirs):
    """Mean points by which a front is above another, over the logarithm of the size."""
    ours, theirs = best_by_size(ours), best_by_size(theirs)
    low = max(ours[0, 0], theirs[0, 0])
    high = min(max(p[-1, 0] for p in (ours, theirs)), 1e9)
    if low >= high:
        return float("nan")
    grid = np.linspace(np.log(low), np.log(high), 200)
    # As a step: with so many bytes one has the best file that is no larger.
    a, b = (
        p[np.searchsorted(np.log(p[:, 0]), grid, "right") - 1, 1]
        for p in (ours, theirs)
    )
    return 100 * float(np.mean(a - b))


def torch_pruning(x, y, test, epochs, seed):
    """The CNN in PyTorch, cut by Torch-Pruning and trained on."""
    import torch
    import torch_pruning as tp
    from torch import nn

    torch.manual_seed(seed)

    def block(a, b):
        conv = nn.Conv2d(a, b, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]

    def train(model, count, peak):
        optimizer = torch.optim.Adam(model.parameters(), peak)
        steps = count * -(-len(images) // 64)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
        model.train()
        for _ in range(count):
            for rows in torch.randperm(len(images)).split(64):
                loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                cycle.step()

    def accuracy(model):
        model.eval()
        with torch.no_grad():
            guess = torch.cat([model(part).argmax(1) for part in tested.split(500)])
        return float((guess.numpy() == test[1]).mean())

    images, tested = (torch.tensor(a).permute(0, 3, 1, 2) for a in (x, test[0]))
    labels = torch.tensor(y.astype("int64"))
    body = [*block(1, 32), *block(32, 64), *block(64, 64), nn.Flatten()]
    head = [nn.Dropout(0.3), nn.Linear(576, 128), nn.ReLU(), nn.Linear(128, 10)]
    model = nn.Sequential(*body, *head)
    train(model, 3, 5e-3)
    state, found = model.state_dict(), [("before", accuracy(model))]
    for ratio in RATIOS:
        model = nn.Sequential(*body, *head)
        model.load_state_dict(state)
        model = copy.deepcopy(model)
        tp.pruner.MagnitudePruner(
            model,
            images[:1],
            importance=tp.importance.GroupMagnitudeImportance(),
            pruning_ratio=ratio,
            ignored_layers=[model[-1]],
        ).step()
        train(model, epochs, 2e-3)
        size = sum(p.numel() for p in model.parameters()) / 1e3
        found.append((f"{size:.1f} kB", accuracy(model)))
    return found


def run(task, seed, beside_torch_pruning):
    build, target = TASKS[task]
    keras.utils.set_random_seed(seed)
    model, x, y, test, batch_size, epochs = build()
    fit(model, x, y, batch_size, epochs)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        whole = of_file(
            kt.export.to_litert(
                kt.export.optimize_for_inference(model), folder / "float32.tflite"
            ),
            test,
        )
        print(f"{task}, seed {seed}: {whole[0]:.1f} kB, {whole[1]:.2%}", flush=True)
        options = {
            "validation_data": test,
            "epochs": EPOCHS,
            "batch_size": batch_size,
            "learning_rate": 2e-3,
            "seed": seed,
            "progress": False,
        }
        if target is not None:
            most = int(target if target > 1 else 1e3 * target * whole[0])
            start = time.monotonic()
            small = kt.compress(
                model, x, y, max_bytes=most, max_drop=0.01, path=folder / "s.tflite",
                **options,
            )  # fmt: skip
            print(small.summary())
            size, metric = of_file(small.path, test)
            print(
                f"target {most / 1e3:.1f} kB: {size:.1f} kB, {metric:.2%}, "
                f"{100 * (whole[1] - metric):.2f} points lost, "
                f"{(time.monotonic() - start) / 60:.1f} minutes",
                flush=True,
            )
        start = time.monotonic()
        steps = folder / "steps"
        result = kt.compress(model, x, y, max_drop=0.01, checkpoint=steps, **options)
        minutes = (time.monotonic() - start) / 60
        print(result.summary())
        ours = [
            of_file(steps / f"step-{i}.tflite", test) for i in range(len(result.front))
        ]
        total = sum(epochs_of(one.name) for one in result.front)
        print(f"smallest within a point: {minutes:.1f} minutes, {total} epochs")
        theirs = [
            fixed(model, ratio, x, y, test, batch_size, total, folder)
            for ratio in RATIOS
        ]
    for size, metric in best_by_size(ours):
        print(f"  compress  {size:7.1f} kB  {100 * (metric - whole[1]):+.2f} points")
    for size, metric in theirs:
        print(f"  fixed     {size:7.1f} kB  {100 * (metric - whole[1]):+.2f} points")
    print(f"area between the fronts: {area(ours, theirs):+.2f} points", flush=True)
    if beside_torch_pruning:
        print("Torch-Pruning:", torch_pruning(x, y, test, total, seed), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--torch-pruning", action="store_true", help="with --task fashion_cnn"
    )
    given = parser.parse_args()
    for seed in range(given.seeds):
        run(given.task, seed, given.torch_pruning)
