"""Unfreeze a model's layers step by step during `fit`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras.layers import Layer

from keras_trainkit._checks import check_integer, reject
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
    """Train the upper layers first, and let the lower ones join in, epoch by epoch.

    Nothing has to be compiled again: at the beginning of an epoch that unfreezes, Keras
    traces the training step anew, and all goes on with the same optimizer, which has
    the slots of every layer from the beginning. So what was training keeps its momentum
    and its place on a schedule, and `keras.callbacks.BackupAndRestore` and
    `fit(initial_epoch=...)` resume in the right stage. A frozen BatchNorm runs in
    inference mode.

    A `.keras` file written meanwhile has the state of the whole optimizer. So that it
    can be loaded, all layers that the optimizer knows are trainable in it: go on from
    it with this callback, and `initial_epoch`.

    It goes with `kt.callbacks.OneCycle`, the schedules and `kt.optimizers.layerwise` in
    any order. An optimizer that was built while some of these layers were frozen is
    exchanged for a copy that knows them, state included, which stays in the model.

    Args:
        schedule: A dict from epochs to what trains from then on: a layer, a type of
            layers, a regular expression that matches the whole of a layer's name or
            path, a function of a layer, a list of these; or, as in
            `kt.transfer.unfreeze(since=)`, a number of layers (from the end if
            negative) or a float, the fraction of them that stays frozen. Layers that
            no entry means are frozen where there are numbers, and otherwise left as
            they are. Or an integer: the epochs from each layer to the next below it,
            the last one first.
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
                reject("schedule", schedule, "a dict with an entry at least")
            for epoch in schedule:
                check_integer("schedule", epoch, minimum=0)
            self.schedule: Any = dict(sorted(schedule.items()))
        else:
            self.schedule = check_integer("schedule", schedule, minimum=1)
        self.batch_norm = batch_norm
        # The epoch from which each layer trains.
        self._begins: list[tuple[float, Chain]] = []
        self._before: dict[Layer, bool] = {}
        self._patched: tuple[keras.optimizers.Optimizer, tuple[str, ...]] | None = None
        self._updated: set[int] = set()
        self._training = False

    def set_model(self, model: keras.Model) -> None:
        """Let the optimizer know all layers that will train.

        This early, because `BackupAndRestore` and the schedules take the optimizer that
        they find.
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
        """Let files say that all trains that the optimizer has slots for.

        Keras builds the optimizer of a file for what trains there, and loads no state
        where the counts differ.
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
        # Where layers are left frozen the optimizer has slots that no file can take.
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
        # What is part of two layers trains as soon as one does.
        for value in (False, True):
            chosen = [c for begin, c in self._begins if (begin <= epoch) == value]
            set_trainable(self.model, chosen, value)

    def _accept_subset(self) -> None:
        """Let the optimizer update some of the variables that it has slots for."""
        self._restore_optimizer()
        optimizer = core_optimizer(self.model)
        targets = self.model.trainable_variables
        joining = [v for v in targets if id(v) not in self._updated]
        if self._updated:
            # On JAX they are not averaged while they are frozen.
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
            # There alone the optimizer wants a gradient for each of its variables.
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
