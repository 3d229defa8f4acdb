"""Weight initialization for whole models, from data or from their structure."""

import keras
import numpy as np
from keras import layers

from keras_trainkit._checks import (
    check_built,
    check_integer,
    check_positive,
    reject,
)
from keras_trainkit._model.graph import Call, Edge, Graph, check_graph, read
from keras_trainkit._model.kernels import Kernel, kernels
from keras_trainkit._model.select import paths
from keras_trainkit._training.recording import inputs, leaves, outputs
from keras_trainkit._training.state import weights_back_on_error
from keras_trainkit.layers import WeightNormalization

__all__ = ["data_dependent", "fixup", "lsuv"]


def __dir__() -> list[str]:
    return __all__


_LINEAR = (
    layers.Dense,
    layers.EinsumDense,
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
)


_NORMS = (
    layers.BatchNormalization,
    layers.LayerNormalization,
    layers.GroupNormalization,
    layers.RMSNormalization,
)


def lsuv(
    model: keras.Model,
    batch,
    *,
    tolerance: float = 0.1,
    max_iterations: int = 10,
    seed: int | None = None,
) -> dict[str, float]:
    """Initialize layer by layer so that each layer's output has unit variance.

    This is layer-sequential unit-variance (LSUV) initialization. Each kernel is first
    set to an orthonormal one. Then, from the first layer to the last, it is divided by
    the standard deviation of the layer's outputs (before the activation) on `batch`,
    until their variance is within `tolerance` of 1. This covers Dense, EinsumDense and
    convolutions; other layers are unchanged.

    Args:
        model: A built model, which may contain nested models; its kernels are changed
            in place.
        batch: Inputs for the model, a few hundred rows of the training data.
        tolerance: Largest allowed difference between a variance and 1.
        max_iterations: Maximum number of passes per layer.
        seed: Integer seed for the orthonormal kernels.

    Returns:
        The resulting standard deviation of each layer's outputs, by the layer's path.

    Raises:
        ValueError: If an argument is invalid, the model has no such layer, or a layer's
            outputs are all the same or not finite. The model is then unchanged.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> model = kt.models.build_mlp((20,), 3)
        >>> x = 5 * np.random.default_rng(0).normal(size=(256, 20)).astype("float32")
        >>> spread = kt.initializers.lsuv(model, x, tolerance=0.01)
        >>> all(0.99 < std < 1.01 for std in spread.values())
        True

    Reference:
        D. Mishkin and J. Matas, All You Need Is a Good Init (2016), arXiv:1511.06422,
        algorithm 1.
    """
    check_positive("tolerance", tolerance)
    check_integer("max_iterations", max_iterations, minimum=1)
    if seed is not None:
        check_integer("seed", seed, minimum=0)
    check_built(model)
    chosen = [layer for layer in _used(model, batch) if isinstance(layer, _LINEAR)]
    if not chosen:
        reject("model", model.name, "a model with a Dense layer or a convolution")
    seeds = np.random.SeedSequence(seed).generate_state(len(chosen)) >> 1
    with weights_back_on_error(model):
        for layer, layer_seed in zip(chosen, seeds, strict=True):
            for kernel in kernels(layer):
                kernel.variable.assign(_orthonormal(kernel, int(layer_seed)))
        path = paths(model)
        return {
            path[layer]: _to_unit_variance(
                model, batch, layer, tolerance, max_iterations
            )
            for layer in chosen
        }


def data_dependent(model: keras.Model, batch) -> list[str]:
    """Initialize each `kt.layers.WeightNormalization` from data, in order.

    Afterwards each unit's output, before the activation, has mean 0 and standard
    deviation 1 on `batch`; without a bias, only the deviation is set. Each layer sees
    the outputs of the layers adapted before it.

    Args:
        model: A built model, which may contain nested models; it is changed in place.
        batch: Inputs for the model, a few hundred rows of the training data.

    Returns:
        The paths of the layers that were adapted.

    Raises:
        ValueError: If the model has no such layer, or if `adapt` of a layer raises it.
            The model is then unchanged.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> model = keras.Sequential([
        ...     keras.Input((4,)),
        ...     kt.layers.WeightNormalization(keras.layers.Dense(8), name="hidden"),
        ... ])
        >>> kt.initializers.data_dependent(model, np.random.normal(size=(64, 4)))
        ['hidden']

    Reference:
        T. Salimans and D. Kingma, Weight Normalization (2016), arXiv:1602.07868,
        section 3.
    """
    check_built(model)
    used = _used(model, batch)
    chosen = [layer for layer in used if isinstance(layer, WeightNormalization)]
    if not chosen:
        reject("model", model.name, "a model with a WeightNormalization layer")
    with weights_back_on_error(model):
        for layer in chosen:
            layer.adapt(inputs(model, batch, layer))
    path = paths(model)
    return [path[layer] for layer in chosen]


def fixup(model: keras.Model) -> dict[str, float]:
    """Scale the weights of a residual network so that it trains without normalization.

    In a network of `L` residual branches with `m` weight layers each, the kernels
    in a branch are multiplied by `L ** (-1 / (2 m - 2))`. The kernel of the last layer
    in each branch and that of the output layer are set to zero, and so are all biases
    of these layers. The size of an update to the network's output then does not depend
    on its depth. The kernels must be freshly initialized, with `he_normal` or similar.

    Of the two inputs of an `Add` (or `+`), the residual branch is the one with more
    weight layers that the other input does not share. The paper also adds a scalar bias
    before each layer and a scalar multiplier to each branch. This function cannot add
    layers to the model, so it leaves these out. The layers' own biases
    (`use_bias=True`) can replace the scalar ones. Without the multiplier, the last
    kernel of a branch learns the scale.

    Args:
        model: A built Sequential or Functional model, which may contain nested models;
            it is changed in place.

    Returns:
        The factor of each kernel that was changed, by the path of its layer.

    Raises:
        ValueError: If the model has no residual branch, or if it has normalization
            layers, which make this unnecessary. The model is then unchanged.

    Examples:
        >>> import keras, keras_trainkit as kt
        >>> x = inputs = keras.Input((8,))
        >>> for _ in range(16):
        ...     y = keras.layers.Dense(8, "relu", kernel_initializer="he_normal")(x)
        ...     y = keras.layers.Dense(8, kernel_initializer="he_normal")(y)
        ...     x = keras.layers.Add()([x, y])
        >>> model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x))
        >>> factors = kt.initializers.fixup(model)
        >>> sorted(set(factors.values())), factors["head"]
        ([0.0, 0.25], 0.0)

    Reference:
        H. Zhang, Y. Dauphin and T. Ma, Fixup Initialization: Residual Learning Without
        Normalization (2019), arXiv:1901.09321, section 3.
    """
    check_graph(model)
    graph = read(model)
    norms = [call.path for call in graph.calls if isinstance(call.layer, _NORMS)]
    if norms:
        reject("model", norms[0], "a model without normalization layers")
    branches = [branch for call in graph.calls if (branch := _branch(call))]
    if not branches:
        reject("model", model.name, "a model with residual branches that an Add joins")
    factors: dict[Call, float] = {}
    for branch in branches:
        scale = len(branches) ** (-1 / (2 * len(branch) - 2)) if branch[1:] else 0.0
        factors |= {call: scale for call in branch[:-1]} | {branch[-1]: 0.0}
    factors |= {call: 0.0 for call in _last_layers(graph)}
    for call, factor in factors.items():
        for kernel in kernels(call.layer):
            value = keras.ops.convert_to_numpy(kernel.variable)
            kernel.variable.assign(value * factor)
        if getattr(call.layer, "bias", None) is not None:
            call.layer.bias.assign(np.zeros(call.layer.bias.shape))
    return {call.path: factor for call, factor in factors.items()}


def _branch(call: Call) -> list[Call]:
    """Return the weight layers of the residual branch that ends in an addition."""
    adds = isinstance(call.layer, layers.Add) or type(call.layer).__name__ == "Add"
    if not adds or len(call.inputs) != 2:
        return []
    behind = [_weighted_behind(edge) for edge in call.inputs]
    alone = [[one for one in behind[k] if one not in behind[1 - k]] for k in range(2)]
    shorter, longer = sorted(alone, key=len)
    return longer if len(longer) > len(shorter) else []


def _weighted_behind(edge: Edge) -> list[Call]:
    """Return all calls of weight layers that lead to a tensor, earliest first."""
    found: dict[Call, None] = {}
    stack, seen = [edge], set()
    while stack:
        call = stack.pop().producer
        if call is None or call in seen:
            continue
        seen.add(call)
        if isinstance(call.layer, _LINEAR):
            found[call] = None
        stack += call.inputs
    return list(found)[::-1]


def _last_layers(graph: Graph) -> list[Call]:
    """Return the last weight layer before each output, on an unbranched path."""
    found = []
    for edge in graph.outputs:
        while edge.producer is not None and len(edge.producer.inputs) == 1:
            if isinstance(edge.producer.layer, _LINEAR):
                found.append(edge.producer)
                break
            (edge,) = edge.producer.inputs
    return found


def _used(model, batch) -> list[keras.layers.Layer]:
    """Return the model's layers in the order in which a batch passes through them."""
    found = outputs(model, batch, leaves(model), name="batch")
    return list(dict.fromkeys(layer for layer, _ in found))


def _orthonormal(kernel: Kernel, seed: int):
    """Return a value for a kernel, with orthonormal incoming weights of the units."""
    shape, inputs = kernel.variable.shape, kernel.inputs
    units = [axis for axis in range(len(shape)) if axis not in inputs]
    matrix = keras.initializers.Orthogonal(seed=seed)((kernel.fan_in, kernel.units))
    axes = [*inputs, *units]
    value = keras.ops.reshape(matrix, [shape[axis] for axis in axes])
    return keras.ops.transpose(value, np.argsort(axes).tolist())


def _to_unit_variance(model, batch, layer, tolerance, max_iterations) -> float:
    (kernel,) = kernels(layer)
    for _ in range(max_iterations):
        std = _spread(model, batch, layer)
        if abs(std**2 - 1) <= tolerance:
            return std
        kernel.variable.assign(keras.ops.convert_to_numpy(kernel.variable) / std)
    return _spread(model, batch, layer)


def _spread(model, batch, layer) -> float:
    found = outputs(model, batch, [layer], before_activation=True)
    std = float(np.concatenate([array.ravel() for _, array in found]).std())
    if not np.isfinite(std) or std == 0:
        raise ValueError(
            "`batch` must give each layer outputs that are finite and differ. "
            f"Received: batch with a standard deviation of {std:g} in {layer.name!r}"
        )
    return std
