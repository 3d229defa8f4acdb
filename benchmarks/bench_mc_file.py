"""What a file with 30 samples of Monte Carlo dropout costs beside the plain file.

python benchmarks/bench_mc_file.py           # a minute

LiteRT, one thread, batch 1, medians over 200 passes in turns. With samples, int8 is
that of the layers before the masks.
"""

import tempfile
from pathlib import Path

import keras
import numpy as np
from bench_mc_dropout import mlp, resnet, wide_cnn

import keras_trainkit as kt
from keras_trainkit._stopwatch import latencies


def runner(path, x):
    interpreter = kt.export.load_litert(path)
    (given,) = interpreter.get_input_details()
    interpreter.set_tensor(given["index"], x)
    return interpreter.invoke


def main():
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(200, 28, 28, 1)).astype("float32")
    kinds = ("float", "float, samples", "int8", "int8, samples")
    heads = [f"{unit}, {kind}" for unit in ("kB", "ms") for kind in kinds]
    print("| network | " + " | ".join(heads) + " |")
    print("|---" * 9 + "|")
    models = {
        "perceptron, dropout before each layer": mlp(),
        "ResNet-20, dropout in its head": resnet(),
        "CNN, dropout in its flattened head of 9,216": wide_cnn(),
    }
    for name, model in models.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = [
                kt.export.to_litert(
                    model,
                    Path(folder, f"{how}_{samples}.tflite"),
                    how,
                    None if how is None else x,
                    mc_samples=samples,
                )
                for how in (None, "int8")
                for samples in (None, 30)
            ]
            seconds = latencies([runner(path, x[:1]) for path in paths], 200)
            sizes = [f"{path.stat().st_size / 1e3:,.0f}" for path in paths]
        times = [f"{1e3 * np.median(s):.3f}" for s in seconds]
        print(f"| {name} | " + " | ".join([*sizes, *times]) + " |", flush=True)


if __name__ == "__main__":
    main()
