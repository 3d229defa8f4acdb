"""The figure of a regression with its uncertainty.

python benchmarks/plot_regression_band.py docs/figures/regression_band.png
"""

import argparse
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

import keras_trainkit as kt


def likelihood(y_true, y_pred):
    """Of a normal distribution with a mean and a logarithm of a variance."""
    mean, log_variance = ops.split(y_pred, 2, axis=-1)
    return ops.mean(ops.square(y_true - mean) * ops.exp(-log_variance) + log_variance)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    path = parser.parse_args().path
    from matplotlib import pyplot

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-4, -1, 300), rng.uniform(1, 4, 300)])
    y = np.sin(x) + rng.normal(size=600) * np.where(x > 0, 0.25, 0.05)
    model = keras.Sequential(
        [
            keras.Input((1,)),
            layers.Dense(128, "relu"),
            layers.Dropout(0.1),
            layers.Dense(128, "relu"),
            layers.Dropout(0.1),
            layers.Dense(2),
        ]
    )
    model.compile(keras.optimizers.Adam(3e-3), likelihood)
    model.fit(x[:, None], y[:, None], epochs=150, verbose=0)
    grid = np.linspace(-5, 5, 300)
    mc = kt.uncertainty.mc_predict(
        model,
        grid[:, None],
        1000,
        noise="shared",
        seed=0,
        keep_samples=True,
        task="heteroscedastic",
    )
    _, ax = pyplot.subplots(figsize=(8.5, 3.6), layout="constrained")
    ax.plot(x, y, ".", color="C7", markersize=2, label="data")
    kt.plots.regression_band(grid, mc, ax=ax)
    ax.set(xlabel="x", ylabel="y")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), markerscale=4)
    ax.figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
