"""The only place that uses more than the public `keras` API.

Each entry says why the public API is not enough, and with which Keras versions it was
tested.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.models.functional import Functional, functional_like_constructor

# Sentinel: the attribute is not set on the instance.
_NOTHING = object()


def backend_class(cls: Any) -> Any:
    """The class that Keras actually instantiates for one of its optimizers.

    On PyTorch, `keras.optimizers.Adam(...)` makes an object of a private subclass that
    updates all variables at once, and does so only for the exact public class. A
    subclass that must give bit-identical results has to derive from it. Calling
    `__new__` finds it without importing it. Tried on Keras 3.13 and 3.15.
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
    """The number of batches an optimizer has seen; 0 before it is built.

    `int(variable)` fails under `tf.distribute`. Tried on Keras 3.15.
    """
    if not optimizer.built:
        return 0
    return int(keras.ops.convert_to_numpy(step_counter(optimizer)))


def updated_variables(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """The model's variables that a built optimizer has slots for.

    The public `variables` are only the optimizer's own. Tried on Keras 3.13 and 3.15.
    """
    return list(optimizer._trainable_variables)


def decays(optimizer: keras.optimizers.Optimizer, variable: Any) -> bool:
    """Whether an optimizer applies weight decay to this variable.

    The exclusions made by `exclude_from_weight_decay` are not public. Tried on Keras
    3.13 and 3.15.
    """
    return optimizer._use_weight_decay(variable)


def copy_exclusions(
    source: keras.optimizers.Optimizer, target: keras.optimizers.Optimizer
) -> None:
    """Copy the exclusions from weight decay to another optimizer.

    They are not in an optimizer's config. Tried on Keras 3.13 and 3.15. Nor are the
    layers that are keys of `kt.optimizers.layerwise`, which are copied too.
    """
    exclusions = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
    for name in (*exclusions, "_keys"):
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
    """Restricts an optimizer with `use_ema` to averaging some of its variables.

    It averages all of them, even those it does not update. Tried on Keras 3.13 and
    3.15.
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
    """Make `optimizer` the one that is saved in the model's file.

    Keras saves the config of the optimizer given to `compile`, even if
    `model.optimizer` was replaced since, with the variables of the current one. If the
    two differ, the file cannot be loaded. Tried on Keras 3.13 and 3.15.
    """
    saved = getattr(model, "_compile_config", None)
    if saved is not None and not hasattr(saved.config["optimizer"], "inner_optimizer"):
        saved.config["optimizer"] = optimizer


def set_inner_optimizer(outer: Any, inner: keras.optimizers.Optimizer) -> None:
    """Replace the optimizer that a `LossScaleOptimizer` wraps.

    On JAX it pairs the gradients with the variables it was built with, and would
    silently drop all others. Tried on Keras 3.13 and 3.15.
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
    """A layer and all layers inside it, at any depth.

    With `recursive=False`, only its direct children. Only models list their layers
    publicly; this also finds an RNN's cell, the projections of an attention layer, and
    the layer inside a wrapper. Tried on Keras 3.13 and 3.15.
    """
    return list(layer._flatten_layers(include_self=recursive, recursive=recursive))


def call_name(layer: keras.layers.Layer) -> str:
    """The name of the method that a call of a layer runs.

    A quantized layer runs another one than `call`. Tried on Keras 3.15.
    """
    quantized = getattr(layer, "quantization_mode", None) is not None
    return "quantized_call" if quantized else "call"


def live_layers() -> list[keras.layers.Layer]:
    """Every layer that exists in this process.

    Keras passes only the variable to a constraint or regularizer. A variable does not
    know its layer, and the layer's type determines which axes of a kernel are inputs.
    Tried on Keras 3.13 and 3.15.
    """
    # `type`, because `isinstance` would trigger the import of lazy module objects. One
    # that is being made, or whose `__init__` raised, has no name or layers yet.
    return [
        o
        for o in gc.get_objects()
        if issubclass(type(o), keras.layers.Layer)
        and {"name", "_layers"} <= set(vars(o))
    ]


def lora_base(layer: keras.layers.Layer) -> Any:
    """The frozen kernel or table of a layer with LoRA; None without.

    Setting `trainable` of the layer makes it train. Tried on Keras 3.15.
    """
    if not getattr(layer, "lora_enabled", False):
        return None
    return getattr(layer, "_embeddings", getattr(layer, "_kernel", None))


def set_projection_option(layer: keras.layers.Layer, name: str, value: Any) -> None:
    """Set an option that an attention layer passes to its projections when rebuilt.

    `keras.layers.MultiHeadAttention` keeps `kernel_regularizer` and the like under a
    private name, and saves those rather than the projections'. Other layers are not
    changed. Tried on Keras 3.13 and 3.15.
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
def unbuilt_as_before(model: keras.Model, for_fit: bool = False) -> Iterator[None]:
    """Undoes the building of the compiled loss and metrics by a step inside.

    The first `fit` reads one batch to build them, which advances the shuffled data
    once more than a `fit` that finds them built; with the workers of a `PyDataset`, it
    even trains on that batch last. Tried on Keras 3.13 and 3.15.

    Args:
        model: A compiled model.
        for_fit: Whether this is inside a `fit`, which has built them if it is the
            first, and is undone as a whole.
    """
    parts = [p for p in (model._compile_metrics, model._compile_loss) if p is not None]
    is_first = for_fit and model.train_function is None and model.test_function is None
    loss = model._compile_loss
    unbuilt = parts if is_first else [part for part in parts if not part.built]
    try:
        yield
    finally:
        for part in unbuilt:
            part.built = False
            if part is loss:
                loss.metrics.clear()


def nodes(model: keras.Model) -> list[Any]:
    """The calls of a Functional or built Sequential model in topological order.

    The graph of a Functional model is not public. Each node has an
    `operation`, `arguments`, `input_tensors` and `outputs`. Tried on Keras 3.13 and
    3.15.
    """
    functional = functional_part(model)
    by_depth = functional._nodes_by_depth
    return [
        node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]
    ]


def arguments(node: Any, tensors: list[Any]) -> tuple[tuple, dict]:
    """The arguments of one of those calls, with `input_tensors` replaced.

    The arguments that a layer was called with are not public. Tried on Keras 3.13 and
    3.15.
    """
    by_input = {id(x): t for x, t in zip(node.input_tensors, tensors, strict=True)}
    return node.arguments.fill_in(by_input)


def run_node(node: Any, tensors: list[Any], training: bool | None = None) -> Any:
    """Repeat one of those calls with other tensors.

    A node stores the default `training` of its layer. As in a Functional model,
    `training` overrides it, whatever the layer was called with. Tried on Keras 3.15.
    """
    args, kwargs = arguments(node, tensors)
    if training is not None and "training" in getattr(
        node.operation, "_call_context_args", ()
    ):
        kwargs["training"] = training
    return node.operation(*args, **kwargs)


@contextlib.contextmanager
def patched(changes: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Temporarily replaces attributes, given as `(object, name, value)`.

    Not with `setattr`, which Keras and PyTorch override to track the value. Tried
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

    None if the model is subclassed, not built, or overrides `call`: its graph then
    does not describe what it computes. Tried on Keras 3.13 and 3.15.
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
    """Whether a Functional or Sequential model's config describes its graph.

    KerasHub's models are Functional too, but their configs hold the arguments of
    their constructors. Tried on Keras 3.15.
    """
    cls = type(model)
    base = keras.Sequential if isinstance(model, keras.Sequential) else Functional
    if cls.get_config is not base.get_config:
        return False
    return base is keras.Sequential or functional_like_constructor(cls)


def run_through(model: keras.Model, inputs: Any, operation: Any, call: Any) -> Any:
    """Run new symbolic inputs through the graph of a Functional model.

    `keras.models.clone_model` also compiles the copy, which fails if a loss or metric
    is not registered. Tried on Keras 3.13 and 3.15.

    Args:
        model: The Functional model.
        inputs: Symbolic inputs, in the structure of the model's.
        operation: Maps each operation of the graph to its replacement.
        call: Called with the replacement and the arguments.

    Returns:
        The outputs, in the structure of the model's.
    """
    return model._run_through_graph(inputs, operation_fn=operation, call_fn=call)


def exchange_part(model: keras.Model, name: str, part: keras.layers.Layer) -> None:
    """Set an attribute of a subclassed model to another layer.

    Setting the attribute alone leaves the old layer tracked by the model. Tried on
    Keras 3.13 and 3.15.
    """
    old, tracker = getattr(model, name), model._tracker
    delattr(model, name)
    tracker.untrack(old)
    # A built model takes no new state.
    locked, message = tracker.locked, tracker._lock_violation_msg
    tracker.unlock()
    setattr(model, name, part)
    if locked:
        tracker.lock(message)


def sync_state(model: keras.Model) -> None:
    """Update the variables in the middle of a `fit`, or after one that raised.

    On JAX they lag behind the training step until Keras synchronizes them, which would
    overwrite changes. Tried on Keras 3.13 and 3.15.
    """
    if keras.backend.backend() == "jax":
        model.jax_state_sync()


@contextlib.contextmanager
def loss_tracker(model: keras.Model, metric: keras.metrics.Metric) -> Iterator[None]:
    """Passes `metric` the losses that Keras averages.

    The loss of a single step is not public when one call runs several steps. Tried
    on Keras 3.13 and 3.15.
    """
    with patched([(model, "_loss_tracker", metric)]):
        yield


def as_one_op(function: Callable) -> Callable:
    """Compile a function of lists of tensors into a single operation on TensorFlow.

    In a branch that is rarely taken, TensorFlow still visits every operation in each
    step, which is slow with several hundred. Other backends use the function as is.
    Tried on Keras 3.13 and 3.15.
    """
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.function(function, jit_compile=True)


@contextlib.contextmanager
def computing_in(dtype: str, layers: list[keras.layers.Layer]) -> Iterator[None]:
    """Temporarily lets built layers compute in another dtype, variables unchanged.

    Exporters lack kernels for some dtypes. Setting the public `dtype_policy` changes
    the dtype the variables are expected to have, so they would no longer be cast. Tried
    on Keras 3.15.
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
    """Lets TensorFlow distinguish -0 from 0 by arithmetic rather than by bits.

    `keras.ops.argmax` needs this, and no export format supports the bit operations.
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


@contextlib.contextmanager
def native_dilation() -> Iterator[None]:
    """Lets TensorFlow write a dilated convolution as one operation.

    It rearranges the input, convolves, and rearranges the output, and LiteRT's
    converter, which undoes this elsewhere, does not where there are ranges. Tried on
    Keras 3.15.
    """
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    plain, plain_depthwise = tf.nn.convolution, tf.nn.depthwise_conv2d

    def pair(value):
        return (value, value) if isinstance(value, int) else tuple(value)

    def convolution(x, kernel, strides, padding, data_format, dilations):
        if data_format != "NHWC":
            options = {"data_format": data_format, "dilations": dilations}
            return plain(x, kernel, strides, padding, **options)
        return tf.nn.conv2d(
            x, kernel, pair(strides), padding, dilations=pair(dilations)
        )

    def depthwise(x, kernel, strides, padding, data_format, dilations):
        if data_format != "NHWC":
            options = {"data_format": data_format, "dilations": dilations}
            return plain_depthwise(x, kernel, strides, padding, **options)
        return tf.raw_ops.DepthwiseConv2dNative(
            input=x,
            filter=kernel,
            strides=strides,
            padding=padding,
            dilations=[1, *pair(dilations or 1), 1],
        )

    changes = [(tf.nn, "convolution", convolution)]
    with patched([*changes, (tf.nn, "depthwise_conv2d", depthwise)]):
        yield
