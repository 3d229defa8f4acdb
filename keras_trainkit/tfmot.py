"""Conversion of models to tf_keras (Keras 2), which TF-MOT requires, and back.

TF-MOT (the TensorFlow Model Optimization Toolkit) offers pruning, clustering and
quantization-aware training, but accepts only tf_keras models. This module needs the
extra `tfmot`.
"""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import reject
from keras_trainkit._keras import arguments
from keras_trainkit._model.compare import check_same, random_inputs
from keras_trainkit._model.graph import check_graph, read

__all__ = ["from_tf_keras", "to_tf_keras"]


def __dir__() -> list[str]:
    return __all__


# Arguments with different names: (in Keras 3, in tf_keras).
_RENAMED = {"LeakyReLU": ("negative_slope", "alpha")}
# Arguments that only one of the two has and that do not affect what a layer computes.
_IMMATERIAL = {
    "implementation", "batch_input_shape", "batch_shape", "sparse", "ragged",
    "renorm", "renorm_clipping", "renorm_momentum", "time_major", "use_cudnn",
    "zero_output_for_mask",
    "lora_rank", "lora_alpha", "quantization_config", "flash_attention",
    "query_shape", "key_shape", "value_shape",
}  # fmt: skip
# An unknown argument with one of these values can be dropped.
_NOTHING: tuple = (None, False, 0, [], (), {})


def to_tf_keras(model: keras.Model) -> Any:
    """Convert a Keras 3 model to tf_keras, for use with TF-MOT.

    Args:
        model: A Functional or built Sequential model of built-in Keras layers, on any
            backend. Nested models are flattened.

    Returns:
        A `tf_keras.Model` (a `tf_keras.Sequential` for a Sequential model) with the
        same weights, not compiled.

    Raises:
        ImportError: If tf_keras is not installed.
        ValueError: If a layer has no counterpart; the message names it.
        RuntimeError: If the outputs of the two models for random inputs differ by more
            than rounding errors.

    Examples:
        ```python
        converted = kt.tfmot.to_tf_keras(model)
        pruned = tfmot.sparsity.keras.prune_low_magnitude(converted)
        ...  # compile and fit, with tf_keras's and TF-MOT's callbacks
        stripped = tfmot.sparsity.keras.strip_pruning(pruned)
        model = kt.tfmot.from_tf_keras(stripped)
        ```
    """
    tf_keras = _import_tf_keras()
    check_graph(model)
    graph = read(model)
    layers: dict[Any, Any] = {}
    tensors: dict[int, Any] = {}
    for edge, x in zip(graph.inputs, model.inputs, strict=True):
        tensors[id(edge)] = tf_keras.layers.Input(
            batch_shape=tuple(x.shape), dtype=x.dtype, name=x.name
        )
    for call in graph.calls:
        layer = call.layer
        if layer not in layers:
            _check_known(layer, keras.layers)
            config = _own_config(layer)
            config["name"] = call.path.replace("/", "_")
            layers[layer] = _make(type(layer).__name__, config, tf_keras.layers)
        args, kwargs = arguments(call.node, [tensors[id(e)] for e in call.inputs])
        outputs = _apply(layers[layer], layer.name, args, kwargs)
        for edge, x in zip(call.outputs, keras.tree.flatten(outputs), strict=True):
            tensors[id(edge)] = x
    for layer, new in layers.items():
        _copy_weights(layer, new)
    converted = _assemble(
        model,
        [tensors[id(edge)] for edge in graph.inputs],
        [tensors[id(edge)] for edge in graph.outputs],
        layers.values(),
        tf_keras,
    )
    _check_equal(model, converted)
    return converted


def from_tf_keras(model: Any) -> keras.Model:
    """Convert a tf_keras model to Keras 3.

    For a model from TF-MOT's quantization-aware training (`quantize_model`), this keeps
    the trained float weights and drops the int8 simulation. Export the result with
    `kt.export.to_litert(..., quantization="int8")`.

    Args:
        model: A Functional or built Sequential `tf_keras` model of built-in Keras
            layers. A model that TF-MOT pruned or clustered must first go through
            `strip_pruning` or `strip_clustering`.

    Returns:
        A `keras.Model` (a `keras.Sequential` for a Sequential model) with the same
        weights, not compiled.

    Raises:
        ImportError: If tf_keras is not installed.
        ValueError: If a layer has no counterpart; the message names it.
        RuntimeError: If the outputs of the two models for random inputs differ by more
            than rounding errors. Not checked after quantization-aware training.

    Examples:
        >>> import keras_trainkit as kt
        >>> old = kt.tfmot.to_tf_keras(model)  # doctest: +SKIP
        >>> pruned = tfmot.sparsity.keras.strip_pruning(old)  # doctest: +SKIP
        >>> model = kt.tfmot.from_tf_keras(pruned)  # doctest: +SKIP
    """
    tf_keras = _import_tf_keras()
    if not isinstance(model, tf_keras.Model) or not hasattr(model, "_nodes_by_depth"):
        reject(
            "model", type(model), "a Functional or a built Sequential tf_keras model"
        )
    layers: dict[Any, Any] = {}
    trained = [layer for layer in model.layers if _is_quantization(layer)]
    inputs = [
        keras.Input(
            batch_shape=tuple(x.shape), dtype=x.dtype.name, name=x.node.layer.name
        )
        for x in model.inputs
    ]
    outputs = _run_tf_keras(model, inputs, layers, tf_keras)
    for layer, new in layers.items():
        _copy_weights(layer, new)
    converted = _assemble(model, inputs, outputs, layers.values(), keras)
    if not trained:
        _check_equal(converted, model)
    return converted


def _import_tf_keras() -> Any:
    try:
        import tf_keras
    except ImportError:
        raise ImportError(
            'tf_keras is not installed: pip install "keras-trainkit[tfmot]"'
        ) from None
    return tf_keras


def _run_tf_keras(model, inputs: list, layers: dict, tf_keras) -> list:
    """Pass Keras 3 tensors through the layers of a tf_keras model, converting each."""
    tensors = {id(x): new for x, new in zip(model.inputs, inputs, strict=True)}
    by_depth = model._nodes_by_depth
    for node in (n for d in sorted(by_depth, reverse=True) for n in by_depth[d]):
        layer = node.layer
        if node.is_input:
            continue
        args, kwargs = keras.tree.map_structure(
            lambda x: tensors.get(id(x), x), (node.call_args, node.call_kwargs)
        )
        if isinstance(layer, tf_keras.Model):
            outputs = _run_tf_keras(layer, keras.tree.flatten(args), layers, tf_keras)
        elif type(layer).__name__ == "QuantizeLayer":
            (outputs,) = args
        else:
            if layer not in layers:
                layers[layer] = _from_layer(layer, tf_keras)
            outputs = _apply(layers[layer], layer.name, args, kwargs)
        for x, new in zip(
            keras.tree.flatten(node.outputs), keras.tree.flatten(outputs), strict=True
        ):
            tensors[id(x)] = new
    return [tensors[id(x)] for x in model.outputs]


def _from_layer(layer, tf_keras):
    inner = _inner(layer)
    _check_known(inner, tf_keras.layers)
    config = _own_config(inner)
    activation = config.get("activation")
    if isinstance(activation, dict) and "QuantizeAware" in activation["class_name"]:
        # Unwrap the activation that simulates int8.
        inside = activation["config"]["activation"]
        config["activation"] = "linear" if isinstance(inside, dict) else inside
    return _make(type(inner).__name__, config, keras.layers)


def _is_quantization(layer) -> bool:
    return type(layer).__name__ in ("QuantizeLayer", "QuantizeWrapperV2")


def _inner(layer):
    return layer.layer if type(layer).__name__ == "QuantizeWrapperV2" else layer


def _check_known(layer, module) -> None:
    name = type(layer).__name__
    if getattr(module, name, None) is type(layer):
        return
    expected = "made of Keras's own layers"
    if name.startswith("PruneLowMagnitude"):
        expected = "stripped by tfmot.sparsity.keras.strip_pruning"
    elif name.startswith("ClusterWeights"):
        expected = "stripped by tfmot.clustering.keras.strip_clustering"
    reject("model", f"{name} {getattr(layer, 'name', '')!r}", expected)


def _own_config(layer) -> dict:
    config = layer.get_config()
    if type(layer).__name__ == "Normalization" and layer.built:
        # The statistics from `adapt` go into the config, not into the weights.
        for name in ("mean", "variance"):
            value = np.array(getattr(layer, name))
            config[name] = value.ravel().tolist() if value.size > 1 else value.item()
    return config


def _make(name: str, config: dict, module) -> Any:
    """Create a layer of `module` by class name and config, or raise a ValueError."""
    label = f"{name} {config.get('name')!r}"
    cls = getattr(module, name, None)
    if cls is None:
        reject("model", label, f"made of layers that {module.__name__} has")
    config = dict(config)
    if name in _RENAMED:
        old, new = _RENAMED[name]
        if old not in config:
            old, new = new, old
        config[new] = config.pop(old)
    known = _parameters(cls)
    arguments = {}
    for key, value in config.items():
        # The weights are copied later, so initializers do not matter.
        if key.endswith("_initializer"):
            continue
        if key in known:
            arguments[key] = _argument(key, value, module)
        elif key in _IMMATERIAL or value in _NOTHING or (key, value) == ("groups", 1):
            continue
        else:
            reject("model", label, f"without {key}={value!r}, which has no counterpart")
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        reject("model", label, f"of layers that {module.__name__} can make ({error})")


def _parameters(cls) -> set[str]:
    names = {"name", "trainable", "dtype", "activity_regularizer"}
    for base in cls.__mro__:
        if "__init__" in vars(base) and base.__name__ not in ("Layer", "Module"):
            names |= set(inspect.signature(vars(base)["__init__"]).parameters)
    return names


def _argument(key: str, value: Any, module) -> Any:
    if key == "axis" and isinstance(value, Sequence) and len(value) == 1:
        return value[0]
    if key == "dtype":
        return value["config"]["name"] if isinstance(value, dict) else value
    if isinstance(value, dict) and {"class_name", "config"} <= set(value):
        if hasattr(module, value["class_name"]):
            return _make(value["class_name"], value["config"], module)
        return {**value, "registered_name": None}
    # tf_keras wraps lists in its own list class.
    return list(value) if isinstance(value, list) else value


def _apply(layer, name: str, args, kwargs) -> Any:
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    try:
        return layer(*args, **kwargs)
    except (TypeError, ValueError) as error:
        reject(
            "model", f"{type(layer).__name__} {name!r}", f"one that converts ({error})"
        )


def _copy_weights(source, target) -> None:
    if type(target).__name__ == "Normalization":
        return
    weights = source.weights
    if _is_quantization(source):
        # The wrapper's own weights have its name as a prefix; keep only the layer's.
        weights = [w for w in weights if not w.name.startswith(f"{source.name}/")]
    target.set_weights([np.array(keras.ops.convert_to_numpy(w)) for w in weights])


def _assemble(model, inputs: list, outputs: list, layers: Iterable, library) -> Any:
    if type(model).__name__ == "Sequential":
        return library.Sequential([inputs[0], *layers], name=model.name)
    one_in, one_out = len(inputs) == 1, len(outputs) == 1
    return library.Model(
        inputs[0] if one_in else inputs,
        outputs[0] if one_out else outputs,
        name=model.name,
    )


def _check_equal(model: keras.Model, converted: Any) -> None:
    """Raise unless a Keras and a tf_keras model agree on random inputs."""
    check_same(
        model, converted.predict_on_batch, random_inputs(model), "The converted model"
    )
