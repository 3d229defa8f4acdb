"""Performance scheduling as a callback."""

import keras

from keras_trainkit import schedules
from keras_trainkit._checks import (
    check_choice,
    check_flag,
    check_in_range,
    check_integer,
    check_positive,
    reject,
)
from keras_trainkit._training.optimizer import own_schedule
from keras_trainkit._types import Schedule
from keras_trainkit.callbacks._schedule_callback import ScheduleCallback


class PlateauSchedule(ScheduleCallback):
    """Performance scheduling: lower the learning rate when progress stalls.

    Multiplies the learning rate by `factor` after `patience` epochs in which the
    monitored quantity did not improve. Unlike `keras.callbacks.ReduceLROnPlateau` it
    works on top of a schedule, such as a warm-up, and its state is a variable of the
    optimizer: a fit that `BackupAndRestore` resumes, or one with `initial_epoch` on a
    model loaded from a `.keras` file, continues as if it had not stopped. Put it before
    callbacks that save, so that they save its state after each epoch. After the fit the
    optimizer keeps the lowered rate and the state.

    Args:
        schedule: What to lower: a `LearningRateSchedule`; by default the optimizer's
            own learning rate.
        monitor: The quantity to watch, a key of the epoch's logs.
        factor: What the rate is multiplied by, in `(0, 1)`.
        patience: Epochs without improvement after which the rate is lowered.
        mode: `"min"` if lower is better, `"max"` if higher is; `"auto"` uses `"max"`
            for accuracies and areas under a curve, and `"min"` for all else.
        min_delta: Smallest change that counts as an improvement, in units of the
            monitored quantity.
        cooldown: Epochs after the rate is lowered that do not count towards `patience`.
        min_factor: Lower bound of the product of all reductions.
        relative: Whether `min_delta` is a fraction of the best value so far.
        counting: How epochs are counted. `"keras"`: as in Keras's `ReduceLROnPlateau`,
            the rate is lowered in the `patience`-th epoch without improvement, and the
            last epoch of the cooldown counts again. `"torch"`: as in PyTorch's, it is
            lowered one epoch later, and no epoch of the cooldown counts.

    Raises:
        ValueError: If an argument is wrong, or if the logs lack `monitor`.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(keras.optimizers.SGD(0.5), loss="mse")
        >>> x = np.zeros((8, 2), "float32")
        >>> plateau = kt.callbacks.PlateauSchedule(monitor="loss", patience=2)
        >>> history = model.fit(x, x[:, :1], epochs=5, verbose=0, callbacks=[plateau])
        >>> history.history["learning_rate"]
        [0.5, 0.5, 0.5, 0.25, 0.25]

    Reference:
        A. Géron, Hands-On Machine Learning, 2nd ed. (2019), chapter 11; PyTorch's
        `ReduceLROnPlateau`.
    """

    def __init__(
        self,
        schedule: Schedule | None = None,
        monitor: str = "val_loss",
        factor: float = 0.5,
        patience: int = 5,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_factor: float = 0.0,
        relative: bool = False,
        counting: str = "keras",
    ):
        super().__init__()
        if schedule is not None and not isinstance(
            schedule, keras.optimizers.schedules.LearningRateSchedule
        ):
            reject("schedule", schedule, "a LearningRateSchedule or None")
        self.schedule = schedule
        self.monitor = monitor
        self.factor = check_in_range("factor", factor, 0, 1, closed="neither")
        self.counting = check_choice("counting", counting, ("keras", "torch"))
        least = 1 if counting == "keras" else 0
        self.patience = check_integer("patience", patience, minimum=least)
        if not isinstance(monitor, str):
            reject("monitor", monitor, "the name of a quantity")
        check_choice("mode", mode, ("auto", "min", "max"))
        if mode == "auto":
            mode = "max" if monitor.endswith(("acc", "accuracy", "auc")) else "min"
        # The state keeps the quantity with its sign adjusted so that lower is better.
        self._sign = 1.0 if mode == "min" else -1.0
        self.min_delta = check_positive("min_delta", min_delta, allow_zero=True)
        self.relative = check_flag("relative", relative)
        if relative and self.min_delta >= 1:
            reject("min_delta", min_delta, "a fraction below 1 where it is relative")
        self.cooldown = check_integer("cooldown", cooldown, minimum=0)
        self.min_factor = check_in_range("min_factor", min_factor, 0, 1, closed="left")

    def make_schedules(self, optimizer, steps_per_epoch):
        """Return the schedule, or the optimizer's own rate, times the factor."""
        own = own_schedule(optimizer)
        if isinstance(own, schedules.Reducible):
            own = own.schedule
        if self.schedule is not None:
            return self.schedule, None
        return (schedules.Constant(own) if isinstance(own, float) else own), None

    def options(self, optimizer):
        """Return the state of the search, and what the optimizer keeps afterwards."""
        own = own_schedule(optimizer)
        self._base = self.make_schedules(optimizer, None)[0]
        fresh = schedules.Reducible.FRESH
        state = own.state if isinstance(own, schedules.Reducible) else fresh
        return {"state": state, "leave": self._leave}

    def set_params(self, params):
        """Resume the search from the state in the optimizer."""
        super().set_params(params)
        self._follows.show(self._reducible())

    def on_epoch_begin(self, epoch, logs=None):
        first = not self._begun
        super().on_epoch_begin(epoch, logs)
        if first and self.schedule is None:
            # The optimizer's own schedule keeps its position.
            self._follows.start = 0
        if first and epoch == 0:
            # A new training: the rate stays as low as it is, the search starts again.
            factor = self._follows.state[0]
            self._follows.state = (factor, *schedules.Reducible.FRESH[1:])

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        logs = logs or {}
        if self.monitor not in logs:
            reject("monitor", self.monitor, "one of " + ", ".join(map(repr, logs)))
        value = self._sign * float(logs[self.monitor])
        self._follows.state = self._next_state(value, *self._follows.state)
        self._follows.show(self._reducible())

    def _next_state(self, value, factor, best, wait, cooldown) -> tuple[float, ...]:
        """Return the state after an epoch with this value, where lower is better."""
        keras_counts = self.counting == "keras"
        if keras_counts and cooldown > 0:
            cooldown, wait = cooldown - 1, 0
        delta = self.min_delta * abs(best) if self.relative else self.min_delta
        if value < best - delta:
            best, wait = value, 0
        elif cooldown == 0 or not keras_counts:
            wait += 1
        if not keras_counts and cooldown > 0:
            cooldown, wait = cooldown - 1, 0
        if wait >= self.patience + (not keras_counts):
            factor = max(factor * self.factor, self.min_factor)
            wait, cooldown = 0, self.cooldown
        return factor, best, wait, cooldown

    def _reducible(self) -> schedules.Reducible:
        """Return what the optimizer follows, as a schedule of its own."""
        start = self._follows.start
        base = schedules.Delay(self._base, start) if start else self._base
        return schedules.Reducible(base, self._follows.state)

    def _leave(self) -> None:
        if self._begun:
            self._follows.optimizer.learning_rate = self._reducible()
