"""The gradient noise scale: the batch size at which signal and noise are equal."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import (
    check_compiled,
    check_integer,
    reject,
)
from keras_trainkit._training.as_fit import batch_as_fit
from keras_trainkit._training.batches import batch_of, take, training_arrays
from keras_trainkit._training.recording import recorded_gradients

# Batches of one estimate: their mean is the large batch beside each small one.
_TOGETHER = 16


@dataclass(frozen=True)
class GradientNoise:
    """The gradient noise scale of a model at its current weights.

    Attributes:
        noise_scale: `variance / squared_norm`, in rows: with a batch of so many, half
            of the squared length of a gradient is noise. NaN where the gradient cannot
            be told from zero.
        standard_error: Of `noise_scale`, from one part of the data to the next
            (jackknife); NaN where it cannot be told.
        variance: The trace of the covariance of a single row's gradient.
        squared_norm: The squared length of the true gradient.
        rows: How many rows were used.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> model = kt.models.build_mlp((4,), 2, hidden_units=(8,))
        >>> model = kt.models.PRESETS["default"].compile(model)
        >>> y = (x[:, 0] > 0).astype(int)
        >>> noise = kt.batch_size.gradient_noise_scale(model, x, y, small_batch=2)
        >>> noise.rows, noise.variance > 0
        (64, True)
    """

    noise_scale: float
    standard_error: float
    variance: float
    squared_norm: float
    rows: int


def gradient_noise_scale(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    small_batch: int = 8,
    max_rows: int = 4096,
    seed: int = 0,
) -> GradientNoise:
    """Estimate the gradient noise scale of a model at its present weights.

    With small batches of `b` rows and, of 16 of them together, large ones of `B`,

        |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b)
        S     = (|G_b|^2 - |G_B|^2) / (1/b - 1/B)

    are unbiased for the squared norm of the true gradient and for the trace of the
    covariance of one row's; both are averaged over all large batches before they are
    divided. The model is left unchanged.

    Args:
        model: A compiled model.
        x: Inputs as arrays, `(rows, ...)` each.
        y: Targets as arrays, where the loss takes some.
        sample_weight: A weight for each row.
        small_batch: Rows of a small batch. With BatchNorm use the batch size of the
            training, because a batch's statistics are part of its gradient.
        max_rows: The largest number of rows to use; more rows reduce the error.
        seed: Seed of the order of the rows.

    Returns:
        A `GradientNoise`.

    Raises:
        ValueError: If an argument is wrong, the model is not compiled, or there are
            fewer rows than two large batches have.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> x = np.random.default_rng(0).normal(size=(512, 8)).astype("float32")
        >>> model = kt.models.build_mlp((8,), 2, hidden_units=(16,))
        >>> model = kt.models.PRESETS["default"].compile(model)
        >>> y = (x[:, 0] > 0).astype(int)
        >>> noise = kt.batch_size.gradient_noise_scale(model, x, y)
        >>> noise.rows, noise.noise_scale > 0
        (512, True)

    Reference:
        S. McCandlish et al., An Empirical Model of Large-Batch Training (2018),
        arXiv:1812.06162, appendix A.1.
    """
    check_compiled(model)
    small = check_integer("small_batch", small_batch, minimum=1)
    data, rows = training_arrays(x, y, sample_weight)
    large = small * _TOGETHER
    count = min(rows, check_integer("max_rows", max_rows, minimum=1)) // large
    if count < 2:
        expected = f"at least {2 * large} rows for batches of {small}"
        reject("x", min(rows, max_rows), expected)
    order = np.random.default_rng(seed).permutation(rows)[: count * large]
    data = batch_as_fit(model, *batch_of(data, order))
    if not model.built:
        model(take(data[0], slice(0, 1)))
    squares = np.empty((count, 2))
    with recorded_gradients(model) as gradients:
        batches = np.arange(count * large).reshape(count, _TOGETHER, small)
        for place, chosen in enumerate(batches):
            squares[place] = _squared_norms(
                gradients(*batch_of(data, some)) for some in chosen
            )
    return _estimate(squares, small, large, count * large)


def _squared_norms(batches: Any) -> tuple[float, float]:
    """The mean squared norm of some gradients, and that of their mean."""
    alone, count = 0.0, 0
    total: list = []
    for gradient in batches:
        parts = [part.astype(np.float64) for part in gradient]
        alone += sum(float((part**2).sum()) for part in parts)
        before = total or [0.0] * len(parts)
        total = [a + b for a, b in zip(before, parts, strict=True)]
        count += 1
    together = sum(float((part**2).sum()) for part in total)
    return alone / count, together / count**2


def _estimate(squares: np.ndarray, small: int, large: int, rows: int) -> GradientNoise:
    alone, together = squares.T
    norms = (large * together - small * alone) / (large - small)
    variances = (alone - together) / (1 / small - 1 / large)
    count = len(norms)
    # Without one large batch each.
    others = (count * norms.mean() - norms), (count * variances.mean() - variances)
    scale = _ratio(variances.mean(), norms.mean())
    left_out = np.array([_ratio(s, n) for n, s in zip(*others, strict=True)])
    spread = (count - 1) / count * ((left_out - left_out.mean()) ** 2).sum()
    return GradientNoise(
        noise_scale=scale,
        standard_error=float(np.sqrt(spread)),
        variance=float(variances.mean()),
        squared_norm=float(norms.mean()),
        rows=rows,
    )


def _ratio(variance: float, squared_norm: float) -> float:
    return float(max(variance, 0.0) / squared_norm) if squared_norm > 0 else np.nan
