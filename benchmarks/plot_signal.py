"""Draw docs/figures/signal.png: a deep sigmoid network whose gradient vanishes.

python benchmarks/plot_signal.py
"""

from pathlib import Path

import keras
import numpy as np

import keras_trainkit as kt

FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "signal.png"


def main():
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((30,))])
    for seed in range(50):
        normal = keras.initializers.RandomNormal(0.0, 1.0, seed=seed)
        model.add(
            keras.layers.Dense(30, activation="sigmoid", kernel_initializer=normal)
        )
    model.add(keras.layers.Dense(3, activation="softmax"))
    model.compile("sgd", "sparse_categorical_crossentropy")
    x = rng.normal(size=(200, 30)).astype("float32")
    report = kt.diagnostics.signal_report(model, x, rng.integers(0, 3, 200))
    print(report.problems)
    kt.plots.signal(report)[0].figure.savefig(FIGURE, dpi=100)


if __name__ == "__main__":
    main()
