"""The batch size to train with."""

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import check_choice, check_integer, check_positive
from keras_trainkit._table import Report, Table
from keras_trainkit._training.batches import training_arrays
from keras_trainkit._training.optimizer import core_optimizer
from keras_trainkit.batch_size._noise_scale import GradientNoise, gradient_noise_scale
from keras_trainkit.batch_size._throughput import seconds_per_step

_SMALLEST = 16
# A noise scale that is off by more than this fraction says too little.
_UNCERTAIN = 0.5


@dataclass(frozen=True, repr=False)
class BatchSizeResult(Report):
    """The result of `find_batch_size`: cost and benefit of each batch size.

    Attributes:
        noise: The gradient noise at the model's present weights, a `GradientNoise`.
        batch_sizes: The sizes that were tried and fit into memory, `(sizes,)`.
        rows_per_second: Throughput of a training step at each, `(sizes,)`.
        relative_steps: Number of steps that each size needs for the same progress,
            relative to infinitely large batches: `1 + noise_scale / batch_size`,
            `(sizes,)`.
        relative_time: Predicted time for the same progress, relative to the best size,
            `(sizes,)`; NaN if the noise scale cannot be estimated.
        suggestion: The size with the lowest predicted time; None if the noise scale is
            too uncertain.
        rate_rule: `"linear"` or `"square root"`: how the learning rate scales with the
            batch size for the model's optimizer.
        memory_limit: Whether a larger size was tried that did not fit into memory.

    Examples:
        >>> import keras_trainkit as kt
        >>> found = kt.find_batch_size(model, x_train, y_train)  # doctest: +SKIP
        >>> print(found.summary())  # doctest: +SKIP
    """

    noise: GradientNoise
    batch_sizes: np.ndarray
    rows_per_second: np.ndarray
    relative_steps: np.ndarray
    relative_time: np.ndarray
    suggestion: int | None
    rate_rule: str
    memory_limit: bool

    @property
    def noise_scale(self) -> float:
        """The gradient noise scale, in rows."""
        return self.noise.noise_scale

    @property
    def standard_error(self) -> float:
        """The standard error of `noise_scale`."""
        return self.noise.standard_error

    def learning_rate(self, rate: float, old: int, new: int) -> float:
        """Return the learning rate for another batch size.

        Args:
            rate: A good rate with batches of `old` rows.
            old: Its batch size.
            new: The new batch size.

        Returns:
            For SGD, `rate (1 + n / old) / (1 + n / new)` with the noise scale `n`: in
            proportion to the batch size far below `n`, and constant far above. For
            adaptive optimizers the square root of that factor.
        """
        check_positive("rate", rate)
        check_integer("old", old, minimum=1)
        check_integer("new", new, minimum=1)
        factor = (1 + self.noise_scale / old) / (1 + self.noise_scale / new)
        return rate * (factor if self.rate_rule == "linear" else math.sqrt(factor))

    def _table(self) -> Table:
        head = ["batch size", "rows per second", "steps", "time"]
        rows = [
            [str(size), f"{speed:,.0f}", f"{steps:.2f}", f"{time:.2f}"]
            for size, speed, steps, time in zip(
                self.batch_sizes,
                self.rows_per_second,
                self.relative_steps,
                self.relative_time,
                strict=True,
            )
        ]
        return Table(head, rows)

    def _notes(self) -> list[str]:
        scale = f"noise scale {self.noise_scale:.3g} ± {self.standard_error:.2g} rows"
        if self.suggestion is None:
            told = (
                "no suggestion: too uncertain, give more rows or train for some steps"
            )
        else:
            told = f"suggestion {self.suggestion}, learning rate by the "
            told += f"{self.rate_rule} rule"
        limit = ["larger batches do not fit into memory"] if self.memory_limit else []
        return [scale, told, *limit]


def find_batch_size(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    max_batch_size: int | None = None,
    small_batch: int = 8,
    max_rows: int = 4096,
    optimizer_rule: str = "auto",
    seed: int = 0,
) -> BatchSizeResult:
    """Find a batch size from the noise of the gradient and the speed of a step.

    Progress takes `1 + noise_scale / batch_size` times the steps that infinitely large
    batches would take: far below the noise scale, doubling the batch halves the number
    of steps; far above it, it gains nothing. Together with the measured time of a step
    this predicts the time to a result at each size. It is a prediction for the current
    weights: the noise scale grows during training, so measure it after some epochs too,
    or with `kt.callbacks.NoiseScale`. The model is left unchanged.

    Args:
        model: A compiled model.
        x: Inputs as arrays, `(rows, ...)` each.
        y: Targets as arrays, where the loss takes some.
        sample_weight: A weight for each row.
        max_batch_size: The largest size to try; by default the number of rows, and no
            more than 4096. Sizes are powers of two from 16 on.
        small_batch: As in `gradient_noise_scale`.
        max_rows: As in `gradient_noise_scale`.
        optimizer_rule: How the learning rate goes with the batch size: `"linear"`, as
            for SGD, `"square root"`, as for Adam, or `"auto"` by the optimizer.
        seed: Seed of the order of the rows.

    Returns:
        A `BatchSizeResult`.

    Raises:
        ValueError: If an argument is wrong, the model is not compiled, or there are too
            few rows.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> x = np.random.default_rng(0).normal(size=(512, 8)).astype("float32")
        >>> model = kt.models.build_mlp((8,), 2, hidden_units=(16,))
        >>> model = kt.models.PRESETS["default"].compile(model)
        >>> y = (x[:, 0] > 0).astype(int)
        >>> found = kt.find_batch_size(model, x, y, max_batch_size=64)
        >>> found.batch_sizes.tolist(), found.rate_rule
        ([16, 32, 64], 'linear')

    Reference:
        S. McCandlish et al., An Empirical Model of Large-Batch Training (2018),
        arXiv:1812.06162, equations 2.6 and 2.10; the square root for Adam: S. Malladi
        et al., On the SDEs and Scaling Rules for Adaptive Gradient Algorithms (2022),
        arXiv:2205.10287, section 5.
    """
    check_choice("optimizer_rule", optimizer_rule, ("auto", "linear", "square root"))
    noise = gradient_noise_scale(
        model,
        x,
        y,
        sample_weight=sample_weight,
        small_batch=small_batch,
        max_rows=max_rows,
        seed=seed,
    )
    data, rows = training_arrays(x, y, sample_weight)
    most = min(rows, 4096) if max_batch_size is None else max_batch_size
    check_integer("max_batch_size", most, minimum=_SMALLEST)
    tried = [2**k for k in range(4, int(math.log2(most)) + 1)]
    seconds = seconds_per_step(model, data, rows, tried)
    sizes = np.array(list(seconds), int)
    speed = sizes / np.array(list(seconds.values()), float)
    steps = 1 + noise.noise_scale / sizes
    times = steps * sizes / speed
    certain = noise.standard_error <= _UNCERTAIN * noise.noise_scale
    return BatchSizeResult(
        noise=noise,
        batch_sizes=sizes,
        rows_per_second=speed,
        relative_steps=steps,
        relative_time=times / times.min() if len(times) else times,
        suggestion=int(sizes[times.argmin()]) if certain and len(sizes) else None,
        rate_rule=_rule(model) if optimizer_rule == "auto" else optimizer_rule,
        memory_limit=len(sizes) < len(tried),
    )


def _rule(model: keras.Model) -> str:
    optimizer = core_optimizer(model)
    adaptive = not isinstance(optimizer, keras.optimizers.SGD)
    return "square root" if adaptive else "linear"
