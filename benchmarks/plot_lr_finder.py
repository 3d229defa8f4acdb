"""Draw docs/figures/learning_rate.png and learning_rates.png, on Fashion-MNIST.

python benchmarks/plot_lr_finder.py
"""

from pathlib import Path

import keras

import keras_trainkit as kt

FIGURES = Path(__file__).parent.parent / "docs" / "figures"


def main():
    data = kt.datasets.load("fashion_mnist")

    def build():
        model = kt.models.build_mlp(data.input_shape, data.num_classes)
        model.compile(
            keras.optimizers.SGD(momentum=0.9),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        return model

    keras.utils.set_random_seed(0)
    found = kt.find_lr(build(), *data.train, batch_size=64)
    print(found, found.suggestions)
    kt.plots.lr_finder(found).figure.savefig(FIGURES / "learning_rate.png", dpi=100)

    rates = [1e-4, found.suggestion, 0.003, 0.01, 0.03, 0.3]
    sweep = kt.lr_sweep(
        build,
        rates,
        *data.train,
        epochs=5,
        batch_size=64,
        validation_data=data.validation,
    )
    print(sweep)
    ax = kt.plots.compare_learning_rates(sweep, "val_loss")
    ax.figure.savefig(FIGURES / "learning_rates.png", dpi=100)


if __name__ == "__main__":
    main()
