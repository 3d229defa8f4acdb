"""`find_lr`: run a range test on a model, and restore the model."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import keras

from keras_trainkit._checks import (
    check_compiled,
    check_integer,
    reject,
)
from keras_trainkit._model.select import Selector
from keras_trainkit._training.as_fit import has_own_fit
from keras_trainkit._training.state import as_it_was
from keras_trainkit._training.trainable import training_alone
from keras_trainkit.lr_finder._analyse import (
    DIVERGES,
    NO_DESCENT,
    NOISY,
    STILL_FALLING,
    LRFinderResult,
)
from keras_trainkit.lr_finder._confirm import confirmed
from keras_trainkit.lr_finder._fit_data import FitData
from keras_trainkit.lr_finder._range_test import (
    RangeTest,
    Watch,
    default_steps,
    random_states_kept,
)

MIN_LR, MAX_LR = 1e-7, 10.0
# A test that was not clear is repeated with this many times the steps, and with a range
# that is this many times wider at the lower and at the upper end.
_LONGER = 3
_RETRIES = {
    NO_DESCENT: (1, 1),
    NOISY: (1, 1),
    STILL_FALLING: (1, 100),
    DIVERGES: (1000, 1),
}


def find_lr(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    min_lr: float = MIN_LR,
    max_lr: float = MAX_LR,
    num_steps: int | None = None,
    batch_size: int | None = None,
    sample_weight: Any = None,
    class_weight: dict[int, float] | None = None,
    scale: str = "exponential",
    seed: int = 0,
    optimizer: str | None = None,
    monitor: str = "loss",
    stop_factor: float | None = 8.0,
    skip_start: int = 0,
    where: Selector | Sequence[Selector] | None = None,
    confirm: int | None = None,
    verbose: int = 0,
) -> LRFinderResult:
    """Find the learning rate with a range test; the model is left unchanged.

    Trains for a few hundred steps while the learning rate grows from `min_lr` to
    `max_lr`, stops when the loss explodes, and restores weights, optimizer, metrics,
    history and random states, even after an error or Ctrl-C. A later `fit` gives the
    same result as without the test.

    Args:
        model: A compiled model.
        x: What the model's `fit` accepts: inputs as an array (or a list, tuple or dict
            of arrays), or batches `(inputs,)`, `(inputs, targets)` or `(inputs,
            targets, sample_weights)` from a `tf.data.Dataset`, a `PyDataset`, a PyTorch
            `DataLoader` or another iterable; a generator is consumed.
        y: Targets, if `x` is an array and the model has targets.
        min_lr: The first learning rate.
        max_lr: The last learning rate.
        num_steps: Number of steps. By default one epoch, but at least 100 and at most
            300 steps; and unless `x` is an iterator, a test whose verdict is not
            "clear" is then repeated once with three times the steps, in a wider range
            if necessary. The result has the first test as `first`.
        batch_size: Rows per batch if `x` is an array; 32 by default.
        sample_weight: A weight for each row, if `x` is an array.
        class_weight: A weight for each class, as in `fit`.
        scale: `"exponential"` or `"linear"` growth of the rate.
        seed: Seed of the order of the rows if `x` is an array.
        optimizer: Which optimizer to test if a custom `train_step` uses several: the
            attribute, such as `"d_optimizer"`. The others train at their own rates.
        monitor: The name of the loss in the dict that `train_step` returns.
        stop_factor: The test ends at a loss this many times the first losses; None to
            continue to `max_lr` in any case.
        skip_start: Number of steps at the beginning whose losses are ignored.
        where: The layers to find the rate for; the others are frozen as by
            `kt.transfer.freeze`. A layer, a layer type, a regular expression that
            matches the whole of a layer's name or path, a function of a layer, or a
            list of these. By default all layers that train.
        confirm: Number of rates, from a third to three times the suggestion, to try in
            short trainings from the same state; the best becomes the suggestion. All of
            them train for half of `num_steps`, the better half for twice as long, and
            so on until one is left. They are compared by the mean loss over the last
            quarter of the steps.
        verbose: 1 for a progress bar for each phase of the test.

    Returns:
        An `LRFinderResult`.

    Raises:
        ValueError: If an argument is wrong, the model is not compiled, no layer that
            trains matches `where`, or several optimizers train it and none is named.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(256, 8)).astype("float32")
        >>> model = kt.models.build_mlp((8,), 2, hidden_units=(16,))
        >>> model = kt.models.PRESETS["default"].compile(model)
        >>> found = kt.find_lr(model, x, (x[:, 0] > 0).astype(int))
        >>> 1e-4 < found.suggestion < 1
        True

    Reference:
        L. Smith, Cyclical Learning Rates for Training Neural Networks (2015),
        arXiv:1506.01186, section 3.3.
    """
    check_compiled(model)
    if where is not None and optimizer is not None:
        reject("where", where, "None if `optimizer` names one of several")
    test = {
        "scale": scale,
        "optimizer": optimizer,
        "monitor": monitor,
        "stop_factor": stop_factor,
        "skip_start": skip_start,
    }
    # A model that is built here draws its weights, as it would in `fit`.
    with random_states_kept() if model.built else contextlib.nullcontext():
        search = _Search(model, x, y, batch_size, sample_weight, class_weight, seed)
        search.where, search.verbose = where, verbose
        return _searched(search, min_lr, max_lr, num_steps, confirm, test)


def _searched(search, min_lr, max_lr, num_steps, confirm, test) -> LRFinderResult:
    if confirm is not None:
        check_integer("confirm", confirm, minimum=2)
        if search.once:
            expected = "arrays or a dataset with `confirm`: an iterator is used up"
            reject("x", "an iterator", expected)
    count = search.default_steps() if num_steps is None else num_steps

    def range_test(low: float, high: float, steps: int) -> LRFinderResult:
        one = RangeTest(low, high, steps, **test)
        search.run(one)
        return one.result()

    found = range_test(min_lr, max_lr, count)
    if num_steps is None and found.verdict in _RETRIES and not search.once:
        down, up = _RETRIES[found.verdict]
        again = range_test(min_lr / down, max_lr * up, _LONGER * count)
        found = replace(again, first=found)
    if confirm is None or found.suggestion is None:
        return found
    one_rate = {name: test[name] for name in ("optimizer", "monitor")}
    return confirmed(found, search.run, confirm, count, **one_rate)


class _Search:
    """Run tests on a model, each from the state that it has now."""

    def __init__(self, model, x, y, batch_size, sample_weight, class_weight, seed):
        self._model = model
        self._given = x, y, sample_weight, class_weight, has_own_fit(model)
        self._batch_size, self._seed = batch_size, seed
        self._data: FitData | None = FitData(*self._given)
        self.where: Any = None
        self.verbose = 0
        # An iterator, which can be read only once.
        self.once = isinstance(x, Iterator)

    def default_steps(self) -> int:
        """Return the default number of steps for the data."""
        data = self._data or FitData(*self._given)
        return default_steps(data.length(self._batch_size))

    def run(self, test: RangeTest) -> None:
        """Run the steps of a test and restore the model."""
        model = self._model
        # Each test starts from the first batch.
        data, self._data = self._data or FitData(*self._given), None
        data.length(self._batch_size)
        options = data.options(len(test.lrs), self._batch_size, self._seed)
        data.build(model)
        history = getattr(model, "history", None), model.stop_training
        try:
            with (
                random_states_kept(),
                as_it_was(model),
                training_alone(model, self.where),
            ):
                # One loss is recorded per step, even if one call runs several.
                model.steps_per_execution = 1
                if self.verbose:
                    print(f"find_lr: {test.phase}")
                with test.installed(model):
                    model.fit(**options, callbacks=[Watch(test)], verbose=self.verbose)
        except BaseException as error:
            # TensorFlow wraps an error in the data in one of its own.
            if data.error is not None:
                raise data.error from None
            if not test.steps and data.lacks_targets(model):
                raise ValueError(
                    "`y` must be given, since the loss needs targets. Received: y=None"
                ) from error
            raise
        finally:
            model.history, model.stop_training = history
