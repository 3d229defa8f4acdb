"""The deployment report of a CNN and of a network shaped like MobileNetV2.

    python benchmarks/bench_deployment.py cnn
    python benchmarks/bench_deployment.py mobilenet

Both are trained for a few epochs, so that accuracies mean something: the CNN on 20,000
images of Fashion-MNIST, MobileNetV2 (for 32 x 32) on 10,000 of CIFAR-10. The
last lines say how the report stands to what is aimed at. Needs `pip install -e
".[demo]"`.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import keras_trainkit as kt

LOSS = "sparse_categorical_crossentropy"


def conv_norm(x, filters):
    x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
    return keras.layers.ReLU()(keras.layers.BatchNormalization()(x))


def cnn(input_shape, classes):
    inputs = keras.Input(input_shape)
    x = inputs
    for filters in (32, 64, 64):
        x = keras.layers.MaxPooling2D()(conv_norm(x, filters))
    x = keras.layers.Dropout(0.3)(keras.layers.Flatten()(x))
    x = keras.layers.Dense(128, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(classes, activation="softmax")(x))


def mobilenet(input_shape, classes):
    model = keras.applications.MobileNetV2(
        weights=None, input_shape=input_shape, classes=classes
    )
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # 0.999 is for trainings a hundred times as long.
            layer.momentum = 0.9
    return model


JOBS = {
    "cnn": (cnn, "fashion_mnist", 20000, 3),
    "mobilenet": (mobilenet, "cifar10", 10000, 3),
}


def main(name, repetitions):
    build, dataset, rows, epochs = JOBS[name]
    keras.utils.set_random_seed(0)
    data = kt.datasets.load(dataset)
    x, y = (array[:rows] for array in data.train)
    model = build(data.input_shape, data.num_classes)
    model.compile(keras.optimizers.Adam(2e-3), LOSS)
    model.fit(x, y, 64, epochs, verbose=0, callbacks=[kt.callbacks.OneCycle(5e-3)])
    folded = kt.export.optimize_for_inference(model)
    pruned = kt.pruning.prune_once(folded, 0.5)
    fewer = kt.pruning.prune_channels(model, 0.5, round_to=8).model
    fewer.compile(keras.optimizers.Adam(1e-3), LOSS)
    fewer.fit(x, y, 64, max(epochs // 3, 1), verbose=0)
    fewer = kt.export.optimize_for_inference(fewer)
    with tempfile.TemporaryDirectory() as folder:

        def litert(variant, how=None):
            path = Path(folder, f"{len(list(Path(folder).iterdir()))}.tflite")
            return kt.export.to_litert(variant, path, how, x[:200])

        variants = {
            "trained": model,
            "folded": folded,
            "folded, 50% zeros": pruned,
            "trained, LiteRT": litert(model),
            "folded, LiteRT": litert(folded),
            "folded, float16": litert(folded, "float16"),
            "folded, dynamic": litert(folded, "dynamic"),
            "folded, int8": litert(folded, "int8"),
            "half the channels, LiteRT": litert(fewer),
            "half the channels, int8": litert(fewer, "int8"),
        }
        report = kt.export.deployment_report(
            variants, *data.test, repetitions=repetitions
        )
    print(report)
    by_name = {variant.name: variant for variant in report.variants}
    keras_one, plain, float32, int8 = (
        by_name[n]
        for n in ("trained", "trained, LiteRT", "folded, LiteRT", "folded, int8")
    )
    speeds = [
        a.median / b.median
        for a, b in zip(plain.latencies, float32.latencies, strict=True)
    ]
    lost = float32.accuracy - int8.accuracy
    print(
        f"\nint8 file over float32's: {int8.bytes / float32.bytes:.2f}\n"
        "Keras's predict over folded int8, batch 1: "
        f"{keras_one.latencies[0].median / int8.latencies[0].median:.1f} times\n"
        f"accuracy lost by int8: {100 * lost:.2f} points\n"
        "unfolded over folded in LiteRT, batch 1 and 32: "
        f"{speeds[0]:.2f} and {speeds[1]:.2f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", choices=list(JOBS))
    parser.add_argument("--repetitions", type=int, default=200)
    options = parser.parse_args()
    main(options.model, options.repetitions)
