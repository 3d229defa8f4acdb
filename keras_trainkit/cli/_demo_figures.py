"""The demo's figures, saved as PNG files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_trainkit import plots


def save(ax, path: Path) -> None:
    """Save the figure that contains `ax` and close it."""
    from matplotlib import pyplot

    ax.figure.savefig(path, dpi=120)
    pyplot.close(ax.figure)


def save_cycle(rates: Sequence[float], momenta: Sequence[float], path: Path) -> None:
    """Plot the learning rate and the momentum at each step."""
    save(plots.schedule(rates, momenta), path)


def save_curves(history: dict, path: Path) -> None:
    """Plot loss and accuracy over the epochs."""
    from matplotlib import pyplot

    _, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    plots.learning_curves(history, ax=left)
    plots.learning_curves(history, "accuracy", ax=right)
    save(left, path)


def save_certainty(
    data, probabilities: np.ndarray, by_certainty: np.ndarray, path: Path
) -> None:
    """Show the six most certain and the six least certain test images."""
    chosen = np.concatenate([by_certainty[:6], by_certainty[::-1][:6]])
    axes = plots.uncertain_images(
        data.images(data.x_test[chosen]),
        probabilities[chosen],
        data.y_test[chosen],
        data.class_names,
    )
    save(np.ravel(axes)[0], path)
