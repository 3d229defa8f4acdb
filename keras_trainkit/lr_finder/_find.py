"""The range test."""

from typing import Any

import keras

from keras_trainkit._checks import reject
from keras_trainkit._training.state import as_it_was
from keras_trainkit.lr_finder._analyse import LRFinderResult
from keras_trainkit.lr_finder._fit_data import FitData
from keras_trainkit.lr_finder._range_test import (
    RangeTest,
    Watch,
    default_steps,
    random_states_kept,
)


def find_lr(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    min_lr: float = 1e-7,
    max_lr: float = 10.0,
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
) -> LRFinderResult:
    """Find the learning rate with a range test, and leave the model as it was.

    Trains for some steps while the learning rate grows from `min_lr` to `max_lr`, stops
    where the loss explodes, and puts weights, optimizer, metrics, history and random
    states back, also after an error or Ctrl-C. A `fit` afterwards does what it would
    have done.

    Args:
        model: A compiled model.
        x: What the model's `fit` takes: inputs as an array (or a list, tuple or dict of
            arrays), or batches `(inputs,)`, `(inputs, targets)` or `(inputs, targets,
            sample_weights)` from a `tf.data.Dataset`, a `PyDataset`, a PyTorch
            `DataLoader` or another iterable; a generator is used up.
        y: Targets, where `x` is an array and the model has targets.
        min_lr: The first learning rate.
        max_lr: The last learning rate.
        num_steps: Number of steps, by default an epoch, but no fewer than 100 and no
            more than 300.
        batch_size: Rows of a batch where `x` is an array; 32 by default.
        sample_weight: A weight for each row, where `x` is an array.
        class_weight: A weight for each class, as in `fit`.
        scale: `"exponential"` or `"linear"` growth of the rate.
        seed: Seed of the order of the rows where `x` is an array.
        optimizer: Which optimizer the test is for, where a `train_step` of the model's
            own uses several: the attribute, such as `"d_optimizer"`. The others train
            at their own rates.
        monitor: The name of the loss in what `train_step` returns.
        stop_factor: End the test at a loss this many times the first ones; None to go
            on to `max_lr`, whatever happens.
        skip_start: Number of steps at the beginning whose losses do not count.

    Returns:
        An `LRFinderResult`.

    Raises:
        ValueError: If an argument is wrong, the model is not compiled, or several
            optimizers train it and none is named.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(256, 8)).astype("float32")
        >>> model = kt.models.build_mlp((8,), 2, hidden_units=(16,))
        >>> model = kt.models.PRESETS["default"].compile(model)
        >>> found = kt.find_lr(model, x, (x[:, 0] > 0).astype(int))
        >>> 1e-4 < found.suggestion < 1, found.verdict
        (True, 'clear')

    Reference:
        L. Smith, Cyclical Learning Rates for Training Neural Networks (2015),
        arXiv:1506.01186, section 3.3.
    """
    _check_model(model)
    data = FitData(model, x, y, sample_weight, class_weight)
    if num_steps is None:
        num_steps = default_steps(data.length(batch_size))
    test = RangeTest(
        min_lr, max_lr, num_steps, scale, optimizer, monitor, stop_factor, skip_start
    )
    options = data.options(model, num_steps, batch_size, seed)
    data.build(model)
    history = getattr(model, "history", None), model.stop_training
    try:
        with random_states_kept(), as_it_was(model):
            # One step is one loss, also where a call runs many.
            model.steps_per_execution = 1
            with test.installed(model):
                model.fit(**options, callbacks=[Watch(test)], verbose=0)
    except BaseException as error:
        # TensorFlow reports an error in the data as one of its own.
        if data.error is not None:
            raise data.error from None
        if not test.steps and data.lacks_targets(model):
            raise ValueError(
                "`y` must be given, since the loss needs targets. Received: y=None"
            ) from error
        raise
    finally:
        model.history, model.stop_training = history
    return test.result()


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model) or not model.compiled:
        reject("model", getattr(model, "name", model), "a compiled Keras model")
