"""Prune a model in one step, without training."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit._checks import check_built
from keras_trainkit._model.compare import check_copy
from keras_trainkit._model.graph import copy_model
from keras_trainkit._model.select import Selector
from keras_trainkit.pruning._targets import find_targets, make_rule


def prune_once(
    model: keras.Model,
    sparsity: float | Mapping[Selector, float],
    *,
    scope: str = "layer",
    pattern: str | None = None,
    block_pooling: str = "avg",
    include: Any = None,
    exclude: Any = None,
) -> keras.Model:
    """Copy a model with the smallest weights of each kernel set to zero.

    Args:
        model: A built Sequential or Functional model; it is not changed.
        sparsity: Fraction of the entries of each kernel to set to zero, in `[0, 1)`, or
            a dict from selectors to fractions, as in `MagnitudePruning`. One entry
            is always kept. Of equal magnitudes, the first entries are pruned first.
        scope: `"layer"`, or `"global"` to rank the entries of all kernels together.
        pattern: None, `"N:M"` or a block such as `"4x1"`, as in `MagnitudePruning`.
        block_pooling: What ranks a block, `"avg"` or `"max"`, as there.
        include: What to prune, as in `MagnitudePruning`.
        exclude: What not to prune.

    Returns:
        The copy, not compiled.

    Raises:
        ValueError: If an argument is wrong.
        RuntimeError: If the copy, before anything is set to zero, differs from the
            model on a small random batch. Models that accept no random inputs are not
            compared.

    Examples:
        >>> import keras, keras_trainkit as kt
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> pruned = kt.pruning.prune_once(model, 0.75)
        >>> kt.pruning.sparsity_report(pruned).layers[0].nonzeros
        8

    Reference:
        S. Han et al., Learning both Weights and Connections for Efficient Neural
        Networks (2015), arXiv:1506.02626.
    """
    rule = make_rule(sparsity, scope, pattern, include, exclude, block_pooling)
    check_built(model)
    pruned = copy_model(model)
    check_copy(model, pruned, "The copy")
    # Found in the model itself, whose layers the selectors may be.
    targets = find_targets(model, rule)
    copies = dict(zip(map(id, model.weights), pruned.weights, strict=True))
    variables = [copies[id(kernel.variable)] for kernel in targets.kernels]
    values = [ops.convert_to_tensor(variable) for variable in variables]
    kept = targets.masks(values, targets.finals)
    for variable, mask in zip(variables, kept, strict=True):
        array = ops.convert_to_numpy(variable)
        variable.assign(np.where(ops.convert_to_numpy(mask), array, 0))
    return pruned
