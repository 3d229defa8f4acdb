"""The only place that reaches past the public `keras` API.

Each entry says why the public API does not do, and on which Keras versions it was
tried.
"""

import contextlib
import copy
import copyreg
import gc
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.models.functional import Functional, functional_like_constructor
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.utils import tracking

# The attribute of an object that has none of its own.
_NOTHING = object()


def backend_class(cls: Any) -> Any:
    """The class that Keras really instantiates for one of its optimizers.

    On PyTorch, `keras.optimizers.Adam(...)` makes an object of a private subclass that
    updates all variables at once, and does so only for the exact public class. A
    subclass that is to give the same bits must derive from that one. Asking `__new__`
    names it without importing it. Tried on Keras 3.13 and 3.15.
    """
    return type(cls.__new__(cls))


def step_counter(optimizer: keras.optimizers.Optimizer):
    """The variable that counts the batches an optimizer has seen.

    `optimizer.iterations` is divided by `gradient_accumulation_steps`; Keras evaluates
    a learning-rate schedule on the undivided count, which it keeps as its first
    variable. Tried on Keras 3.13 and 3.15.
    """
    return optimizer.variables[0]


def updated_variables(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """The model's variables that a built optimizer has slots for.

    An optimizer lists its own variables alone. Tried on Keras 3.13 and 3.15.
    """
    return list(optimizer._trainable_variables)


def decays(optimizer: keras.optimizers.Optimizer, variable: Any) -> bool:
    """Whether an optimizer's weight decay is for this variable.

    What `exclude_from_weight_decay` was told is not public. Tried on Keras 3.13 and
    3.15.
    """
    return optimizer._use_weight_decay(variable)


def copy_exclusions(
    source: keras.optimizers.Optimizer, target: keras.optimizers.Optimizer
) -> None:
    """Exclude from weight decay what another optimizer excludes.

    It is not in an optimizer's config. Tried on Keras 3.13 and 3.15.
    """
    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))


def moving_averages(optimizer: keras.optimizers.Optimizer) -> dict[int, Any]:
    """The moving averages of an optimizer with `use_ema`, by the id of the weight.

    Keras overwrites the weights with them. Tried on Keras 3.13 and 3.15.
    """
    if not optimizer.use_ema:
        return {}
    averages = optimizer._model_variables_moving_average
    return {
        id(weight): average
        for weight, average in zip(updated_variables(optimizer), averages, strict=True)
    }


@contextlib.contextmanager
def averaging_only(
    optimizer: keras.optimizers.Optimizer, variables: list[Any]
) -> Iterator[None]:
    """Lets an optimizer with `use_ema` average some of its variables alone.

    It goes through all of them, whatever it updates. Tried on Keras 3.13 and 3.15.
    """
    averages = moving_averages(optimizer)
    if not averages:
        yield
        return
    some = [averages[id(variable)] for variable in variables]
    with patched(
        [
            (optimizer, "_trainable_variables", variables),
            (optimizer, "_model_variables_moving_average", some),
        ]
    ):
        yield


def set_saved_optimizer(model: keras.Model, optimizer: Any) -> None:
    """Make `optimizer` the one that the model's file names.

    A file gets the optimizer that was given to `compile`, also after `model.optimizer`
    was exchanged, and the variables of the present one; where the two differ it cannot
    be loaded. Tried on Keras 3.13 and 3.15.
    """
    saved = getattr(model, "_compile_config", None)
    if saved is not None and not hasattr(saved.config["optimizer"], "inner_optimizer"):
        saved.config["optimizer"] = optimizer


def set_inner_optimizer(outer: Any, inner: keras.optimizers.Optimizer) -> None:
    """Exchange what a `LossScaleOptimizer` wraps.

    On JAX it goes through the gradients by the variables that it was built with itself,
    and would drop those of others without a word. Tried on Keras 3.13 and 3.15.
    """
    outer.inner_optimizer = inner
    if outer.built and inner.built:
        # Not by `setattr`, which would make them the optimizer's own.
        vars(outer)["_trainable_variables"] = updated_variables(inner)


def torch_rng_state(state: Any = None) -> Any:
    """Return PyTorch's random state, or set it; None on the other backends.

    There, layers without a seed draw from PyTorch's own generator, not from a
    `keras.random.SeedGenerator`. Tried on Keras 3.13 and 3.15.
    """
    if keras.backend.backend() != "torch":
        return None
    import torch

    if state is not None:
        torch.set_rng_state(state)
    return torch.get_rng_state()


def sublayers(
    layer: keras.layers.Layer, recursive: bool = True
) -> list[keras.layers.Layer]:
    """A layer and all layers inside it, however they are nested.

    With `recursive=False` those right inside it. Only models list their layers in
    public; an RNN's cell, the projections of an attention layer, and what a wrapper
    wraps are found this way. Tried on Keras 3.13 and 3.15.
    """
    return list(layer._flatten_layers(include_self=recursive, recursive=recursive))


def live_layers() -> list[keras.layers.Layer]:
    """Every layer that there is.

    Keras hands a constraint or a regularizer the variable alone, and a variable does
    not know its layer, whose type says which axes of a kernel are its inputs. Tried on
    Keras 3.13 and 3.15.
    """
    # `type`, since some modules put objects there that import what they stand for as
    # soon as `isinstance` looks at them.
    return [o for o in gc.get_objects() if issubclass(type(o), keras.layers.Layer)]


def set_projection_option(layer: keras.layers.Layer, name: str, value: Any) -> None:
    """Set what an attention layer hands to its projections when it is made again.

    `keras.layers.MultiHeadAttention` keeps `kernel_regularizer` and the like under a
    private name, and its file has them, not the projections'. Other layers are left
    alone. Tried on Keras 3.13 and 3.15.
    """
    if hasattr(layer, f"_{name}"):
        setattr(layer, f"_{name}", value)


def projections(layer: keras.layers.Layer) -> dict[str, Any]:
    """The dense layers of a built attention layer with heads, by what they project.

    Those of a `GroupQueryAttention`, and the gate, are not public. Tried on Keras 3.13
    and 3.15.
    """
    found = {
        name: getattr(layer, f"_{name}_dense", None)
        for name in ("query", "key", "value", "gate", "output")
    }
    return {name: dense for name, dense in found.items() if dense is not None}


@contextlib.contextmanager
def unbuilt_as_before(model: keras.Model) -> Iterator[None]:
    """Takes back that a step inside builds the compiled loss and metrics.

    The first `fit` looks at a batch to build them, and so draws once more from the
    order of the data than one that finds them built. Tried on Keras 3.13 and 3.15.
    """
    metrics, loss = model._compile_metrics, model._compile_loss
    unbuilt = [part for part in (metrics, loss) if part is not None and not part.built]
    try:
        yield
    finally:
        for part in unbuilt:
            part.built = False
            if part is loss:
                loss.metrics.clear()


def nodes(model: keras.Model) -> list[Any]:
    """The calls of a Functional or built Sequential model, each after its inputs.

    The graph that a Functional model was made from is not public. Each node has an
    `operation`, `arguments`, `input_tensors` and `outputs`. Tried on Keras 3.13 and
    3.15.
    """
    functional = functional_part(model)
    by_depth = functional._nodes_by_depth
    return [
        node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]
    ]


def arguments(node: Any, tensors: list[Any]) -> tuple[tuple, dict]:
    """The arguments of one of those calls, with others for `input_tensors`.

    Which arguments a layer was called with is not public. Tried on Keras 3.13 and 3.15.
    """
    by_input = {id(x): t for x, t in zip(node.input_tensors, tensors, strict=True)}
    return node.arguments.fill_in(by_input)


def run_node(node: Any, tensors: list[Any]) -> Any:
    """Make one of those calls with other tensors."""
    args, kwargs = arguments(node, tensors)
    return node.operation(*args, **kwargs)


@contextlib.contextmanager
def patched(changes: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Gives objects other attributes for a while: `(object, name, value)` of each.

    Not by `setattr`, which Keras and PyTorch watch: they would track the value. Tried
    on Keras 3.13 and 3.15.
    """
    before: list[tuple[dict, str, Any]] = []
    try:
        for target, name, value in changes:
            attributes = vars(target)
            before.append((attributes, name, attributes.get(name, _NOTHING)))
            attributes[name] = value
        yield
    finally:
        for attributes, name, value in reversed(before):
            if value is _NOTHING:
                del attributes[name]
            else:
                attributes[name] = value


def functional_part(model: keras.Model) -> Any:
    """The Functional model inside a Sequential one; a Functional model itself.

    None if the model is subclassed, not built, or has a `call` of its own: what it
    computes is then not what its graph says. Tried on Keras 3.13 and 3.15.
    """
    if isinstance(model, keras.Sequential):
        functional, call = model._functional, keras.Sequential.call
    else:
        functional, call = model, Functional.call
    own = getattr(type(model), "call", None) is not call or "call" in vars(model)
    return functional if hasattr(functional, "_nodes_by_depth") and not own else None


def has_own_call(model: Any) -> bool:
    """Whether a built Functional or Sequential model's class overrides its graph.

    Tried on Keras 3.13 and 3.15.
    """
    functional = getattr(model, "_functional", model)
    return hasattr(functional, "_nodes_by_depth") and functional_part(model) is None


def is_made_from_graph(model: keras.Model) -> bool:
    """Whether a Functional or Sequential model's config is its graph, whatever it is.

    KerasHub's models are Functional too, but their files have the arguments of their
    constructors. Tried on Keras 3.15.
    """
    cls = type(model)
    base = keras.Sequential if isinstance(model, keras.Sequential) else Functional
    if cls.get_config is not base.get_config:
        return False
    return base is keras.Sequential or functional_like_constructor(cls)


@contextlib.contextmanager
def copied_by(function: Callable[[Any, dict], Any]) -> Iterator[None]:
    """Lets `copy.deepcopy` hand every object of Keras to `function(object, memo)`.

    Left alone, it goes through Keras's `__reduce__`, which saves to a file in memory
    and loads it, and so needs a config of everything. Meanwhile, lists are copied
    without being tracked. Tried on Keras 3.13 and 3.15.
    """
    before = vars(KerasSaveable).get("__deepcopy__")
    KerasSaveable.__deepcopy__ = function
    # A name in place of a reduction: the module itself.
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


# What an object's `__new__` makes for this object alone.
_OWN = ("build", "quantize")
# What happened to a layer, as opposed to what it is.
_HISTORY = {
    "_inbound_nodes": list, "_outbound_nodes": list, "_losses": list, "_loss_ids": set,
}  # fmt: skip
# What `compile` and `fit` leave on a model.
_COMPILED = (
    "optimizer", "_optimizer", "loss", "compiled", "_compile_config", "_compile_loss",
    "_compile_metrics", "_loss_tracker", "_compiled_trainable_state", "history",
    "train_function", "test_function", "predict_function", "stop_training",
    "stop_evaluating", "stop_predicting", "_jax_state", "_jax_state_synced",
    "_eval_epoch_iterator", "_eval_data_handler", "steps_per_execution",
)  # fmt: skip


def copy_attributes(old: Any, memo: dict, extra: Any = None) -> Any:
    """A copy of a layer, operation or metric with copies of its attributes.

    Its `build` and `quantize` are closures over the object, and the tracker knows what
    it tracks by id: both must be those of the copy. Nothing of what is compiled is
    copied. Tried on Keras 3.15.

    Args:
        old: What to copy.
        memo: That of `copy.deepcopy`.
        extra: For a Functional or Sequential model, one of that very class in Keras
            whose graph the copy is to have.
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


# What a model's graph does not say of it.
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
        # A lookup table, a compiled function, an open file: they are shared.
        return value


def _copy_modules(old: dict, new: dict, memo: dict) -> None:
    """PyTorch's modules keep layers that are attributes apart from the others."""
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
    for name, (_, store) in old._tracker.config.items():
        for part in store:
            if id(part) in graph:
                continue
            part = copy.deepcopy(part, memo)
            if not tracker.is_in_store(name, part):
                tracker.add_to_store(name, part)


def run_through(model: keras.Model, inputs: Any, operation: Any, call: Any) -> Any:
    """Run new symbolic inputs through the graph of a Functional model.

    `keras.models.clone_model` does this and more: it compiles the copy too, which fails
    where a loss or metric is not registered. Tried on Keras 3.13 and 3.15.

    Args:
        model: The Functional model.
        inputs: Symbolic inputs, in the structure of the model's.
        operation: From each operation of the graph to the one to use instead.
        call: Called with that one and the arguments.

    Returns:
        The outputs, in the structure of the model's.
    """
    return model._run_through_graph(inputs, operation_fn=operation, call_fn=call)


def exchange_part(model: keras.Model, name: str, part: keras.layers.Layer) -> None:
    """Set an attribute of a subclassed model to another layer.

    Setting it alone leaves the old layer among the model's. Tried on Keras 3.13 and
    3.15.
    """
    old = getattr(model, name)
    delattr(model, name)
    model._tracker.untrack(old)
    setattr(model, name, part)


def sync_state(model: keras.Model) -> None:
    """Bring the variables up to date in the middle of a `fit`, or after one that broke.

    On JAX they are behind the training step until Keras needs them, and would then be
    overwritten. Tried on Keras 3.13 and 3.15.
    """
    if keras.backend.backend() == "jax":
        model.jax_state_sync()


@contextlib.contextmanager
def loss_tracker(model: keras.Model, metric: keras.metrics.Metric) -> Iterator[None]:
    """Lets `metric` have the losses that Keras takes the mean of.

    The loss of a single step is not public where one call runs several of them. Tried
    on Keras 3.13 and 3.15.
    """
    with patched([(model, "_loss_tracker", metric)]):
        yield


def as_one_op(function: Callable) -> Callable:
    """A function of lists of tensors that TensorFlow compiles into a single operation.

    In a branch that is seldom taken, TensorFlow passes each operation by in every step,
    at the cost of some hundreds. The other backends take it as it is. Tried on Keras
    3.13 and 3.15.
    """
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.function(function, jit_compile=True)
