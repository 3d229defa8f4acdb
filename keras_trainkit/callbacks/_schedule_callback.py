"""What the schedule callbacks share: they install schedules for the length of a fit."""

from typing import Any

import keras

from keras_trainkit._training.optimizer import (
    batches_seen,
    core_optimizer,
    give_back,
    install,
)
from keras_trainkit._types import Schedule
from keras_trainkit.optimizers._scheduled import with_schedules
from keras_trainkit.schedules import Delay


class ScheduleCallback(keras.callbacks.Callback):
    """Lets the optimizer follow schedules during `fit`.

    The optimizer is exchanged for a copy, state included, whose rates are functions of
    the count of batches in the compiled step. The schedule's step 0 is the first batch
    of epoch 0 of this fit, so that with `initial_epoch`, or after `BackupAndRestore`,
    it goes on where it was. The epoch's logs get the `learning_rate` of its last step,
    and the `momentum` where that is scheduled. After the fit the user's optimizer is
    back, with its own learning rate and with the counts and slots of the training;
    where `fit` raised, the copy stays.
    """

    def __init__(self):
        super().__init__()
        self._begun = False
        self._original: keras.optimizers.Optimizer | None = None
        self._schedules: tuple[Schedule, Schedule | None] = (None, None)
        self._training = False

    def make_schedules(
        self, optimizer: keras.optimizers.Optimizer, steps_per_epoch: int | None
    ) -> tuple[Schedule, Schedule | None]:
        """The schedules of the learning rate and, if wanted, of the momentum.

        Args:
            optimizer: The user's optimizer.
            steps_per_epoch: Batches in an epoch; None if the data do not say.
        """
        raise NotImplementedError

    def set_params(self, params: dict[str, Any] | None) -> None:
        """Exchange the optimizer.

        This early, because `BackupAndRestore` loads into the optimizer that it finds at
        the beginning of the training.
        """
        super().set_params(params)
        self._begun = self._training = False
        optimizer = core_optimizer(self.model)
        rate, momentum = self.make_schedules(optimizer, self.params["steps"])
        self._original = self.optimizer_to_leave(optimizer)
        self._schedules = rate, momentum
        install(self.model, with_schedules(self.model, rate, momentum))

    def optimizer_to_leave(
        self, optimizer: keras.optimizers.Optimizer
    ) -> keras.optimizers.Optimizer:
        """The optimizer that the model has after the fit."""
        return optimizer

    def on_train_begin(self, logs=None):
        self._training = True

    def on_epoch_begin(self, epoch, logs=None):
        if self._begun:
            return
        self._begun = True
        optimizer = core_optimizer(self.model)
        begin = batches_seen(self.model) - epoch * (self.params["steps"] or 0)
        if begin:
            rate, momentum = self._schedules
            optimizer.learning_rate = rate = self.begin_at(rate, begin)
            if momentum is not None:
                optimizer.momentum_schedule = momentum = Delay(momentum, begin)
            self._schedules = rate, momentum

    def begin_at(self, schedule: Schedule, begin: int) -> Schedule:
        """The learning rate's schedule with its step 0 at batch `begin`."""
        return Delay(schedule, begin)

    def on_epoch_end(self, epoch, logs=None):
        if logs is None:
            return
        rate, momentum = self._schedules
        last_step = batches_seen(self.model) - 1
        logs["learning_rate"] = float(rate(last_step))
        if momentum is not None:
            logs["momentum"] = float(momentum(last_step))

    def on_train_end(self, logs=None):
        self._give_back()

    def on_test_begin(self, logs=None):
        if not self._training:
            self._give_back()

    def on_predict_begin(self, logs=None):
        if not self._training:
            self._give_back()

    def _give_back(self):
        if self._original is None:
            return
        give_back(self.model, self._original)
        self._original = None
        self._training = False
