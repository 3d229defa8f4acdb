"""Unfreeze a model's layers step by step during `fit`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras.layers import Layer

from keras_trainkit._checks import (
    check_flag,
    check_integer,
    reject,
)
from keras_trainkit._keras import averaging_only
from keras_trainkit._model.select import Selector
from keras_trainkit._training import fit_scope
from keras_trainkit._training.optimizer import (
    core_optimizer,
    match_trainable,
    same_variables,
    start_averages,
)
from keras_trainkit._training.several_optimizers import watch_first_step
from keras_trainkit._training.trainable import (
    Chain,
    meant,
    restore_flags,
    set_trainable,
    trainable_flags,
    weighted_layers,
)

_REMEDY = (
    "`GradualUnfreezing` unfreezes what `model.optimizer` trains; otherwise call "
    "`kt.transfer.freeze` before `compile`"
)


class GradualUnfreezing(keras.callbacks.Callback):
    """Train the upper layers first and unfreeze the lower ones epoch by epoch.

    The model need not be compiled again: at the beginning of an epoch that unfreezes
    layers, Keras retraces the training step, and training continues with the same
    optimizer, which has slots for every layer from the start. Layers that were already
    training keep their momentum and their position on a schedule, and
    `keras.callbacks.BackupAndRestore` and `fit(initial_epoch=...)` resume at the right
    stage. A frozen BatchNorm runs in inference mode.

    A `.keras` file written during the fit has the state of the whole optimizer. To make
    it loadable, all layers that the optimizer knows are trainable in it: resume from it
    with this callback and `initial_epoch`.

    It can be combined with `kt.callbacks.OneCycle`, the schedules and
    `kt.optimizers.layerwise` in any order. An optimizer that was built while some of
    these layers were frozen is replaced by a copy, state included, that knows them; the
    copy stays in the model.

    Args:
        schedule: A dict from an epoch to the layers that train from then on: a layer, a
            layer type, a regular expression that matches the whole of a layer's name or
            path, a function of a layer, or a list of these; or, as in
            `kt.transfer.unfreeze(since=)`, a number of layers (from the end if
            negative) or a float, the fraction of them that stays frozen. Layers that no
            entry matches are frozen if there are numbers, and otherwise left as they
            are. Or an integer: the layers are unfrozen one by one from the last to the
            first, this many epochs apart.
        batch_norm: Whether BatchNorms are unfrozen too; with False they stay frozen.

    Raises:
        ValueError: If an argument is wrong; from `fit`, if an entry matches no layer,
            or nothing trains in its first epoch.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> model = kt.models.build_mlp((8,), 3, hidden_units=(4, 4))
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> x, y = np.ones((64, 8), "float32"), np.zeros(64, "int32")
        >>> gradual = kt.callbacks.GradualUnfreezing({0: -1, 2: -2, 3: 0})
        >>> history = model.fit(x, y, epochs=5, callbacks=[gradual], verbose=0)
        >>> history.history["trainable_layers"]
        [1, 1, 2, 3, 3]

    Reference:
        J. Howard and S. Ruder, Universal Language Model Fine-tuning for Text
        Classification (2018), arXiv:1801.06146, section 3.3.
    """

    def __init__(
        self,
        schedule: Mapping[int, Selector | Sequence[Selector] | float] | int = 1,
        *,
        batch_norm: bool = True,
    ):
        super().__init__()
        if isinstance(schedule, Mapping):
            if not schedule:
                reject("schedule", schedule, "a dict with at least one entry")
            for epoch in schedule:
                check_integer("schedule", epoch, minimum=0)
            self.schedule: Any = dict(sorted(schedule.items()))
        else:
            self.schedule = check_integer("schedule", schedule, minimum=1)
        self.batch_norm = check_flag("batch_norm", batch_norm)
        # The epoch from which each layer trains.
        self._begins: list[tuple[float, Chain]] = []
        self._before: dict[Layer, bool] = {}
        self._patched: tuple[keras.optimizers.Optimizer, tuple[str, ...]] | None = None
        self._updated: set[int] = set()
        self._training = False

    def set_model(self, model: keras.Model) -> None:
        """Make sure the optimizer has slots for all layers that will train.

        This happens here because `BackupAndRestore` and the schedules use the optimizer
        that they find at the beginning of the training.
        """
        super().set_model(model)
        fit_scope.make_room(model, self, "layers that train")
        self._training = False
        self._updated = set()
        self._begins = self._plan(weighted_layers(model))
        core_optimizer(model)
        self._before = trainable_flags(model)
        key = "GradualUnfreezing"
        fit_scope.enter(model, self, self._undo, key=key, what="layers that train")
        self._set_stage(max(begin for begin, _ in self._begins))
        match_trainable(model)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._write_files_of_all(model, trainable_flags(model))
        watch_first_step(model, "optimizer", _REMEDY)

    def on_epoch_begin(self, epoch, logs=None):
        before = self.model.trainable_variables
        self._set_stage(epoch)
        now = self.model.trainable_variables
        if not now:
            self._training = False
            fit_scope.close(self.model)
            reject(
                "schedule", self.schedule, f"such that a layer trains in epoch {epoch}"
            )
        if not self._training or not same_variables(now, before):
            self._accept_subset()
            fit_scope.scope_of(self.model).renew_step(self, "GradualUnfreezing")
        self._training = True

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            chains = weighted_layers(self.model)
            trainable = [bool(chain[-1].trainable_weights) for chain in chains]
            logs["trainable_layers"] = sum(trainable)

    def on_train_end(self, logs=None):
        fit_scope.close(self.model)
        self._training = False

    def on_test_begin(self, logs=None):
        if not self._training:
            fit_scope.close(self.model)

    def on_predict_begin(self, logs=None):
        if not self._training:
            fit_scope.close(self.model)

    def _write_files_of_all(self, model: keras.Model, known: dict[Layer, bool]) -> None:
        """Make files mark every layer as trainable that the optimizer has slots for.

        When Keras loads a file, it builds the optimizer for the trainable variables,
        and loads no state if their number differs from that of the saved slots.
        """

        def get_config():
            now = trainable_flags(model)
            restore_flags(known)
            try:
                return type(model).get_config(model)
            finally:
                restore_flags(now)

        # Not by `setattr`, which Keras watches.
        vars(model)["get_config"] = get_config

    def _undo(self) -> None:
        self.model.__dict__.pop("get_config", None)
        self._restore_optimizer()
        if not self._training:
            restore_flags(self._before)
        # If layers stay frozen, the optimizer has slots that no file can hold.
        match_trainable(self.model)

    def _plan(self, chains: list[Chain]) -> list[tuple[float, Chain]]:
        schedule = self.schedule
        if isinstance(schedule, int):
            schedule = {n * schedule: -1 - n for n in range(len(chains))}
        begins: dict[Layer, float] = {}
        below = False
        for epoch, which in schedule.items():
            is_number = isinstance(which, int | float) and not isinstance(which, bool)
            below |= is_number
            layers, since = (None, which) if is_number else (which, None)
            for chain in meant(chains, layers, since, names=("schedule", "schedule")):
                is_norm = isinstance(chain[-1], keras.layers.BatchNormalization)
                frozen = is_norm and not self.batch_norm
                begins.setdefault(chain[-1], math.inf if frozen else epoch)
        if below:
            begins = {chain[-1]: begins.get(chain[-1], math.inf) for chain in chains}
        return [(begins[c[-1]], c) for c in chains if c[-1] in begins]

    def _set_stage(self, epoch: float) -> None:
        # A layer that is part of two others trains as soon as one of them does.
        for value in (False, True):
            chosen = [c for begin, c in self._begins if (begin <= epoch) == value]
            set_trainable(self.model, chosen, value)

    def _accept_subset(self) -> None:
        """Make the optimizer update only some of the variables that it knows."""
        self._restore_optimizer()
        optimizer = core_optimizer(self.model)
        targets = self.model.trainable_variables
        joining = [v for v in targets if id(v) not in self._updated]
        if self._updated:
            # On JAX, frozen variables are not averaged (EMA) while they are frozen.
            start_averages(optimizer, joining)
        self._updated = {id(variable) for variable in targets}

        def stateless_apply(optimizer_variables, grads, trainable_variables):
            state = optimizer.variables
            mapping = [
                *zip(targets, trainable_variables, strict=True),
                *zip(state, optimizer_variables, strict=True),
            ]
            with (
                keras.StatelessScope(state_mapping=mapping) as scope,
                averaging_only(optimizer, targets),
            ):
                optimizer.apply(grads, targets)
            return tuple(
                [scope.get_current_value(variable) for variable in variables]
                for variables in (targets, state)
            )

        def finalize_variable_values(variables):
            with averaging_only(optimizer, targets):
                type(optimizer).finalize_variable_values(optimizer, targets)

        patches: dict[str, Any] = {}
        if optimizer.use_ema:
            patches["finalize_variable_values"] = finalize_variable_values
        if keras.backend.backend() == "jax":
            # Only there does the optimizer require a gradient for every variable.
            patches["stateless_apply"] = stateless_apply
        # Not by `setattr`, which Keras watches.
        vars(optimizer).update(patches)
        self._patched = optimizer, tuple(patches)

    def _restore_optimizer(self) -> None:
        if self._patched is not None:
            optimizer, names = self._patched
            for name in names:
                vars(optimizer).pop(name, None)
            self._patched = None
