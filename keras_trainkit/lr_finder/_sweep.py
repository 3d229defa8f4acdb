"""Compare trainings at several learning rates."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import (
    check_choice,
    check_integer,
    check_items,
    check_positive,
    reject,
)
from keras_trainkit._table import Report, Table
from keras_trainkit._training.optimizer import has_schedule
from keras_trainkit._training.several_optimizers import Movements, optimizer_named


@dataclass(frozen=True, repr=False)
class LRSweepResult(Report):
    """Learning curves of trainings that differ only in their learning rate.

    Attributes:
        rates: The learning rates, `(rates,)`.
        curves: What `fit` logs, by name (`"loss"`, `"val_loss"`, ...), each an array of
            shape `(rates, epochs)`; NaN after a training diverged or stopped.

    Examples:
        >>> sweep = kt.lr_finder.lr_sweep(build, [1e-3, 1e-2], x, y)  # doctest: +SKIP
        >>> print(sweep.summary())  # doctest: +SKIP
    """

    rates: np.ndarray
    curves: dict[str, np.ndarray]

    def best(self, monitor: str = "loss", mode: str = "min") -> float:
        """Return the rate with the best final value of a curve.

        Args:
            monitor: The name of the curve.
            mode: `"min"` or `"max"`.
        """
        check_choice("monitor", monitor, self.curves)
        check_choice("mode", mode, ("min", "max"))
        last = self.curves[monitor][:, -1] * (1 if mode == "min" else -1)
        return float(self.rates[int(np.argmin(np.where(np.isnan(last), np.inf, last)))])

    def _table(self) -> Table:
        """Return the final value of each curve at each rate."""
        ends = zip(*(curve[:, -1] for curve in self.curves.values()), strict=True)
        rows = [
            [f"{rate:.3g}", *(f"{end:.4g}" for end in values)]
            for rate, values in zip(self.rates, ends, strict=True)
        ]
        return Table(["rate", *self.curves], rows)


def lr_sweep(
    build: Callable[[], keras.Model],
    rates: Sequence[float],
    x: Any,
    y: Any = None,
    *,
    epochs: int = 1,
    seed: int = 0,
    progress: bool = True,
    optimizer: str | None = None,
    **fit_options: Any,
) -> LRSweepResult:
    """Train a new model at each of several learning rates.

    Args:
        build: Function that returns a new compiled model, whose learning rate is a
            plain number.
        rates: The learning rates.
        x: As in `fit`.
        y: As in `fit`.
        epochs: Number of epochs of each training.
        seed: Seed of `keras.utils.set_random_seed` before each training, so that all
            start with the same weights and the same order of the data.
        progress: Whether to show a progress bar.
        optimizer: The attribute of the optimizer whose rate to vary, if the model's
            `train_step` uses several; as in `kt.find_lr`.
        **fit_options: Passed to `fit`, such as `validation_data` and `batch_size`.

    Returns:
        An `LRSweepResult`.

    Raises:
        ValueError: If there are no rates or one is not positive, an argument is wrong,
            or several optimizers train the model and none is named.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> def build():
        ...     model = kt.models.build_mlp((4,), 2, hidden_units=(8,))
        ...     return kt.models.PRESETS["default"].compile(model)
        >>> labels = (x[:, 0] > 0).astype(int)
        >>> sweep = kt.lr_sweep(build, [1e-5, 0.1], x, labels, progress=False)
        >>> sweep.curves["loss"].shape, sweep.best()
        ((2, 1), 0.1)
    """
    rates = check_items("rates", rates, "a list of learning rates")
    rates = [check_positive("rates", rate) for rate in rates]
    if not rates:
        reject("rates", rates, "at least one learning rate")
    check_integer("epochs", epochs, minimum=1)
    if isinstance(x, Iterator):
        reject("x", x, "arrays or a dataset: an iterator is used up by the first rate")
    bar = keras.utils.Progbar(len(rates), unit_name="rate") if progress else None
    histories = []
    for count, rate in enumerate(rates, 1):
        keras.utils.set_random_seed(seed)
        model = build()
        if not isinstance(model, keras.Model) or not model.compiled:
            reject("build", model, "a function that returns a compiled Keras model")
        chosen = optimizer_named(model, optimizer or "optimizer")
        if has_schedule(chosen):
            reject("build", chosen, "of a model whose learning rate is a number")
        chosen.learning_rate = rate
        movements = Movements(model)
        options = {"verbose": 0, **fit_options}
        options["callbacks"] = [
            *options.get("callbacks", ()),
            keras.callbacks.TerminateOnNaN(),
        ]
        history = model.fit(x, y, epochs=epochs, **options).history
        movements.check(optimizer)
        histories.append(history)
        if bar is not None:
            bar.update(count, [(name, ends[-1]) for name, ends in history.items()])
    curves = {
        name: np.array(
            [_padded(history.get(name, []), epochs) for history in histories]
        )
        for name in dict.fromkeys(name for history in histories for name in history)
    }
    return LRSweepResult(np.array(rates), curves)


def _padded(values: list[float], epochs: int) -> list[float]:
    return [*values, *[np.nan] * (epochs - len(values))]
