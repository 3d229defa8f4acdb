"""Quantization-aware training: train models with int8 rounding."""

from collections.abc import Callable
from typing import Any

import keras

from keras_trainkit._checks import check_choice, check_integer, reject
from keras_trainkit._model.copy import live_copy
from keras_trainkit._model.graph import check_graph, rebuild
from keras_trainkit._model.quantized import quantized_layers
from keras_trainkit._model.select import check_selectors
from keras_trainkit.quantization._layer import Quantized
from keras_trainkit.quantization._opened import opened
from keras_trainkit.quantization._operation import Operation, tensors_in
from keras_trainkit.quantization._plan import Plan, kept_in, make_plan


def quantize_aware(
    model: keras.Model,
    *,
    weight_bits: int = 8,
    activation_bits: int = 8,
    include: Any = None,
    exclude: Any = None,
    freeze_batch_norm: int | None = None,
) -> keras.Model:
    """Copy a model so that it trains with the rounding of int8 arithmetic.

    Kernels are rounded to a symmetric grid with a scale for each unit. Activations are
    rounded to a grid between moving averages of their minima and maxima, at the places
    where LiteRT rounds them too. Start from trained weights and train the copy for a
    few epochs with a small learning rate. Then write it with
    `kt.export.to_litert(copy, path, quantization="int8")`, which needs no
    representative data.

    A BatchNormalization after a linear layer is not folded. Since a kernel has a scale
    for each unit, rounding the kernel and then scaling its units, as done here, is the
    same as rounding the folded kernel, as LiteRT does.

    Composite layers such as MultiHeadAttention become models of their parts, if Keras
    can trace them and the parts compute the same in training.

    Layers that cannot be quantized stay float; `kt.quantization.kept_float` lists them.

    Args:
        model: A built Sequential or Functional model, with nested models and shared
            layers if need be. It is not changed.
        weight_bits: 8 or 4.
        activation_bits: 8 or 16.
        include: What to quantize: a layer, a type of layers, a regular expression that
            matches the whole of a layer's name or path, a function of a layer, or a
            list of these. By default everything.
        exclude: What not to quantize, in the same ways.
        freeze_batch_norm: The number of training steps after which each
            BatchNormalization uses its moving statistics, as it will in the file, and
            keeps them. By default never.

    Returns:
        The copy, not compiled, with the weights of the model.

    Raises:
        ValueError: If an argument is wrong, or nothing in the model can be quantized.

    Examples:
        >>> import numpy as np, keras, keras_trainkit as kt
        >>> model = keras.Sequential([
        ...     keras.Input((4,)),
        ...     keras.layers.Dense(8, activation="relu"),
        ...     keras.layers.Dense(3),
        ... ])
        >>> quantized = kt.quantization.quantize_aware(model)
        >>> quantized.compile("sgd", "mse")
        >>> x, y = np.ones((32, 4), "float32"), np.ones((32, 3), "float32")
        >>> _ = quantized.fit(x, y, verbose=0)
        >>> kt.quantization.kept_float(quantized)
        {}
        >>> [layer.name for layer in kt.quantization.strip(quantized).layers] == [
        ...     layer.name for layer in model.layers
        ... ]
        True

    Reference:
        B. Jacob et al., Quantization and Training of Neural Networks (2017),
        arXiv:1712.05877, section 3; R. Krishnamoorthi, Quantizing Deep Convolutional
        Networks (2018), arXiv:1806.08342, section 3.2.2 for the freezing.
    """
    check_graph(model)
    check_choice("weight_bits", weight_bits, (4, 8))
    check_choice("activation_bits", activation_bits, (8, 16))
    if freeze_batch_norm is not None:
        check_integer("freeze_batch_norm", freeze_batch_norm, minimum=0)
    if quantized_layers(model):
        reject("model", model.name, "a model that is not quantized yet")
    model, wants, closed = opened(
        model,
        check_selectors("include", include),
        check_selectors("exclude", exclude),
    )
    plan = make_plan(model, wants)
    if not plan.wrapped:
        kept = {**plan.kept, **closed}
        reasons = "; ".join(f"{path}: {reason}" for path, reason in kept.items())
        reject("model", model.name, f"one with a layer to quantize ({reasons})")

    def replacement(layer):
        if layer not in plan.wrapped:
            return None
        if not isinstance(layer, keras.layers.Layer):
            return _instead_of(layer, plan, quantized)
        return quantized(live_copy(layer, {}), plan.wrapped[layer])

    def quantized(layer, options):
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        return Quantized(
            layer,
            weight_bits,
            activation_bits,
            freeze_after=freeze_batch_norm if is_norm else None,
            **options,
        )

    return rebuild(model, replacement)[0]


def strip(model: keras.Model) -> keras.Model:
    """Return the plain float model inside one that `quantize_aware` made.

    Args:
        model: The model.

    Returns:
        A copy, not compiled, with the layers of the model that `quantize_aware` was
        given, BatchNormalizations included, and the weights as trained: not rounded.

    Raises:
        ValueError: If the model has no quantized layers.

    Examples:
        >>> import keras, keras_trainkit as kt
        >>> model = keras.Sequential([
        ...     keras.Input((5,)), keras.layers.Dense(4, activation="relu")
        ... ])
        >>> plain = kt.quantization.strip(kt.quantization.quantize_aware(model))
        >>> [type(layer).__name__ for layer in plain.layers]
        ['Dense']
    """
    _check_quantized(model)

    def replacement(layer):
        if not isinstance(layer, Quantized):
            return None
        plain = live_copy(layer.layer, {})
        if isinstance(plain, Operation):
            # Drop the mask that Keras passes to each layer.
            return lambda inputs, **_: plain.apply(inputs)
        return plain

    return rebuild(model, replacement)[0]


def kept_float(model: keras.Model) -> dict[str, str]:
    """List what a quantized model computes in float, with the reasons.

    Args:
        model: A model that `quantize_aware` made; or a plain one, for what would stay
            float.

    Returns:
        The reason for each layer, by its path. A float activation at the end of a
        quantized layer has a path that ends in `/activation`.

    Raises:
        ValueError: If the model is neither Functional nor a built Sequential one.

    Examples:
        >>> import keras, keras_trainkit as kt
        >>> model = keras.Sequential([
        ...     keras.Input((5,)),
        ...     keras.layers.Dense(4, activation="relu", name="dense"),
        ...     keras.layers.Lambda(lambda x: x**2, name="square"),
        ... ])
        >>> sorted(kt.quantization.kept_float(model))
        ['square']
    """
    check_graph(model)
    if quantized_layers(model):
        return kept_in(model)
    model, wants, closed = opened(model)
    return make_plan(model, wants).kept | closed


def _instead_of(operation: Any, plan: Plan, quantized: Callable) -> Callable:
    """Return the quantized replacement for a function of `keras.ops`."""
    args, kwargs = plan.arguments[operation]
    function = Operation.of(live_copy(operation, {}), args, kwargs)
    layer = quantized(function, plan.wrapped[operation])

    def call(*args, **kwargs):
        tensors = tensors_in((args, kwargs))
        return layer(tensors if len(tensors) > 1 else tensors[0])

    return call


def _check_quantized(model: keras.Model) -> None:
    check_graph(model)
    if not quantized_layers(model):
        reject("model", model.name, "a model that `quantize_aware` made")
