"""What the schedule callbacks share: they install schedules for the length of a fit."""

from typing import Any

import keras

from keras_trainkit._checks import reject
from keras_trainkit._keras import batch_count
from keras_trainkit._training import fit_scope
from keras_trainkit._training.several_optimizers import (
    optimizer_to_schedule,
    watch_first_step,
)
from keras_trainkit._types import Schedule
from keras_trainkit.optimizers._follow import Follows, rate_of

# They set the learning rate too.
_RIVALS = (
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ReduceLROnPlateau,
)

_REMEDY = "`OneCycle` and `ApplySchedule` take another one as `optimizer=`"


class ScheduleCallback(keras.callbacks.Callback):
    """Lets the optimizer follow schedules during `fit`.

    Its rates become functions of the count of batches in the compiled step. The
    schedule's step 0 is the first batch of epoch 0 of this fit, so that with
    `initial_epoch`, or after `BackupAndRestore`, it goes on where it was. The epoch's
    logs get the `learning_rate` of its last step, and the `momentum` where that is
    scheduled. After the fit, also one that raised, the optimizer has its own learning
    rate again; the counts and slots are those of the training.
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
        """The schedules of the learning rate and, if wanted, of the momentum.

        Args:
            optimizer: The user's optimizer.
            steps_per_epoch: Batches in an epoch; None if the data do not say.
        """
        raise NotImplementedError

    def options(self, optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
        """What else `Follows` takes."""
        return {}

    def set_params(self, params: dict[str, Any] | None) -> None:
        """Let the optimizer follow the schedules.

        This early, because `BackupAndRestore` loads into the optimizer that it finds at
        the beginning of the training.
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
                f"{type(self).__name__} cannot know how far its schedule has come",
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
