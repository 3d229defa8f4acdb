"""An optimizer's update with pruning after it, inside the compiled step."""

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
    """The optimizer's `apply` with pruning after it, and what begins a fit with it.

    Args:
        optimizer: The optimizer, built.
        variables: The kernels to prune.
        start: The count of batches before step 1.
        begin_step: The first step that prunes.
        is_due: Whether a step prunes, before its pass.
        find_masks: From a step and the kernels' values to the entries that stay.
    """
    # A second callback may prune other kernels.
    inner = vars(optimizer).get("apply")
    find = as_one_op(find_masks)
    averages = moving_averages(optimizer)
    # On JAX what a step keeps must be in the optimizer, and so in its files. There the
    # zeros themselves are the masks; elsewhere a copy is faster, which no file has.
    masks = []
    if not _on_jax():
        masks = [keras.Variable(_alive(v, True), trainable=False) for v in variables]
    # Only clipping can set a weight to zero that is not pruned.
    clips = _on_jax() or isinstance(optimizer, keras.optimizers.Ftrl)
    clipped = [clips or variable.constraint is not None for variable in variables]

    def apply_and_prune(grads, trainable_variables=None):
        _check_all_trained(variables, trainable_variables)
        step = _now(optimizer) - start + 1
        before = [ops.convert_to_tensor(mask) for mask in masks] or [
            _alive(variable, step < begin_step) for variable in variables
        ]
        # The class may be another one than when the fit began.
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
    """Raise if the training step updates some of the pruned kernels elsewhere.

    Another optimizer may do that, and the zeros would be lost.
    """
    known = {id(variable) for variable in trained or variables}
    others = [variable.path for variable in variables if id(variable) not in known]
    if others:
        expected = "such that the model's `optimizer` trains all that is pruned; leave "
        reject("exclude", None, f"{expected}out {', '.join(others)}")


def _alive(variable: keras.Variable, everything: Any) -> Tensor:
    """Return the entries that are not zero, or all."""
    alive = ops.not_equal(variable, 0) | everything
    # Either is the faster on its backend: XLA fuses what TensorFlow does one by one.
    return alive if _on_jax() else ops.cast(alive, variable.dtype)


def _on_jax() -> bool:
    return keras.backend.backend() == "jax"


def _masked(value: Tensor, mask: Tensor) -> Tensor:
    return ops.where(mask, value, 0.0) if _on_jax() else value * mask


def nonzero(variables: list[keras.Variable]) -> list[Tensor]:
    """Return the values of variables, with zeros replaced by a tiny number."""
    return [_nonzero(variable) for variable in variables]


def assign_masked(variables: list[keras.Variable], masks: list[Tensor]) -> None:
    """Set to zero what the masks do not keep, and keep the rest from being zero."""
    for variable, value, mask in zip(variables, nonzero(variables), masks, strict=True):
        variable.assign(ops.where(mask, value, 0.0))


def _nonzero(variable: Any) -> Tensor:
    # A normal number, far below any weight, but large enough not to underflow by weight
    # decay; in float16 only denormal numbers are small enough.
    value = ops.convert_to_tensor(variable)
    dtype = keras.backend.standardize_dtype(value.dtype)
    tiny = ops.cast(6e-8 if dtype == "float16" else 1e-30, dtype)
    return ops.where(ops.equal(value, 0), tiny, value)


def _now(optimizer: keras.optimizers.Optimizer) -> Any:
    """The count of batches, as a number where steps are not compiled."""
    counter = step_counter(optimizer)
    if keras.backend.backend() == "torch":
        return int(counter)
    return ops.convert_to_tensor(counter)


def _either(condition: Any, yes: Callable, no: Callable) -> Any:
    if isinstance(condition, bool):
        return yes() if condition else no()
    return ops.cond(condition, yes, no)
