"""Fold the BatchNorms of every architecture of keras.applications.

python benchmarks/bench_folding.py table             # folded, kept, error, seconds
python benchmarks/bench_folding.py predict ResNet50  # latency, folded over unfolded
python benchmarks/bench_folding.py litert            # operators and latency of LiteRT

All networks have random weights, statistics and gammas of both signs; nothing is
downloaded. `predict` and `litert` let the two models take turns in one process; printed
is the median over the rounds of the ratio, with the lowest and the highest.
"""

import argparse
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from keras import layers

import keras_trainkit as kt

SMALL = (64, 64, 3)
# One of each family and size; the others differ in numbers only.
NETWORKS = {
    "ResNet50": SMALL,
    "ResNet101": SMALL,
    "ResNet152": SMALL,
    "ResNet50V2": SMALL,
    "ResNet101V2": SMALL,
    "ResNet152V2": SMALL,
    "MobileNet": SMALL,
    "MobileNetV2": SMALL,
    "MobileNetV3Small": SMALL,
    "MobileNetV3Large": SMALL,
    "DenseNet121": SMALL,
    "DenseNet169": SMALL,
    "DenseNet201": SMALL,
    "InceptionV3": (96, 96, 3),
    "InceptionResNetV2": (96, 96, 3),
    "Xception": (96, 96, 3),
    "NASNetMobile": (224, 224, 3),
    "NASNetLarge": (331, 331, 3),
    **{f"EfficientNetB{n}": SMALL for n in range(8)},
    **{f"EfficientNetV2B{n}": SMALL for n in range(4)},
    **{f"EfficientNetV2{size}": SMALL for size in "SML"},
}

CHAOTIC = {"EfficientNetV2S", "EfficientNetV2M", "EfficientNetV2L"}


def build(name, shape=None):
    network = getattr(keras.applications, name)(
        input_shape=shape or NETWORKS[name], weights=None
    )
    return randomize(network, gamma=0.5 if name in CHAOTIC else 1.0)


def randomize(model, gamma=1.0):
    rng = np.random.default_rng(0)
    for variable in model.variables:
        name = variable.path.split("/")[-1]
        if name == "moving_variance":
            variable.assign(rng.uniform(0.5, 2, variable.shape))
        elif name in ("beta", "moving_mean"):
            variable.assign(0.1 * rng.normal(size=variable.shape))
        elif name == "gamma":
            # Far from 0, where a deep network would fade, and not so far that it makes
            # chaos of the last bit of its inputs.
            sign = rng.choice([-1, 1], variable.shape)
            variable.assign(gamma * sign * rng.uniform(0.7, 1.3, variable.shape))
    return model


def table(names):
    print(f"Keras {keras.__version__} on {keras.backend.backend()}\n")
    print("| network | BatchNorms | folded | kept | largest error | seconds |")
    print("|---|---|---|---|---|---|")
    for name in names or NETWORKS:
        keras.utils.clear_session()
        model = build(name)
        begun = time.perf_counter()
        result = kt.folding.fold_batch_norm(model)
        seconds = time.perf_counter() - begun
        total = len(result.folded) + len(result.kept)
        print(
            f"| {name} | {total} | {len(result.folded)} | {len(result.kept)} | "
            f"{result.max_error:.1e} | {seconds:.1f} |",
            flush=True,
        )
        why = {}
        for reason in result.kept.values():
            words = " ".join(w for w in reason.split() if not _is_name(w))
            why[words] = why.get(words, 0) + 1
        for reason, count in why.items():
            print(f"<!-- {count} x {reason} -->")


def _is_name(word):
    return "_" in word or any(c.isdigit() for c in word)


def ratio(first, second, rounds, repeats):
    """Time of `second` over that of `first`, taken in turns."""
    seconds = {first: [], second: []}
    for function in (first, second):
        function()
    for _ in range(rounds):
        for function, times in seconds.items():
            begun = time.perf_counter()
            for _ in range(repeats):
                function()
            times.append((time.perf_counter() - begun) / repeats)
    ratios = np.array(seconds[second]) / np.array(seconds[first])
    return np.median(seconds[first]), np.median(seconds[second]), ratios


def show(label, first, second, rounds, repeats):
    before, after, ratios = ratio(first, second, rounds, repeats)
    print(
        f"{label:40} {1000 * before:8.2f} ms {1000 * after:8.2f} ms   "
        f"{np.median(ratios):.3f} {ratios.min():.3f} {ratios.max():.3f}",
        flush=True,
    )


def predict(names, rounds):
    print(f"Keras {keras.__version__} on {keras.backend.backend()}")
    print(f"{'':40} {'unfolded':>11} {'folded':>11}   ratio: median, lowest, highest")
    rng = np.random.default_rng(0)
    for name in names or ("ResNet50", "MobileNetV2"):
        model = build(name, (96, 96, 3))
        folded = kt.folding.fold_batch_norm(model).model
        for rows in (1, 32):
            x = rng.normal(size=(rows, 96, 96, 3)).astype("float32")
            show(
                f"{name}, batch {rows}",
                lambda m=model, x=x: m.predict_on_batch(x),
                lambda m=folded, x=x: m.predict_on_batch(x),
                rounds,
                10 if rows == 1 else 2,
            )


STACKS = {
    "Dense, BN": ((64,), lambda: [layers.Dense(64), layers.BatchNormalization()]),
    "ELU, BN, Dense": (
        (64,),
        lambda: [
            layers.Dense(64, activation="elu"),
            layers.BatchNormalization(),
            layers.Dense(10),
        ],
    ),
    "ELU, BN, Flatten, Dense": (
        (8, 8, 16),
        lambda: [
            layers.Conv2D(16, 3, activation="elu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(10),
        ],
    ),
    "BN, Conv2D": (
        (32, 32, 8),
        lambda: [layers.BatchNormalization(), layers.Conv2D(16, 3)],
    ),
    "Conv3D, BN": (
        (8, 8, 8, 4),
        lambda: [layers.Conv3D(8, 3), layers.BatchNormalization()],
    ),
}


def litert(rounds):
    print(f"{'':40} {'unfolded':>11} {'folded':>11}   ratio: median, lowest, highest")
    networks = {name: build(name, (96, 96, 3)) for name in ("ResNet50", "MobileNetV2")}
    for name, (shape, make) in STACKS.items():
        networks[name] = randomize(keras.Sequential([keras.Input(shape), *make()]))
    with tempfile.TemporaryDirectory() as folder:
        for name, model in networks.items():
            folded = kt.folding.fold_batch_norm(model).model
            runs, operators = [], []
            for label, variant in (("a", model), ("b", folded)):
                path = Path(folder) / f"{label}.tflite"
                kt.export.to_litert(variant, path)
                interpreter = kt.export.load_litert(path)
                interpreter.allocate_tensors()
                # The delegate's own node is not one of the file's.
                names = [
                    op["op_name"]
                    for op in interpreter._get_ops_details()
                    if op["op_name"] != "DELEGATE"
                ]
                operators.append(names)
                runs.append(interpreter.invoke)
            before, after = operators
            extra = [op for op in ("MUL", "ADD") if op in after]
            show(name, *runs, rounds, 20)
            print(
                f"    operators: {len(before)}, folded {len(after)}"
                + (f" with {', '.join(extra)}" if extra else "")
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["table", "predict", "litert"])
    parser.add_argument("networks", nargs="*", help="by default all, or two of them")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    if options.command == "table":
        table(options.networks)
    elif options.command == "predict":
        predict(options.networks, options.rounds)
    else:
        litert(options.rounds)


if __name__ == "__main__":
    main()
