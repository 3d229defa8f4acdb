"""The job of test_distribute.py: fits on one device and on two, as JSON."""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

import keras_trainkit as kt

CALLBACKS = {
    "ExponentialSchedule": lambda: kt.callbacks.ExponentialSchedule(0.1, 1),
    "OneCycle": lambda: kt.callbacks.OneCycle(0.1),
    "PlateauSchedule": lambda: kt.callbacks.PlateauSchedule(
        monitor="loss", patience=1, min_delta=10.0
    ),
    "MagnitudePruning": lambda: kt.pruning.MagnitudePruning(
        0.5, end_step=8, frequency=2
    ),
}

CASES = tuple(zip(CALLBACKS, ("sgd", "adam", "sgd", "adam"), strict=True))


def run(strategy, name, optimizer):
    """The rates, the count of batches and the weights of two fits."""
    x = np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)]
        )
        model.compile(optimizer, "mse")
    rates = []
    for _ in range(2):
        history = model.fit(
            x,
            x[:, :1],
            batch_size=4,
            epochs=2,
            shuffle=False,
            verbose=0,
            callbacks=[CALLBACKS[name]()],
        )
        rates += history.history.get("learning_rate", [])
    count = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
    return rates, count, [weight.tolist() for weight in model.get_weights()]


def refused(strategy):
    """What the range test says of a model with two replicas."""
    x = np.ones((24, 3), "float32")
    with strategy.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    before = model.get_weights()
    messages = []
    for test in (
        lambda: kt.find_lr(model, x, x[:, :1], num_steps=10),
        lambda: model.fit(
            x, x[:, :1], 2, verbose=0, callbacks=[kt.callbacks.LRFinder()]
        ),
    ):
        try:
            test()
        except ValueError as error:
            messages.append(str(error))
    same = all(map(np.array_equal, before, model.get_weights()))
    return messages if same else "the model was changed"


def main():
    """Print what each callback does, on one device and on two."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    device = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpu, [device, device])
    one = tf.distribute.get_strategy()
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    results = {
        f"{name} {optimizer}": [run(s, name, optimizer) for s in (one, two)]
        for name, optimizer in CASES
    }
    results["refused"] = refused(two)
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
