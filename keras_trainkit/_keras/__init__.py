"""The only place that reaches past the public `keras` API.

Each entry says why the public API does not do, and on which Keras versions it was
tried.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.models.functional import Functional, functional_like_constructor

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
    a learning-rate schedule on the undivided count, which is not
    public. Tried on Keras 3.13 and 3.15.
    """
    return optimizer._iterations


def batch_count(optimizer: keras.optimizers.Optimizer) -> int:
    """The batches an optimizer has seen, as a number; 0 before it is built.

    `int` does not take the variable under `tf.distribute`. Tried on Keras 3.15.
    """
    if not optimizer.built:
        return 0
    return int(keras.ops.convert_to_numpy(step_counter(optimizer)))


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


def run_node(node: Any, tensors: list[Any], training: bool | None = None) -> Any:
    """Make one of those calls with other tensors.

    A node keeps the `training` that its layer had by default. As in a Functional model,
    `training` takes its place, whatever the layer was called with. Tried on Keras 3.15.
    """
    args, kwargs = arguments(node, tensors)
    if training is not None and "training" in getattr(
        node.operation, "_call_context_args", ()
    ):
        kwargs["training"] = training
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


@contextlib.contextmanager
def computing_in(dtype: str, layers: list[keras.layers.Layer]) -> Iterator[None]:
    """Lets built layers compute in another dtype for a while, variables as they are.

    Exporters lack kernels for some. Setting `dtype_policy` in public changes the dtype
    that the variables are supposed to have, and they would no longer be cast. Tried on
    Keras 3.15.
    """
    changes: list[tuple[Any, str, Any]] = []
    for layer in layers:
        policy = keras.DTypePolicy("mixed_bfloat16")
        vars(policy).update(_compute_dtype=dtype, _variable_dtype=layer.variable_dtype)
        changes.append((layer, "_dtype_policy", policy))
    with patched(changes):
        yield


@contextlib.contextmanager
def arithmetic_sign_bit() -> Iterator[None]:
    """Lets TensorFlow tell -0 from 0 by arithmetic instead of by a float's bits.

    `keras.ops.argmax` does so, and no exported format has the operations for bits.
    Tried on Keras 3.15.
    """
    if keras.backend.backend() != "tensorflow":
        yield
        return
    from keras.src.backend.tensorflow import numpy as backend

    def signbit(x):
        x = keras.ops.convert_to_tensor(x)
        # 1 / -0 is minus infinity.
        return keras.ops.logical_or(x < 0, 1 / keras.ops.cast(x, "float32") < 0)

    with patched([(backend, "signbit", signbit)]):
        yield
