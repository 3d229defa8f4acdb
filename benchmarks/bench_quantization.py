"""Quantization-aware training beside post-training quantization and TF-MOT.

    python benchmarks/bench_quantization.py accuracy
    python benchmarks/bench_quantization.py steps
    python benchmarks/bench_quantization.py resnet

`accuracy` trains a CNN and a MobileNetV1-style network on a part of Fashion-MNIST, at
half the resolution, so that it runs on one core: `--rows` training images and 2,000
test images of 14 x 14 pixels. Each variant starts from the same float model and trains
for `--epochs` more, the float one too. Everything but the float row is what the LiteRT
file gives. `resnet` does the same with ResNet-20 on CIFAR-10, which needs hours.

`steps` takes epochs by turns of the float model and the quantized one, and of TF-MOT's
two in tf_keras, and gives the median of the ratios of neighbours.

Needs `pip install -e ".[demo,export,tfmot]"` and the TensorFlow backend.
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
from keras import layers

import keras_trainkit as kt

warnings.filterwarnings("ignore")
BATCH, CLASSES = 64, 10


def cnn():
    return keras.Sequential(
        [
            keras.Input((14, 14, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(CLASSES),
        ]
    )


def mobilenet():
    def norm():
        # The fits are too short for Keras's default momentum.
        return [layers.BatchNormalization(momentum=0.9), layers.ReLU()]

    def block(filters, stride):
        yield layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False)
        yield from norm()
        yield layers.Conv2D(filters, 1, use_bias=False)
        yield from norm()

    stem = [layers.Conv2D(16, 3, padding="same", use_bias=False), *norm()]
    blocks = [*block(32, 2), *block(32, 1), *block(64, 2), *block(64, 1)]
    head = [layers.GlobalAveragePooling2D(), layers.Dense(CLASSES)]
    return keras.Sequential([keras.Input((14, 14, 1)), *stem, *blocks, *head])


def resnet():
    model = kt.models.build_cifar_resnet((32, 32, 3), CLASSES, depth=20)
    model.layers[-1].activation = keras.activations.linear
    return model


def fashion(rows):
    data = kt.datasets.load("fashion_mnist")

    def half(x):
        x = x.reshape(len(x), 14, 2, 14, 2, 1)
        return x.mean((2, 4)).astype("float32")

    train = half(data.x_train[:rows]), data.y_train[:rows]
    return train, (half(data.x_test[:2000]), data.y_test[:2000])


def cifar():
    data = kt.datasets.load("cifar10")
    return (data.x_train, data.y_train), (data.x_test, data.y_test)


def fit(model, data, rate, epochs, library=keras):
    loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = library.optimizers.Adam(rate) if rate else library.optimizers.SGD(0.0)
    model.compile(optimizer, loss, metrics=["accuracy"])
    model.fit(*data, BATCH, epochs, verbose=0)
    return model


def figures(logits, y):
    """Accuracy in percent, negative log likelihood, and calibration error."""
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    accuracy = 100 * (logits.argmax(1) == y).mean()
    error = kt.uncertainty.expected_calibration_error(y, chances)
    return accuracy, kt.uncertainty.nll(y, chances), error


def of_file(model, x, folder, data=None):
    path = Path(folder) / "model.tflite"
    kt.export.to_litert(model, path, "int8", data)
    return kt.export.predict_litert(path, x)


def of_tfmot(model, data, x, epochs, folder):
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    import tf_keras

    trained = tfmot.quantization.keras.quantize_model(kt.tfmot.to_tf_keras(model))
    fit(trained, data, 1e-4, epochs, tf_keras)
    converter = tf.lite.TFLiteConverter.from_keras_model(trained)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    path = Path(folder) / "tfmot.tflite"
    path.write_bytes(converter.convert())
    return kt.export.predict_litert(path, x)


def variants(model, data, x, epochs, folder):
    """The logits of each variant, by its name."""
    quantize = kt.quantization.quantize_aware
    longer = keras.models.clone_model(model)
    longer.set_weights(model.get_weights())
    yield "float", fit(longer, data, 1e-4, epochs).predict(x, BATCH, verbose=0)
    calibration = data[0][:300]
    yield "post-training int8", of_file(longer, x, folder, calibration)
    yield "ours int8", of_file(fit(quantize(model), data, 1e-4, epochs), x, folder)
    try:
        yield "TF-MOT int8", of_tfmot(model, data, x, epochs, folder)
    except Exception as error:
        print(f"TF-MOT cannot: {error}", flush=True)
    # No learning rate: ranges alone.
    calibrated = quantize(longer, weight_bits=4, freeze_batch_norm=0)
    calibrated = fit(calibrated, data, 0.0, 1)
    yield "post-training 4-bit weights", of_file(calibrated, x, folder)
    four = fit(quantize(model, weight_bits=4), data, 5e-4, epochs)
    yield "ours 4-bit weights", of_file(four, x, folder)


def accuracy(makers, data, test, options):
    found: dict[tuple[str, str], list] = {}
    for seed in range(options.seeds):
        for name, make in makers.items():
            keras.utils.set_random_seed(seed)
            model = fit(make(), data, 2e-3, options.pretrain)
            with tempfile.TemporaryDirectory() as folder:
                rows = variants(model, data, test[0], options.epochs, folder)
                for variant, logits in rows:
                    row = figures(logits, test[1])
                    found.setdefault((name, variant), []).append(row)
                    print(seed, name, variant, *np.round(row, 3), flush=True)
    print(
        "| Model | Variant | Accuracy, % | NLL | ECE |\n| --- | --- | --- | --- | --- |"
    )
    for (name, variant), rows in found.items():
        cells = [
            f"{mean:.{digits}f} ± {spread:.{digits}f}"
            for mean, spread, digits in zip(
                np.mean(rows, 0), np.std(rows, 0), (1, 3, 3), strict=True
            )
        ]
        print(f"| {name} | {variant} | {' | '.join(cells)} |")


def ratio(plain, quantized, data, turns=5):
    """The median of the ratios of the seconds of neighbouring epochs."""
    seconds = []
    for turn in range(turns + 1):
        for model in (plain, quantized):
            began = time.perf_counter()
            model.fit(*data, BATCH, 1, verbose=0)
            # The first turn compiles.
            if turn:
                seconds.append(time.perf_counter() - began)
    return np.median(np.divide(seconds[1::2], seconds[0::2]))


def steps(makers, data):
    import tensorflow_model_optimization as tfmot
    import tf_keras

    for name, make in makers.items():
        model = fit(make(), data, 1e-3, 1)
        quantized = fit(kt.quantization.quantize_aware(model), data, 1e-4, 1)
        print(name, "ours", f"{ratio(model, quantized, data):.2f}", flush=True)
        plain = fit(kt.tfmot.to_tf_keras(model), data, 1e-4, 1, tf_keras)
        other = tfmot.quantization.keras.quantize_model(kt.tfmot.to_tf_keras(model))
        other = fit(other, data, 1e-4, 1, tf_keras)
        print(name, "TF-MOT", f"{ratio(plain, other, data):.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["accuracy", "steps", "resnet"])
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrain", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--model", choices=["CNN", "depthwise"])
    options = parser.parse_args()
    if options.what == "resnet":
        data, test = cifar()
        accuracy({"ResNet-20": resnet}, data, test, options)
        return
    makers = {"CNN": cnn, "depthwise": mobilenet}
    if options.model:
        makers = {options.model: makers[options.model]}
    data, test = fashion(options.rows)
    if options.what == "accuracy":
        accuracy(makers, data, test, options)
    else:
        steps(makers, (data[0][:2000], data[1][:2000]))


if __name__ == "__main__":
    main()
