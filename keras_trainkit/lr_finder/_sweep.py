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
from keras_trainkit.lr_finder._processes import Settings, in_processes


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
    n_jobs: int = 1,
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
        n_jobs: Number of trainings to run at a time, each in its own process; -1 for
            one per core. The result does not depend on it. Needs joblib, which
            scikit-learn brings; `joblib.parallel_config` selects another backend of
            joblib, such as Dask or Ray.
        **fit_options: Passed to `fit`, such as `validation_data` and `batch_size`.

    Returns:
        An `LRSweepResult`.

    Raises:
        ValueError: If there are no rates or one is not positive, an argument is wrong,
            several optimizers train the model and none is named, or something that
            `n_jobs` sends to other processes cannot be pickled.
        ImportError: If `n_jobs` needs joblib and it is not installed.

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
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or not n_jobs:
        reject("n_jobs", n_jobs, "a number of processes, or -1 for one for each core")
    settings = Settings.current()
    training = _Training(build, x, y, epochs, seed, optimizer, fit_options, settings)
    if n_jobs == 1:
        histories = _one_by_one(training, rates, progress)
    else:
        histories = in_processes(training, rates, n_jobs, progress)
    curves = {
        name: np.array(
            [_padded(history.get(name, []), epochs) for history in histories]
        )
        for name in dict.fromkeys(name for history in histories for name in history)
    }
    return LRSweepResult(np.array(rates), curves)


@dataclass(frozen=True)
class _Training:
    """A training that differs from the others in its learning rate alone."""

    build: Callable[[], keras.Model]
    x: Any
    y: Any
    epochs: int
    seed: int
    optimizer: str | None
    fit_options: dict[str, Any]
    settings: Settings

    def __call__(self, rate: float) -> dict[str, list[float]]:
        """What `fit` logs."""
        self.settings.apply()
        keras.utils.set_random_seed(self.seed)
        model = self.build()
        if not isinstance(model, keras.Model) or not model.compiled:
            reject("build", model, "a function that returns a compiled Keras model")
        chosen = optimizer_named(model, self.optimizer or "optimizer")
        if has_schedule(chosen):
            reject("build", chosen, "of a model whose learning rate is a number")
        chosen.learning_rate = rate
        movements = Movements(model)
        options = {"verbose": 0, **self.fit_options}
        options["callbacks"] = [
            *options.get("callbacks", ()),
            keras.callbacks.TerminateOnNaN(),
        ]
        history = model.fit(self.x, self.y, epochs=self.epochs, **options).history
        movements.check(self.optimizer)
        return history


def _one_by_one(training: _Training, rates: list[float], progress: bool) -> list[dict]:
    bar = keras.utils.Progbar(len(rates), unit_name="rate") if progress else None
    histories = []
    for count, rate in enumerate(rates, 1):
        histories.append(training(rate))
        if bar is not None:
            ends = [(name, values[-1]) for name, values in histories[-1].items()]
            bar.update(count, ends)
    return histories


def _padded(values: list[float], epochs: int) -> list[float]:
    return [*values, *[np.nan] * (epochs - len(values))]
