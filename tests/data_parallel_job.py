r"""The job of test_reliability.py: features on one device and on all, as JSON.

KERAS_BACKEND=jax XLA_FLAGS=--xla_force_host_platform_device_count=8 \
    python tests/data_parallel_job.py
"""

import json
import sys

import keras
import numpy as np

import keras_trainkit as kt

RNG = np.random.default_rng(0)
X = RNG.normal(size=(128, 6)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")


def learner(optimizer="sgd"):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(16, "relu", name="hidden"),
            keras.layers.Dropout(0.5, seed=1),
            keras.layers.Dense(2, "softmax", name="head"),
        ]
    )
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model


def fit(callback, optimizer="sgd"):
    model = learner(optimizer)
    model.fit(X, Y, 16, 3, shuffle=False, verbose=0, callbacks=[callback])
    rates = model.history.history.get("learning_rate", [])
    return [rates, *(weight.tolist() for weight in model.get_weights())]


def one_cycle():
    return fit(kt.callbacks.OneCycle(0.1))


def pruning():
    return fit(
        kt.pruning.MagnitudePruning(0.5, end_step=16, frequency=4), optimizer="adam"
    )


def find_lr():
    found = kt.find_lr(learner(), X, Y, num_steps=100, batch_size=16)
    return [found.losses.tolist(), [found.suggestion]]


def mc_predict():
    found = kt.uncertainty.mc_predict(learner(), X, num_samples=8, seed=3)
    return [found.mean.tolist(), found.std.tolist()]


def signal_report():
    report = kt.diagnostics.signal_report(learner(), X, Y)
    return [[layer.std, layer.gradient_norm] for layer in report.layers]


FEATURES = (one_cycle, pruning, find_lr, mc_predict, signal_report)


def results():
    """What each feature gives, and on how many devices a weight is."""
    devices = learner().weights[0].value.sharding.device_set
    return {"devices": len(devices)} | {f.__name__: f() for f in FEATURES}


def main():
    """Print what each feature gives, on one device and on all."""
    one = results()
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    json.dump([one, results()], sys.stdout)


if __name__ == "__main__":
    main()
