"""One pass of `distill` and a Laplace approximation beside 100 samples.

python benchmarks/bench_distill.py           # four minutes on two cores

The perceptron and the CNN of `study_uncertainty.py` on Fashion-MNIST (trained on 20,000
images, judged on 5,000 test images) and a perceptron on digits. Foreign inputs are
digits, resized, for Fashion-MNIST, and for digits its own images with their pixels
shuffled. AUROC is by the mutual information, for the Laplace
approximation, which has none, by the entropy; the plain softmax's is by the entropy
too. Times are of the test images, in turns in one process, over one plain `predict`.
"""

import time

import keras
import numpy as np
from study_uncertainty import cnn, foreign, mlp

import keras_trainkit as kt
from keras_trainkit import uncertainty

ROUNDS = 5


def small():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(10, activation="softmax"),
        ]
    )


def entropy(p):
    return -(p * np.log(np.maximum(p, 1e-30))).sum(1)


def medians(ways, x):
    """Seconds of each way, in turns; the first call of each compiles."""
    seconds = {name: [] for name in ways}
    for step in range(ROUNDS + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way(x)
            if step:
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def one(title, model, data, outside, rows, epochs):
    x, y = data.x_train[:rows], data.y_train[:rows]
    test, labels = data.x_test[:5000], data.y_test[:5000]
    steps = epochs * -(-len(x) // 128)
    optimizer = keras.optimizers.Adam(kt.schedules.OneCycle(3e-3, steps))
    model.compile(optimizer, "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=128, epochs=epochs, verbose=0)
    fast = uncertainty.distill(model, x, seed=0)
    laplace = uncertainty.LastLayerLaplace(model).fit(x)

    def plain(x):
        p = model.predict(x, batch_size=1000, verbose=0)
        return p, entropy(p)

    def samples(x):
        found = uncertainty.mc_predict(model, x, 100, seed=1)
        return found.mean, found.mutual_information

    def distilled(x):
        found = fast.predict(x, batch_size=1000, verbose=0)
        return found["mean"], found["mutual_information"]

    def approximated(x):
        found = laplace.predict(x)
        return found.mean, found.predictive_entropy

    ways = {
        "softmax, entropy": plain,
        "100 samples": samples,
        "distilled": distilled,
        "last-layer Laplace, entropy": approximated,
    }
    times = medians(ways, test)
    print(
        f"\n| {title} | NLL | ECE | AUROC | time over one pass |\n|---|---|---|---|---|"
    )
    for name, way in ways.items():
        (p, doubt), (_, doubt_outside) = way(test), way(outside)
        cells = (
            f"{uncertainty.nll(labels, p):.3f}",
            f"{uncertainty.expected_calibration_error(labels, p):.3f}",
            f"{uncertainty.ood_auroc(doubt, doubt_outside):.3f}",
            f"{times[name] / times['softmax, entropy']:.1f}",
        )
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main():
    keras.utils.set_random_seed(0)
    digits = kt.datasets.load("digits")
    order = np.random.default_rng(0).permutation(64)
    strange = digits.x_test.reshape(-1, 64)[:, order].reshape(digits.x_test.shape)
    one("digits, perceptron", small(), digits, strange, None, 40)
    fashion, outside = kt.datasets.load("fashion_mnist"), foreign()
    one("Fashion-MNIST, perceptron", mlp(), fashion, outside, 20_000, 6)
    one("Fashion-MNIST, CNN", cnn(), fashion, outside, 20_000, 3)


if __name__ == "__main__":
    main()
