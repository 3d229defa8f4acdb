"""Likelihood and coverage of files that are calibrated, over 20 splits.

python benchmarks/bench_calibrated_files.py           # two minutes

The CNN of `bench_deployment.py`, with its variants. Fashion-MNIST's 10,000 test images
are split 20 times at random into 5,000 for calibration and 5,000 to measure on, and
each variant is calibrated as `deployment_report(..., calibration=..., coverage=0.9)`
does.
Needs `pip install -e ".[demo]"`.
"""

import tempfile
from pathlib import Path

import keras
import numpy as np
from bench_deployment import JOBS, LOSS

import keras_trainkit as kt
from keras_trainkit.export._calibrated import calibrated, probabilities

SPLITS = 20


def trained():
    build, dataset, rows, epochs = JOBS["cnn"]
    keras.utils.set_random_seed(0)
    data = kt.datasets.load(dataset)
    x, y = (array[:rows] for array in data.train)
    model = build(data.input_shape, data.num_classes)
    model.compile(keras.optimizers.Adam(2e-3), LOSS)
    model.fit(x, y, 64, epochs, verbose=0, callbacks=[kt.callbacks.OneCycle(5e-3)])
    return model, x[:200], data.test


def main():
    model, some, (x, y) = trained()
    folded = kt.export.optimize_for_inference(model)
    outputs = {"folded": folded.predict(x, verbose=0)}
    pruned = kt.pruning.prune_once(folded, 0.5)
    outputs["folded, 50% zeros"] = pruned.predict(x, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        for how in (None, "float16", "dynamic", "int8"):
            path = Path(folder, f"{how}.tflite")
            kt.export.to_litert(folded, path, how, some)
            outputs[f"LiteRT, {how or 'float32'}"] = kt.export.predict_litert(path, x)
    print("| variant | NLL | calibrated NLL | coverage | lowest, highest | set size |")
    print("|---|---|---|---|---|---|")
    for name, p in outputs.items():
        found = []
        for seed in range(SPLITS):
            order = np.random.default_rng(seed).permutation(len(y))
            held_out, test = ((p[half], y[half]) for half in np.split(order, 2))
            found.append(calibrated(name, held_out, test, 0.9))
            found[-1]["nll"] = kt.uncertainty.nll(test[1], probabilities(test[0]))
        covered = [one["coverage"] for one in found]
        plain, nll, size = (
            np.mean([one[key] for one in found])
            for key in ("nll", "calibrated_nll", "set_size")
        )
        print(
            f"| {name} | {plain:.4f} | {nll:.4f} | {np.mean(covered):.2%} | "
            f"{min(covered):.1%}, {max(covered):.1%} | {size:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
