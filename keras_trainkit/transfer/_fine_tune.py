"""Train a new head, then the whole model."""

import math
from collections.abc import Sequence
from typing import Any

import keras

from keras_trainkit._checks import (
    check_compiled,
    check_flag,
    check_integer,
    check_items,
    check_positive,
    reject,
)
from keras_trainkit._model.select import Selector
from keras_trainkit._training.optimizer import (
    core_optimizer,
    fresh_copy,
    give_back,
    has_schedule,
    install,
)
from keras_trainkit._training.state import weights_back_on_error
from keras_trainkit._training.trainable import Start, restore_flags, trainable_flags
from keras_trainkit.callbacks import OneCycle, Resumable
from keras_trainkit.optimizers import layerwise
from keras_trainkit.transfer._freeze import freeze, unfreeze


def fine_tune(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    epochs: int,
    freeze_epochs: int = 1,
    learning_rate: float | str | None = None,
    lr_mult: float = 100.0,
    head: Selector | Sequence[Selector] | None = None,
    batch_norm: bool = True,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    **kwargs: Any,
) -> keras.callbacks.History:
    """Fine-tune a pretrained model: first its new head, then all of it.

    The same method as fast.ai's. The body is frozen and the head trained for
    `freeze_epochs` on a cycle whose rate rises almost until the end; then everything is
    trained for `epochs` on a second cycle, at up to half the rate in the highest layer
    and that divided by `lr_mult` in the lowest, with a constant ratio from layer to
    layer. Both are plain `fit`s; in the second everything trains, including layers that
    you had frozen.

    Args:
        model: The model, compiled, with a fresh head: see `replace_head`.
        x: The inputs, or whatever else `fit` accepts.
        y: The targets.
        epochs: Epochs for the whole model.
        freeze_epochs: Epochs for the head alone; 0 for none.
        learning_rate: The highest rate of the first cycle; by default the optimizer's
            own. With `"auto"` it is found on the data of the first fit, as
            `kt.callbacks.OneCycle("auto")` does, with only the head training; without
            such a fit, for the highest layer with all of them training.
        lr_mult: How much faster the highest layer learns than the lowest, >= 1.
        head: What to train first, as in `kt.transfer.unfreeze`; by default the last
            layer with weights.
        batch_norm: Whether the BatchNorms of the body train in the second fit; with
            False they keep their statistics and scales, which is better for small
            batches.
        callbacks: For both fits. `BackupAndRestore` and `kt.callbacks.Resumable` are
            refused: a backup does not say which of the two fits it belongs to.
        **kwargs: For both fits: `batch_size`, `validation_data`, ….

    Returns:
        The `History` of both fits, one after the other.

    Raises:
        ValueError: If an argument is wrong or the model is not compiled. After any
            error the model is unchanged: weights, optimizer and `trainable`.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> trained = kt.models.build_mlp((8,), num_classes=10)
        >>> model = kt.transfer.replace_head(trained, 3)
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> x, y = np.ones((64, 8), "float32"), np.zeros(64, "int32")
        >>> history = kt.transfer.fine_tune(model, x, y, epochs=2, verbose=0)
        >>> history.epoch
        [0, 1, 2]

    Reference:
        J. Howard and S. Gugger, fastai: A Layered API for Deep Learning (2020),
        arXiv:2002.04688; `Learner.fine_tune`.
    """
    check_integer("epochs", epochs, minimum=1)
    check_integer("freeze_epochs", freeze_epochs, minimum=0)
    lr_mult = check_positive("lr_mult", lr_mult)
    if lr_mult < 1:
        reject("lr_mult", lr_mult, "a number >= 1")
    for name in ("epochs", "initial_epoch"):
        if name in kwargs:
            reject(name, kwargs[name], "left out: each part has its own epochs")
    check_flag("batch_norm", batch_norm)
    callbacks = _without_backups(callbacks)
    check_compiled(model)
    rate = _rate(model, learning_rate)

    def train(what: str, epochs: int, max_lr: float | str, **shape: Any) -> float:
        if kwargs.get("verbose", "auto"):
            print(f"fine_tune: {what}")
        cycle = OneCycle(max_lr, **shape)
        options = {"epochs": epochs, "callbacks": [*callbacks, cycle], **kwargs}
        histories.append(model.fit(x, y, **options))
        return cycle.max_lr

    original = core_optimizer(model)
    flags = trainable_flags(model)
    histories: list[keras.callbacks.History] = []
    try:
        with weights_back_on_error(model):
            install(model, fresh_copy(model))
            if freeze_epochs:
                since: Start | None = -1 if head is None else None
                freeze(model)
                unfreeze(model, head, since=since)
                # fast.ai's `pct_start` for the frozen part, and `div` for the other.
                rate = train("the head", freeze_epochs, rate, pct_start=0.99)
            unfreeze(model, batch_norm=batch_norm)
            top = rate if isinstance(rate, str) else rate / 2
            plain = core_optimizer(model)
            # A rate that is still to be found is a multiple of the optimizer's own.
            high = _own_rate(plain) if isinstance(top, str) else top
            install(model, layerwise(plain, slice(high / lr_mult, high)))
            train("the whole model", epochs, top, pct_start=0.3, div_factor=5.0)
    except BaseException:
        restore_flags(flags)
        install(model, original)
        raise
    give_back(model, original)
    return _joined(histories)


def _without_backups(callbacks: Any) -> list[keras.callbacks.Callback]:
    """Return the callbacks, or raise if one resumes a fit from a folder."""
    if isinstance(callbacks, keras.callbacks.Callback):
        callbacks = [callbacks]
    found = check_items("callbacks", callbacks, "Keras callbacks")
    for callback in found:
        if not isinstance(callback, keras.callbacks.Callback):
            reject("callbacks", callback, "Keras callbacks")
        # Both fits would use one folder, and the second would resume the first.
        if isinstance(callback, keras.callbacks.BackupAndRestore | Resumable):
            reject(
                "callbacks",
                type(callback).__name__,
                "without a backup, which cannot tell the two fits apart; to resume, "
                "call kt.transfer.freeze, fit, kt.transfer.unfreeze and fit yourself, "
                "with a folder for each fit",
            )
    return found


def _rate(model: keras.Model, learning_rate: float | str | None) -> float | str:
    if learning_rate == "auto":
        return "auto"
    if learning_rate is not None:
        return check_positive("learning_rate", learning_rate)
    optimizer = core_optimizer(model)
    if has_schedule(optimizer):
        reject("learning_rate", None, "given where the optimizer has a schedule")
    return _own_rate(optimizer)


def _own_rate(optimizer: keras.optimizers.Optimizer) -> float:
    """The rate of an optimizer; 1, whatever its schedule."""
    return 1.0 if has_schedule(optimizer) else float(optimizer.learning_rate)


def _joined(histories: list[keras.callbacks.History]) -> keras.callbacks.History:
    """The last history, after the epochs of the one before it."""
    last = histories[-1]
    before = histories[:-1]
    lengths = [len(history.epoch) for history in before]
    for name in last.history:
        for history, length in zip(before, lengths, strict=True):
            values = history.history.get(name, [math.nan] * length)
            last.history[name] = [*values, *last.history[name]]
    last.epoch = list(range(sum(lengths) + len(last.epoch)))
    return last
