"""What Monte Carlo dropout and temperature scaling are worth on Fashion-MNIST.

python benchmarks/study_uncertainty.py           # ten minutes
python benchmarks/study_uncertainty.py --figure docs/figures/reliability.png

Two networks, five seeds each: train on 50,000 images, choose the temperature on 4,000
others, and judge the 10,000 test images by the softmax as it is, by the mean of 100
samples of Monte Carlo dropout, by an int8 LiteRT file, and by each of these with its
temperature. Foreign inputs are scikit-learn's digits, resized to 28 x 28; what counts
as uncertain is the predictive entropy, or the mutual information where it says so. The
prediction sets are those of `ConformalClassifier("lac", alpha=0.1)`, fitted on the
6,000 validation images.
"""

import argparse
import tempfile
from pathlib import Path

import keras
import numpy as np
from bench_mc_dropout import mlp
from keras import layers

import keras_trainkit as kt
from keras_trainkit import uncertainty


def cnn():
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )


EPOCHS = {mlp: 10, cnn: 5}


def foreign():
    """Digits as images of 28 x 28."""
    digits = kt.datasets.load("digits")
    images = np.concatenate([digits.x_train, digits.x_test]).reshape(-1, 8, 8, 1)
    resized = keras.ops.image.resize(images, (28, 28))
    return keras.ops.convert_to_numpy(resized)


def judge(labels, validation, inside, outside, doubts=None):
    """Accuracy, NLL, ECE, accuracy when a tenth is rejected, OOD AUROC, and of sets.

    Args:
        labels: Of the images that the sets are fitted on, and of the test images.
        validation: The probabilities of the former.
        inside: The probabilities of the latter.
        outside: Those of the foreign ones.
        doubts: The uncertainty of the last two, by default their entropy.
    """

    def entropy(p):
        return -(p * np.log(np.maximum(p, 1e-30))).sum(1)

    doubt, doubt_outside = doubts or (entropy(inside), entropy(outside))
    held_out, y = labels
    conformal = uncertainty.ConformalClassifier("lac", alpha=0.1)
    conformal.fit(validation, held_out)
    rejected, accuracy = uncertainty.rejection_curve(y, inside, doubt)
    return [
        (inside.argmax(1) == y).mean(),
        uncertainty.nll(y, inside),
        uncertainty.expected_calibration_error(y, inside),
        accuracy[np.searchsorted(rejected, 0.1)],
        uncertainty.ood_auroc(doubt, doubt_outside),
        conformal.coverage(inside, y),
        conformal.mean_size(inside),
    ]


def scaled(labels, chosen_on, *others):
    """The probabilities of others with the temperature that suits the first best."""
    scaling = uncertainty.TemperatureScaling()
    scaling.fit(probabilities=chosen_on, y_true=labels)
    return [scaling.predict_proba(probabilities=p) for p in others]


def int8_file(model, some):
    """A function that runs the model as an int8 file."""
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name, "int8.tflite")
    kt.export.to_litert(model, path, "int8", some)

    def predict(x, folder=folder):
        return kt.export.predict_litert(path, x)

    return predict


def trained(build, seed, x, y):
    keras.utils.set_random_seed(seed)
    model, epochs = build(), EPOCHS[build]
    steps = epochs * -(-len(x) // 128)
    optimizer = keras.optimizers.Adam(kt.schedules.OneCycle(3e-3, steps))
    model.compile(optimizer, "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=128, epochs=epochs, verbose=0)
    return model


def one(build, seed, data, outside):
    model = trained(build, seed, data.x_train[:50_000], data.y_train[:50_000])
    held_out = data.y_train[50_000:]
    labels = data.y_val, data.y_test
    sets = data.x_train[50_000:], data.x_val, data.x_test, outside
    plain = [model.predict(x, batch_size=1000, verbose=0) for x in sets]
    mc = [uncertainty.mc_predict(model, x, 100, seed=seed) for x in sets]
    means = [part.mean for part in mc]
    information = tuple(part.mutual_information for part in mc[2:])
    shipped = [*map(int8_file(model, data.x_train[:200]), sets)]
    calibrated = scaled(held_out, *plain)
    return {
        "softmax": judge(labels, *plain[1:]),
        "MC dropout": judge(labels, *means[1:]),
        "MC dropout, mutual information": judge(labels, *means[1:], information),
        "int8 file": judge(labels, *shipped[1:]),
        "temperature": judge(labels, *calibrated),
        "MC dropout and temperature": judge(labels, *scaled(held_out, *means)),
        "int8 file and temperature": judge(labels, *scaled(held_out, *shipped)),
    }, {"softmax": plain[2], "MC dropout": means[2], "temperature": calibrated[1]}


def draw(y, probabilities, path):
    from matplotlib import pyplot

    _, axes = pyplot.subplots(
        1, 3, figsize=(11, 3.6), sharey=True, layout="constrained"
    )
    for ax, (name, p) in zip(axes, probabilities.items(), strict=True):
        kt.plots.reliability(uncertainty.reliability_curve(y, p), ax)
        error = uncertainty.expected_calibration_error(y, p)
        ax.set_title(f"{name}, error {error:.3f}")
    pyplot.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--verbose", action="store_true", help="print each seed too")
    parser.add_argument("--figure", type=Path, help="where to draw the first network")
    options = parser.parse_args()
    figure = options.figure
    data, outside = kt.datasets.load("fashion_mnist"), foreign()
    for title, build in (("MLP", mlp), ("CNN", cnn)):
        runs = []
        for seed in range(options.seeds):
            result, probabilities = one(build, seed, data, outside)
            runs.append(result)
            if options.verbose:
                print(title, seed, result, flush=True)
            if figure and not seed and build is mlp:
                draw(data.y_test, probabilities, figure)
        columns = ["accuracy", "NLL", "ECE", "accuracy, 10% rejected", "AUROC"]
        columns += ["coverage", "set size"]
        print(f"\n| {title} | " + " | ".join(columns) + " |")
        print("|---" * (len(columns) + 1) + "|")
        for name in runs[0]:
            values = np.array([run[name] for run in runs])
            cells = (
                f"{mean:.4f} ± {spread:.4f}"
                for mean, spread in zip(values.mean(0), values.std(0), strict=True)
            )
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
