"""Time of Monte Carlo dropout beside what it replaces.

python benchmarks/bench_mc_dropout.py           # on the backend of KERAS_BACKEND

Fashion-MNIST's 10,000 test images, 100 samples, medians over rounds in which all ways
take turns, on

- the multilayer perceptron 784-300-100-10 with dropout 0.2 before each Dense layer,
- ResNet-20 with dropout only in its head, behind the global pooling, and a small CNN
  with a wide flattened head,
- a single image.

`loop` is the code that everyone copies, `np.stack([model(x, training=True), ...])`;
`passes` are as many compiled passes without dropout, the least that can be had where
dropout stands at the input. baal (on PyTorch) and uncertainty-wizard (on TensorFlow)
take part where they are installed.
"""

import argparse
import importlib.util
import time

import keras
import numpy as np
from keras import layers, ops

import keras_trainkit as kt

SAMPLES = 100
BACKEND = keras.backend.backend()


def mlp():
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(300, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(100, activation="relu"),
            layers.Dropout(0.2),
            layers.Dense(10, activation="softmax"),
        ]
    )


def resnet():
    base = kt.models.build_cifar_resnet((28, 28, 1), 10, depth=20)
    x = layers.Dropout(0.2)(base.layers[-2].output)
    return keras.Model(base.input, layers.Dense(10, activation="softmax")(x))


def wide_cnn():
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.25),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )


def compiled(model):
    """A pass without dropout, compiled as fast as the backend can."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda x: model(x, training=False))
    if BACKEND == "jax":
        import jax

        return jax.jit(lambda x: model(x, training=False))
    import torch

    return torch.no_grad()(lambda x: model(x, training=False))


def loop(model, x):
    passes = [model(x, training=True) for _ in range(SAMPLES)]
    return np.stack([ops.convert_to_numpy(p) for p in passes])


def passes(function, x, batch=2500):
    for start in range(0, len(x), batch):
        part = ops.convert_to_tensor(x[start : start + batch])
        for _ in range(SAMPLES):
            last = function(part)
        ops.convert_to_numpy(last)


def others(x):
    """The same perceptron in other libraries, where they are installed."""
    if BACKEND == "tensorflow" and importlib.util.find_spec("uncertainty_wizard"):
        import uncertainty_wizard

        wizard = uncertainty_wizard.models.StochasticSequential(mlp().layers)
        yield (
            "uncertainty-wizard",
            lambda: wizard.predict_quantified(
                x, "mean_softmax", sample_size=SAMPLES, batch_size=1000, verbose=0
            ),
        )
    if BACKEND == "torch" and importlib.util.find_spec("baal"):
        import torch
        from baal.bayesian.dropout import patch_module
        from baal.modelwrapper import ModelWrapper, TrainingArgs
        from torch import nn

        net = [nn.Flatten()]
        for i, o in ((784, 300), (300, 100), (100, 10)):
            net += [nn.Dropout(0.2), nn.Linear(i, o), nn.ReLU()]
        net = patch_module(nn.Sequential(*net[:-1], nn.Softmax(1)), inplace=False)
        options = TrainingArgs(
            use_cuda=False, batch_size=1000, replicate_in_memory=False
        )
        wrapper = ModelWrapper(net, options)
        rows = torch.utils.data.TensorDataset(torch.tensor(x), torch.zeros(len(x)))
        yield "baal", lambda: wrapper.predict_on_dataset(rows, iterations=SAMPLES)


def compare(title, rounds, ways):
    """Print the median seconds of each way, and the ratio to the first."""
    seconds = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    print(f"\n{title}")
    first = np.array(next(iter(seconds.values())))
    for name, times in seconds.items():
        ratio = np.median(np.array(times) / first)
        print(f"  {name:28} {np.median(times):9.4f} s   {ratio:8.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    x = kt.datasets.load("fashion_mnist").x_test
    keras.utils.set_random_seed(0)
    print(f"Keras {keras.__version__} on {BACKEND}, {len(x)} images")

    def mc(model, images=x, noise="independent"):
        kt.uncertainty.mc_predict(model, images, SAMPLES, noise=noise, seed=0)

    model = mlp()
    function = compiled(model)
    tensor = ops.convert_to_tensor(x)
    compare(
        "multilayer perceptron, against 100 passes",
        rounds,
        {
            "passes": lambda: passes(function, x),
            "loop": lambda: loop(model, tensor),
            "mc_predict": lambda: mc(model),
            "mc_predict, shared": lambda: mc(model, noise="shared"),
            **dict(others(x)),
        },
    )
    one = x[:1]
    compare(
        "one image, against a loop of predict",
        rounds,
        {
            "predict loop": lambda: [
                model.predict(one, verbose=0) for _ in range(SAMPLES)
            ],
            "mc_predict": lambda: mc(model, one),
        },
    )
    for title, build in (("ResNet-20", resnet), ("wide flattened head", wide_cnn)):
        net = build()
        compare(
            f"{title}, against one predict",
            rounds,
            {
                "predict": lambda net=net: net.predict(x, verbose=0),
                "mc_predict": lambda net=net: mc(net),
            },
        )


if __name__ == "__main__":
    main()
