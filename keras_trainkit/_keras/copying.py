"""Copies of Keras objects with all of their state."""

import contextlib
import copy
import copyreg
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.utils import tracking

from keras_trainkit._keras import functional_part


@contextlib.contextmanager
def copied_by(function: Callable[[Any, dict], Any]) -> Iterator[None]:
    """Lets `copy.deepcopy` pass every Keras object to `function(object, memo)`.

    By default it uses Keras's `__reduce__`, which saves to a file in memory and loads
    it, so every object would need a config. Inside, lists are copied untracked. Tried
    on Keras 3.13 and 3.15.
    """
    before = vars(KerasSaveable).get("__deepcopy__")
    KerasSaveable.__deepcopy__ = function
    # A string instead of a tuple makes `deepcopy` keep the module itself.
    copyreg.pickle(types.ModuleType, lambda module: module.__name__)
    try:
        with tracking.DotNotTrackScope():
            yield
    finally:
        if before is None:
            del KerasSaveable.__deepcopy__
            del copyreg.dispatch_table[types.ModuleType]
        else:
            KerasSaveable.__deepcopy__ = before


@contextlib.contextmanager
def tracked() -> Iterator[None]:
    """Lets models made inside `copied_by` track their layers. Tried on Keras 3.15."""
    before = tracking.is_tracking_enabled()
    tracking.set_global_attribute("tracking_on", True)
    try:
        yield
    finally:
        tracking.set_global_attribute("tracking_on", before)


# What `__new__` creates for each object.
_OWN = ("build", "quantize")
# The history of a layer's calls, which a copy does not share.
_HISTORY = {
    "_inbound_nodes": list, "_outbound_nodes": list, "_losses": list, "_loss_ids": set,
}  # fmt: skip
# What `compile` and `fit` set on a model.
_COMPILED = (
    "optimizer", "_optimizer", "loss", "compiled", "_compile_config", "_compile_loss",
    "_compile_metrics", "_loss_tracker", "_compiled_trainable_state", "history",
    "train_function", "test_function", "predict_function", "stop_training",
    "stop_evaluating", "stop_predicting", "_jax_state", "_jax_state_synced",
    "_eval_epoch_iterator", "_eval_data_handler", "steps_per_execution",
)  # fmt: skip


def copy_attributes(old: Any, memo: dict, extra: Any = None) -> Any:
    """A copy of a layer, operation or metric with copies of its attributes.

    `build` and `quantize` are closures over the object, and the tracker identifies
    objects by id, so both must belong to the copy. Compiled state is not copied. Tried
    on Keras 3.15.

    Args:
        old: What to copy.
        memo: The memo of `copy.deepcopy`.
        extra: For a Functional or Sequential model, a model of exactly that Keras
            class, whose graph the copy takes.
    """
    bases = (keras.layers.Layer, keras.Operation, object)
    base: Any = next(base for base in bases if isinstance(old, base))
    new = memo[id(old)] = base.__new__(type(old))
    own = {name: vars(new)[name] for name in _OWN if name in vars(new)}
    attributes = vars(new)
    attributes.clear()
    if extra is not None:
        attributes.update(vars(extra))
        memo[id(old._tracker)] = extra._tracker
    if isinstance(old, keras.Model):
        blank = vars(keras.Sequential())
        attributes.update({n: blank[n] for n in _COMPILED if n in blank})
    for name, value in vars(old).items():
        if name in _HISTORY:
            attributes[name] = _HISTORY[name]()
        elif name in attributes and name not in _KEPT:
            continue
        elif name not in _COMPILED or not isinstance(old, keras.Model):
            attributes[name] = _copied(value, memo)
    attributes.update(own)
    if extra is not None:
        _copy_modules(vars(old), attributes, memo)
    _retrack(old, new, memo, extra)
    return new


# Attributes of a model that its graph does not determine.
_KEPT = (
    "_trainable", "_dtype_policy", "autocast", "_auto_config", "_convert_input_args",
    "_allow_non_tensor_positional_args", "supports_jit", "_path", "_remat_mode",
)  # fmt: skip


def _copied(value: Any, memo: dict) -> Any:
    before = {id(memo), *memo}
    try:
        return copy.deepcopy(value, memo)
    except Exception:
        for key in [key for key in memo if key not in before]:
            del memo[key]
        if isinstance(value, dict):
            return {key: _copied(part, memo) for key, part in value.items()}
        if type(value) is tuple or isinstance(value, list | set):
            parts = [_copied(part, memo) for part in value]
            return parts if isinstance(value, list) else type(value)(parts)
        # Lookup tables, compiled functions and open files are shared.
        return value


def _copy_modules(old: dict, new: dict, memo: dict) -> None:
    """PyTorch modules store layer attributes separately from other attributes."""
    for name in ("_modules", "_parameters", "_buffers"):
        for key, part in old.get(name, {}).items():
            if key not in new[name]:
                new[name][key] = copy.deepcopy(part, memo)


def _retrack(old, new, memo, extra) -> None:
    tracker = vars(new).get("_tracker")
    if tracker is None:
        return
    if extra is None:
        for name, (_, store) in tracker.config.items():
            tracker.stored_ids[name] = {id(part) for part in store}
        return
    # Layers and variables of the model besides its graph.
    graph = {id(operation) for operation in functional_part(old)._operations}
    if isinstance(old, keras.Sequential):
        # A Sequential also tracks the graphs of its earlier, shorter versions.
        own = {id(layer) for layer in old.layers}
        graph |= {
            id(part)
            for _, store in old._tracker.config.values()
            for part in store
            if id(part) not in own and functional_part(part) is not None
        }
    for name, (_, store) in old._tracker.config.items():
        for part in store:
            if id(part) in graph:
                continue
            part = copy.deepcopy(part, memo)
            if not tracker.is_in_store(name, part):
                tracker.add_to_store(name, part)
