"""Plots of the mistakes of a classifier."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_trainkit._checks import check_integer, reject
from keras_trainkit.plots._arguments import names_arguments
from keras_trainkit.plots._uncertainty import uncertain_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@names_arguments
def confusion_matrix(
    y_true: Any,
    y_pred: Any,
    class_names: Sequence[str] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw a confusion matrix.

    Args:
        y_true: Integer labels, `(rows,)` or `(rows, 1)`, or one-hot.
        y_pred: Probabilities or logits, `(rows, classes)`, or integer labels.
        class_names: The name of each class.
        ax: Where to draw; a new figure by default.

    Returns:
        The Axes. Each row is a true class, each column a predicted class. Cells show
        counts and are coloured by the fraction of the true class.

    Raises:
        ValueError: If the arrays do not match, or there are too few names.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> p = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]])
        >>> ax = kt.plots.confusion_matrix([0, 1, 1], p, ["cat", "dog"])
        >>> [text.get_text() for text in ax.texts]
        ['1', '', '1', '1']
    """
    from matplotlib import pyplot

    true, guess = _labels("y_true", y_true), _labels("y_pred", y_pred)
    if true.shape != guess.shape or not len(true):
        reject("y_pred", guess.shape, f"a label for each of the {len(true)} rows > 0")
    classes = max(int(true.max()), int(guess.max())) + 1
    classes = max(classes, np.shape(y_pred)[-1] if np.ndim(y_pred) > 1 else 0)
    names = [str(k) for k in range(classes)] if class_names is None else class_names
    if len(names) < classes:
        reject("class_names", len(names), f"at least {classes} names")
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (true, guess), 1)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    if ax is None:
        size = 2 + 0.5 * len(names)
        ax = pyplot.subplots(figsize=(size, size), layout="constrained")[1]
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.5 else "black"
        text = str(count) if count else ""
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    places = range(len(names))
    ax.set_xticks(places, names, rotation=45, ha="right")
    ax.set_yticks(places, names)
    ax.set(xlabel="predicted", ylabel="true")
    return ax


@names_arguments
def top_losses(
    images: Any,
    probabilities: Any,
    y_true: Any,
    class_names: Sequence[str] | None = None,
    *,
    count: int = 12,
    columns: int = 6,
) -> np.ndarray:
    """Show the images with the highest loss: the lowest probability of the true class.

    Mislabelled images of a data set often appear among them.

    Args:
        images: `(rows, height, width, channels)` with pixels in `[0, 1]`.
        probabilities: `(rows, classes)`.
        y_true: Integer labels, `(rows,)` or `(rows, 1)`, or one-hot.
        class_names: The name of each class.
        count: How many to show.
        columns: Images per row.

    Returns:
        The Axes, as from `uncertain_images`.

    Raises:
        ValueError: If the arrays do not match.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> rng = np.random.default_rng(0)
        >>> images, p = rng.random((20, 8, 8, 1)), rng.dirichlet([1, 1, 1], size=20)
        >>> y = rng.integers(3, size=20)
        >>> axes = kt.plots.top_losses(images, p, y, ["a", "b", "c"], count=4)
    """
    check_integer("count", count, minimum=1)
    p, labels = np.asarray(probabilities), _labels("y_true", y_true)
    if p.ndim != 2 or not len(p) == len(labels) == len(images):
        reject("probabilities", p.shape, f"(rows, classes) with {len(images)} rows")
    names = [str(k) for k in range(p.shape[1])] if class_names is None else class_names
    worst = np.argsort(p[np.arange(len(p)), labels])[:count]
    shown = np.asarray(images)[worst]
    return uncertain_images(shown, p[worst], labels[worst], names, columns)


def _labels(name: str, given: Any) -> np.ndarray:
    """Convert labels, or scores for each class, to integer labels."""
    array = np.asarray(given)
    if not np.isfinite(array).all():
        reject(name, array.shape, "finite labels or scores")
    if array.ndim == 2 and array.shape[1] > 1:
        return array.argmax(1)
    if (
        array.ndim > 2
        or not np.array_equal(array, np.round(array))
        or (array < 0).any()
    ):
        reject(name, array.shape, "integer labels (rows,) or scores (rows, classes)")
    return array.reshape(-1).astype(int)
