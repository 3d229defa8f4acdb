"""Checks of the curves of a training."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from keras_trainkit.diagnostics._finding import Finding

# Fraction of the whole descent by which the loss must rise in an epoch, and fraction of
# the epochs in which it must.
_RISE, _OFTEN = 0.1, 0.25
# Held-out loss over its lowest, the fraction of its descent that was lost again, and
# the training loss over its value at that point.
_OVER, _LOST, _FALLEN = 1.2, 0.15, 0.8
_LOWER = (
    "Lower the learning rate: `model.optimizer.learning_rate = "
    "kt.find_lr(model, x, y).suggestion`, and clip the gradient with `clipnorm=1.0`."
)


def curve_findings(curves: Mapping[str, Sequence[float]]) -> Iterator[Finding]:
    """Find what is wrong with the curves that `fit` logs.

    Args:
        curves: The values of each epoch (or checkpoint) by name; `loss`, and
            `val_loss` if there is one.
    """
    loss = np.asarray(curves.get("loss", ()), float)
    if len(loss) < 2:
        return
    if not np.isfinite(loss).all():
        yield Finding(
            "learning_rate_too_high",
            "error",
            "optimizer",
            f"the loss is not finite from epoch {int(np.argmin(np.isfinite(loss)))} on",
            _LOWER,
        )
        return
    yield from _oscillates(loss)
    held = np.asarray(curves.get("val_loss", ()), float)
    if len(held) == len(loss):
        yield from _overfits(loss, held)


def _oscillates(loss: np.ndarray) -> Iterator[Finding]:
    rises = np.diff(loss) > _RISE * max(loss[0] - loss.min(), 0.01 * abs(loss[0]))
    if len(loss) >= 6 and rises.mean() >= _OFTEN:
        yield Finding(
            "oscillating_loss",
            "warning",
            "optimizer",
            f"the loss rises in {rises.sum()} of {len(rises)} epochs, the last from "
            f"{loss[:-1][rises][-1]:.3g} to {loss[1:][rises][-1]:.3g}",
            f"{_LOWER} A larger `batch_size` helps as well.",
        )


def _overfits(loss: np.ndarray, held: np.ndarray) -> Iterator[Finding]:
    if not np.isfinite(held).all():
        return
    best = int(np.argmin(held))
    lost = held[-1] - held[best]
    if (
        held[-1] > _OVER * held[best]
        and lost > _LOST * max(held[0] - held[best], 0.0)
        and loss[-1] < _FALLEN * loss[best]
    ):
        yield overfitting(
            f"the held-out loss rose from {held[best]:.3g} to {held[-1]:.3g} while the "
            f"training loss fell from {loss[best]:.3g} to {loss[-1]:.3g}"
        )


def overfitting(evidence: str) -> Finding:
    """Return the finding of overfitting with its remedy."""
    return Finding(
        "overfitting",
        "warning",
        "model",
        evidence,
        "Keep the best weights, `keras.callbacks.EarlyStopping(patience=5, "
        "restore_best_weights=True)`; then more rows or augmentation, "
        "`keras.layers.Dropout(0.3)`, `keras.optimizers.AdamW(weight_decay=0.01)`, or "
        "a smaller network.",
    )
