"""Gradual magnitude pruning during `fit`."""

import functools
import warnings
from collections.abc import Hashable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit._checks import check_integer, reject
from keras_trainkit._keras import sync_state
from keras_trainkit._keras.fitting import Fit
from keras_trainkit._model.select import Selector
from keras_trainkit._training import fit_scope
from keras_trainkit._training.optimizer import (
    batches_seen,
    core_optimizer,
)
from keras_trainkit._training.several_optimizers import watch_first_step
from keras_trainkit._types import Tensor
from keras_trainkit.pruning._sparsity import (
    ConstantSparsity,
    PolynomialSparsity,
    Sparsity,
)
from keras_trainkit.pruning._step import assign_masked, nonzero, with_pruning
from keras_trainkit.pruning._targets import Targets, find_targets, make_rule

_REMEDY = "`MagnitudePruning` prunes what `model.optimizer` trains"


class MagnitudePruning(keras.callbacks.Callback):
    """Gradual magnitude pruning: set the smallest weights to zero during `fit`.

    Every `frequency` steps, and at `end_step`, the entries of each kernel with the
    smallest magnitudes are set to zero, as many as the schedule says; after each step
    in between, pruned entries are reset to zero. All of this happens in the compiled
    step. The kernels are those of Dense, EinsumDense, convolutions of every kind,
    attention, embeddings and recurrent layers; biases and normalization are not pruned.

    The layers are not wrapped, and the saved file is a plain model: an entry is pruned
    if it is zero. Entries that are not pruned are kept from being exactly zero by a
    tiny number. The masks therefore survive a resume with the weights, and the step
    with `optimizer.iterations`.

    As in TF-MOT, step `t` is the `t`-th batch, whose masks are computed before its
    forward pass; with `begin_step=0` the first batch is pruned too. Earlier steps of
    the optimizer count, unless the weights do not have the sparsity that the schedule
    has at that step: then the schedule starts at the first step of this fit. A pruned
    weight is zero in the forward pass but gets its gradient, so an update at a pruning
    step that raises it above others brings it back.

    If `EarlyStopping(restore_best_weights=True)` restores weights that were not pruned
    to the final sparsity, they are pruned again, with a warning; give it a
    `start_from_epoch` after `end_step`.

    It can be combined with `OneCycle` and similar callbacks in any order. The set of
    trainable weights must stay the same throughout the fit, so use `GradualUnfreezing`
    in an earlier fit.

    Args:
        sparsity: Final fraction of the entries of each kernel to set to zero, in
            `[0, 1)`; the number pruned is `size - max(round(size (1 - s)), 1)`. Or a
            dict from selectors to fractions: the first selector that matches a layer
            applies, and layers without a match are not pruned.
        begin_step: The first step that prunes.
        end_step: The last step that prunes. Optional with your own `schedule`, or with
            `"constant"`, which then prunes once.
        frequency: Number of steps between prunings.
        scope: `"layer"`: each kernel has this sparsity; `"global"`: all kernels
            together have it, with their entries ranked in one list.
        pattern: None; `"2:4"` or any `"N:M"`, for at most N nonzero entries out of M in
            a row along a unit's inputs, all from `begin_step` on; or blocks such as
            `"4x1"` (inputs by units) that are pruned as a whole. In a depthwise kernel,
            N:M is counted along its channels, as hardware reads it.
        block_pooling: What ranks a block: `"avg"`, the mean of its magnitudes, or
            `"max"`, the largest.
        schedule: `"polynomial"` (from 0), `"constant"`, or a `PolynomialSparsity` or
            `ConstantSparsity`, whose `final` is replaced by each layer's sparsity.
        include: What to prune: a layer, a type of layers, a regular expression that
            matches the whole of a layer's name or path, a function of a layer, or a
            list of these. By default everything.
        exclude: What not to prune, in the same ways.
        rewind_to: Lottery tickets: at the end of the fit the remaining weights, the
            biases and everything else are reset to their values after this step.

    Raises:
        ValueError: If an argument is wrong; in `fit`, before the first step, if
            `end_step` is after its end, or another callback freezes layers.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> model = kt.models.build_mlp((20,), 3)
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> pruning = kt.pruning.MagnitudePruning(0.8, end_step=8, frequency=2)
        >>> x, y = np.ones((32, 20), "float32"), np.zeros(32)
        >>> _ = model.fit(x, y, 4, epochs=1, callbacks=[pruning], verbose=0)
        >>> kt.pruning.sparsity_report(model).layers[0].sparsity
        0.8

    Reference:
        M. Zhu and S. Gupta, To Prune, or Not to Prune (2017), arXiv:1710.01878;
        J. Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis
        (2020), arXiv:1912.05671, for `rewind_to`.
    """

    def __init__(
        self,
        sparsity: float | Mapping[Selector, float],
        *,
        begin_step: int = 0,
        end_step: int | None = None,
        frequency: int = 100,
        scope: str = "layer",
        pattern: str | None = None,
        block_pooling: str = "avg",
        schedule: str | Sparsity = "polynomial",
        include: Any = None,
        exclude: Any = None,
        rewind_to: int | None = None,
    ):
        super().__init__()
        self._rule = make_rule(
            sparsity, scope, pattern, include, exclude, block_pooling
        )
        self._frequency = check_integer("frequency", frequency, minimum=1)
        self._template = _template(schedule, begin_step, end_step)
        self._rewind_to = rewind_to
        if rewind_to is not None:
            check_integer("rewind_to", rewind_to, minimum=0)
            if rewind_to > self._template.end_step:
                reject("rewind_to", rewind_to, f"<= end_step={self._template.end_step}")
        # Without a ticket the batches are not used, so Keras need not wait.
        self.async_safe = rewind_to is None
        choices = (sparsity, scope, pattern, schedule, begin_step, end_step, frequency)
        self._choices = tuple(
            _hashable(c) for c in (*choices, include, exclude, block_pooling)
        )
        self._targets: Targets | None = None
        self._trained: list[keras.Variable] = []
        self._first_epoch = 0
        self._start = 0
        self._ticket: list[np.ndarray] | None = None
        self._rewound: list[np.ndarray] = []
        # Whether the last fit has reached its final sparsity.
        self._through = False

    def set_params(self, params: dict[str, Any] | None) -> None:
        """Check the length of the fit, as early as it is known."""
        super().set_params(params)
        fit_scope.make_room(self.model, self)
        self._targets, self._ticket, self._start = None, None, 0
        self._through = False
        # All layers that the callbacks will train at some point of this fit.
        self._trained = self.model.trainable_variables
        self._check_length(batches_seen(self.model), self.params["epochs"])
        optimizer = core_optimizer(self.model)

        def undo():
            # If there are two callbacks, the first one removes both patches.
            vars(optimizer).pop("apply", None)

        fit_scope.enter(self.model, self, undo, key=self._choices)
        watch_first_step(self.model, "optimizer", _REMEDY)

    def on_train_begin(self, logs=None):
        # Run last: `EarlyStopping` restores weights when training ends.
        last = keras.callbacks.LambdaCallback(on_train_end=self._check_end)
        fit = Fit(self)
        if not any(
            getattr(c, "keeps_sparsity_of", None) is self for c in fit.callbacks
        ):
            last.keeps_sparsity_of = self
            fit.append(last)

    def on_epoch_begin(self, epoch, logs=None):
        if self._targets is None:
            self._first_epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:
            # Not earlier: `BackupAndRestore` loads weights when training starts, and
            # other callbacks replace the optimizer or freeze layers when an epoch does.
            fit_scope.check_trained(self.model, self._trained, "prune")
            if self._targets is None:
                self._begin()

    def on_train_batch_end(self, batch, logs=None):
        self._keep_ticket()

    def on_train_end(self, logs=None):
        fit_scope.close(self.model)
        if self._targets is None:
            return
        for kernel in self._targets.kernels:
            # A product with a mask may give -0.0, which compresses worse.
            kernel.variable.assign(kernel.variable + 0.0)
        done = batches_seen(self.model) - self._start
        if done < self._template.end_step:
            warnings.warn(
                f"The fit ended at step {done}, before end_step="
                f"{self._template.end_step}: the model has not its final sparsity.",
                stacklevel=2,
            )
            return
        self._check_sparsity(self._targets)
        if self._ticket is not None:
            self._rewind(self._targets, self._ticket)
        self._through = True

    def _check_end(self, logs=None) -> None:
        """Make sure that no other callback undid the pruning at the end."""
        through, self._through = self._through, False
        if not through or self._targets is None:
            return
        if self._ticket is None:
            self._check_sparsity(self._targets)
        else:
            self.model.set_weights(self._rewound)

    def _check_sparsity(self, targets: Targets) -> None:
        """Prune again if the weights are not the ones that were pruned."""
        if targets.have(self._sparsities(targets, self._template.end_step)):
            return
        variables = [kernel.variable for kernel in targets.kernels]
        masks = self._find_masks(targets, self._template.end_step, nonzero(variables))
        assign_masked(variables, masks)
        warnings.warn(
            "The weights at the end of the fit were not those that were pruned: a "
            "callback such as EarlyStopping(restore_best_weights=True) put back "
            "weights from before the last pruning step. They were pruned to the final "
            "sparsity, and have not been trained since. Give EarlyStopping a "
            "start_from_epoch after the last pruning step",
            stacklevel=2,
        )

    def _begin(self) -> None:
        optimizer = core_optimizer(self.model)
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        targets = find_targets(self.model, self._rule, trainable_only=True)
        seen = batches_seen(self.model)
        self._start = self._find_start(targets, seen, self._first_epoch)
        self._check_length(seen, self.params["epochs"] - self._first_epoch)
        self._check_rewind(seen)
        self._targets = targets
        variables = [kernel.variable for kernel in targets.kernels]
        done = seen - self._start
        # There is no batch 0: a pruning due there happens before the first batch.
        for step in range(done + (done > 0), done + 2):
            if self._is_due(step):
                masks = self._find_masks(targets, step, nonzero(variables))
                assign_masked(variables, masks)
        scope = fit_scope.scope_of(self.model)
        around = vars(optimizer).get("apply")
        key = (*self._choices, self._start, around, *map(id, (optimizer, *variables)))
        steps = scope.memory.setdefault("pruning", {})
        if key not in steps:
            find_masks = functools.partial(self._find_masks, targets)
            first = self._template.begin_step
            steps[key] = with_pruning(
                optimizer, variables, self._start, first, self._is_due, find_masks
            )
        apply, begin_fit = steps[key]
        begin_fit()
        # Not by `setattr`, which Keras and PyTorch watch.
        vars(optimizer)["apply"] = apply
        scope.renew_step(self, (key, apply))
        self._keep_ticket()

    def _find_start(self, targets: Targets, seen: int, epoch: int) -> int:
        """Return the batch count at which the schedule began, or begins."""
        if seen == 0:
            return 0
        # Try the optimizer's first step, then the first step of this (maybe resumed)
        # fit: the weights must have the zeros that such a schedule implies by now.
        for start in (0, seen - epoch * (self.params["steps"] or 0)):
            step = self._last_update(seen - start + 1)
            early = step < self._template.begin_step
            if start >= 0 and (early or targets.have(self._sparsities(targets, step))):
                return start
        return seen

    def _check_length(self, seen: int, epochs: int) -> None:
        steps = self.params["steps"]
        last = self._template.end_step
        if steps is not None and seen - self._start + epochs * steps < last:
            reject(
                "end_step",
                last,
                f"<= {seen - self._start + epochs * steps}, the last step of this fit",
            )

    def _sparsities(self, targets: Targets, step) -> list[Any]:
        """Return the sparsity of each kernel at a step."""
        schedules = {
            final: type(self._template).from_config(
                {**self._template.get_config(), "final": final}
            )
            for final in targets.finals
        }
        values = {final: schedule(step) for final, schedule in schedules.items()}
        return [values[final] for final in targets.finals]

    def _last_update(self, step: int) -> int:
        """The last step that prunes, of those up to `step`."""
        begin, end = self._template.begin_step, self._template.end_step
        if not begin <= step < end:
            return min(step, end)
        return step - (step - begin) % self._frequency

    def _is_due(self, step) -> Any:
        """Whether a step prunes."""
        begin, end = self._template.begin_step, self._template.end_step
        turn = ((step - begin) % self._frequency == 0) | (step == end)
        return (step >= begin) & (step <= end) & turn

    def _find_masks(self, targets, step, values: list[Tensor]) -> list[Tensor]:
        return targets.masks(values, self._sparsities(targets, step))

    def _check_rewind(self, seen: int) -> None:
        if self._rewind_to is not None and seen - self._start > self._rewind_to:
            reject(
                "rewind_to",
                self._rewind_to,
                f"a step from {seen - self._start} on, where this fit begins",
            )

    def _keep_ticket(self) -> None:
        if self._rewind_to is None or self._ticket is not None:
            return
        sync_state(self.model)
        step = batches_seen(self.model) - self._start
        if step > self._rewind_to:
            reject("rewind_to", self._rewind_to, "a multiple of steps_per_execution")
        if step == self._rewind_to:
            self._ticket = [np.array(weight) for weight in self.model.get_weights()]

    def _rewind(self, targets: Targets, ticket: list[np.ndarray]) -> None:
        variables = [kernel.variable for kernel in targets.kernels]
        kept = [ops.not_equal(variable, 0) for variable in variables]
        self.model.set_weights(ticket)
        assign_masked(variables, kept)
        self._rewound = [np.array(weight) for weight in self.model.get_weights()]


_SCHEDULES = '"polynomial", "constant" or a sparsity schedule'


def _template(schedule, begin_step, end_step) -> Sparsity:
    if isinstance(schedule, Sparsity):
        if end_step not in (None, schedule.end_step) or begin_step not in (
            0,
            schedule.begin_step,
        ):
            reject("end_step", end_step, f"left out with {schedule=}")
        return schedule
    if not isinstance(schedule, str):
        reject("schedule", schedule, _SCHEDULES)
    if schedule == "constant":
        return ConstantSparsity(0.0, begin_step, end_step)
    if schedule != "polynomial":
        reject("schedule", schedule, _SCHEDULES)
    if end_step is None:
        reject("end_step", end_step, "an integer > begin_step")
    return PolynomialSparsity(0.0, 0.0, begin_step, end_step)


def _hashable(value: Any) -> Hashable:
    """Return a hashable form of an argument."""
    if isinstance(value, Mapping):
        return tuple(value.items())
    return tuple(value) if isinstance(value, list | set) else value
