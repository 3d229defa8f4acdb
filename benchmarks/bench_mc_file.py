"""What a file with 30 samples of Monte Carlo dropout costs beside the plain file.

python benchmarks/bench_mc_file.py           # a minute

LiteRT, one thread, batch 1, medians over 200 passes in turns.
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
    x = np.random.default_rng(0).normal(size=(1, 28, 28, 1)).astype("float32")
    print("| network | kB | kB with samples | ms | ms with samples | ratio |")
    print("|---|---|---|---|---|---|")
    models = {
        "perceptron, dropout before each layer": mlp(),
        "ResNet-20, dropout in its head": resnet(),
        "CNN, dropout in its flattened head of 9,216": wide_cnn(),
    }
    for name, model in models.items():
        with tempfile.TemporaryDirectory() as folder:
            plain = kt.export.to_litert(model, Path(folder, "plain.tflite"))
            mc = kt.export.to_litert(model, Path(folder, "mc.tflite"), mc_samples=30)
            seconds = latencies([runner(plain, x), runner(mc, x)], 200)
            one, many = (1e3 * np.median(s) for s in seconds)
            sizes = " | ".join(f"{p.stat().st_size / 1e3:,.0f}" for p in (plain, mc))
        print(f"| {name} | {sizes} | {one:.3f} | {many:.3f} | {many / one:.1f} |")


if __name__ == "__main__":
    main()
