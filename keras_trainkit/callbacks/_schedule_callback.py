"""Base class of the callbacks that install schedules for the duration of a fit."""

from typing import Any

import keras

from keras_trainkit._checks import reject
from keras_trainkit._keras import batch_count
from keras_trainkit._training import fit_scope
from keras_trainkit._training.follow import Follows, rate_of
from keras_trainkit._training.several_optimizers import (
    optimizer_to_schedule,
    watch_first_step,
)
from keras_trainkit._types import Schedule

# These callbacks set the learning rate too, and would overwrite the schedule.
_RIVALS = (
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ReduceLROnPlateau,
)

_REMEDY = "`OneCycle` and `ApplySchedule` accept another one as `optimizer=`"


class ScheduleCallback(keras.callbacks.Callback):
    """Make the optimizer follow schedules during `fit`.

    Its rates become functions of the number of batches, computed in the compiled step.
    Step 0 of the schedule is the first batch of epoch 0 of this fit, so with
    `initial_epoch`, or after `BackupAndRestore`, the schedule continues where it was.
    The epoch's logs contain the `learning_rate` of its last step, and the `momentum` if
    that is scheduled. After the fit, even one that raised, the optimizer has its own
    learning rate again; its counts and slots are those of the training.
    """

    def __init__(self, optimizer: str | None = None):
        super().__init__()
        if optimizer is not None and not isinstance(optimizer, str):
            reject("optimizer", optimizer, 'a name such as "d_optimizer", or None')
        self.optimizer = optimizer
        self._begun = False
        self._training = False
        self._follows: Any = None

    def make_schedules(
        self, optimizer: keras.optimizers.Optimizer, steps_per_epoch: int | None
    ) -> tuple[Schedule, Schedule | None]:
        """Return the schedules of the learning rate and of the momentum, or None.

        Args:
            optimizer: The user's optimizer.
            steps_per_epoch: Batches per epoch; None if unknown.
        """
        raise NotImplementedError

    def options(self, optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
        """Return further arguments of `Follows`."""
        return {}

    def set_params(self, params: dict[str, Any] | None) -> None:
        """Install the schedules.

        This happens before the training begins, because `BackupAndRestore` then loads
        into the optimizer that it finds.
        """
        super().set_params(params)
        self._begun = self._training = False
        name = self.optimizer or "optimizer"
        optimizer = optimizer_to_schedule(self.model, name)
        rivals = _RIVALS if name == "optimizer" else ()
        fit_scope.make_room(self.model, self, rate_of(name), rivals)
        rate, momentum = self.make_schedules(optimizer, self.params["steps"])
        options = self.options(optimizer)
        self._follows = Follows(
            self.model, optimizer, self, rate, momentum, name=name, **options
        )
        watch_first_step(self.model, name, _REMEDY)

    def on_train_begin(self, logs=None):
        self._training = True

    def on_epoch_begin(self, epoch, logs=None):
        if self._begun:
            return
        self._begun = True
        follows = self._follows
        optimizer, steps = follows.optimizer, self.params["steps"]
        seen = batch_count(optimizer)
        if steps is not None:
            follows.start = seen - epoch * steps
        elif epoch == 0 or seen == 0:
            follows.start = seen
        elif not follows.was_loaded:
            fit_scope.close(self.model)
            reject(
                "steps_per_epoch",
                None,
                f"given to resume in epoch {epoch} with data of unknown length: "
                f"{type(self).__name__} cannot know how far its schedule has advanced",
            )

    def on_epoch_end(self, epoch, logs=None):
        if logs is None:
            return
        follows = self._follows
        last_step = batch_count(follows.optimizer) - 1
        of = f"{self.optimizer}_" if self.optimizer else ""
        logs[f"{of}learning_rate"] = float(follows.rate(last_step))
        if follows.momentum is not None:
            logs[f"{of}momentum"] = float(follows.momentum(last_step))

    def on_train_end(self, logs=None):
        fit_scope.close(self.model)

    def on_test_begin(self, logs=None):
        self._undo_unless_training()

    def on_predict_begin(self, logs=None):
        self._undo_unless_training()

    def _undo_unless_training(self):
        if not self._training:
            fit_scope.close(self.model)
