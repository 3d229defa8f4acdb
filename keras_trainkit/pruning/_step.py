"""Prune after each optimizer update, inside the compiled training step."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_trainkit._checks import reject
from keras_trainkit._keras import as_one_op, batch_count, moving_averages, step_counter
from keras_trainkit._types import Tensor


def with_pruning(
    optimizer: keras.optimizers.Optimizer,
    variables: list[keras.Variable],
    start: int,
    begin_step: int,
    is_due: Callable[[Any], Any],
    find_masks: Callable[[Any, list[Tensor]], list[Tensor]],
) -> tuple[Callable, Callable[[], None]]:
    """Return an `apply` that prunes after the update, and a function that resets it.

    Call the second function at the start of a fit.

    Args:
        optimizer: The optimizer, built.
        variables: The kernels to prune.
        start: The optimizer's batch count before step 1.
        begin_step: The first step that prunes.
        is_due: Whether to prune before the forward pass of a step.
        find_masks: Maps a step and the kernels' values to the masks of the entries to
            keep.
    """
    # Another callback may already have replaced `apply` to prune other kernels.
    inner = vars(optimizer).get("apply")
    find = as_one_op(find_masks)
    averages = moving_averages(optimizer)
    # On JAX, state that a step keeps must be in the optimizer and would be saved with
    # it, so the zeros themselves serve as masks. On other backends separate masks are
    # faster, and they are not saved.
    masks = []
    if not _on_jax():
        masks = [keras.Variable(_alive(v, True), trainable=False) for v in variables]
    # Only clipping can set a weight to zero that is not pruned; see `_nonzero`.
    clips = _on_jax() or isinstance(optimizer, keras.optimizers.Ftrl)
    clipped = [clips or variable.constraint is not None for variable in variables]

    def apply_and_prune(grads, trainable_variables=None):
        _check_all_trained(variables, trainable_variables)
        step = _now(optimizer) - start + 1
        before = [ops.convert_to_tensor(mask) for mask in masks] or [
            _alive(variable, step < begin_step) for variable in variables
        ]
        # The optimizer's class may have changed since the fit began.
        apply = inner or functools.partial(type(optimizer).apply, optimizer)
        apply(grads, trainable_variables)
        values = [
            _nonzero(variable) if clip else ops.convert_to_tensor(variable)
            for variable, clip in zip(variables, clipped, strict=True)
        ]

        def renewed() -> list[Tensor]:
            found = find(step + 1, [_nonzero(value) for value in values])
            return [ops.cast(f, b.dtype) for f, b in zip(found, before, strict=True)]

        after = _either(is_due(step + 1), renewed, lambda: before)
        for mask, new in zip(masks, after, strict=False):
            mask.assign(new)
        for variable, value, new in zip(variables, values, after, strict=True):
            variable.assign(_masked(value, new))
            average = averages.get(id(variable))
            if average is not None:
                average.assign(_masked(ops.convert_to_tensor(average), new))

    def begin() -> None:
        begun = batch_count(optimizer) - start + 1 >= begin_step
        for mask, variable in zip(masks, variables, strict=False):
            mask.assign(_alive(variable, not begun))

    return apply_and_prune, begin


def _check_all_trained(variables, trained) -> None:
    """Raise if another optimizer updates some of the pruned kernels.

    Their zeros would be lost.
    """
    known = {id(variable) for variable in trained or variables}
    others = [variable.path for variable in variables if id(variable) not in known]
    if others:
        expected = "such that the model's `optimizer` trains all that is pruned; leave "
        reject("exclude", None, f"{expected}out {', '.join(others)}")


def _alive(variable: keras.Variable, everything: Any) -> Tensor:
    """Return a mask of the nonzero entries, or of all entries."""
    alive = ops.not_equal(variable, 0) | everything
    # A boolean mask is faster on JAX, where XLA fuses the operations; a float mask is
    # faster on the other backends.
    return alive if _on_jax() else ops.cast(alive, variable.dtype)


def _on_jax() -> bool:
    return keras.backend.backend() == "jax"


def _masked(value: Tensor, mask: Tensor) -> Tensor:
    return ops.where(mask, value, 0.0) if _on_jax() else value * mask


def nonzero(variables: list[keras.Variable]) -> list[Tensor]:
    """Return the values of variables, with zeros replaced by a tiny number."""
    return [_nonzero(variable) for variable in variables]


def assign_masked(variables: list[keras.Variable], masks: list[Tensor]) -> None:
    """Zero the entries outside the masks; make zeros inside them a tiny number."""
    for variable, value, mask in zip(variables, nonzero(variables), masks, strict=True):
        variable.assign(ops.where(mask, value, 0.0))


def _nonzero(variable: Any) -> Tensor:
    # A normal number far below any weight, yet large enough that weight decay does not
    # make it underflow; in float16 only denormal numbers are small enough.
    value = ops.convert_to_tensor(variable)
    dtype = keras.backend.standardize_dtype(value.dtype)
    tiny = ops.cast(6e-8 if dtype == "float16" else 1e-30, dtype)
    return ops.where(ops.equal(value, 0), tiny, value)


def _now(optimizer: keras.optimizers.Optimizer) -> Any:
    """Return the batch count; a plain int if steps are not compiled."""
    counter = step_counter(optimizer)
    if keras.backend.backend() == "torch":
        return int(counter)
    return ops.convert_to_tensor(counter)


def _either(condition: Any, yes: Callable, no: Callable) -> Any:
    if isinstance(condition, bool):
        return yes() if condition else no()
    return ops.cond(condition, yes, no)
