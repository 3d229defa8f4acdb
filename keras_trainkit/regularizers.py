"""Regularizers that Keras lacks, and a function to add them to a built model."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from keras_trainkit._checks import (
    check_built,
    check_finite,
    check_positive,
    reject,
)
from keras_trainkit._keras import patched, set_projection_option, sublayers
from keras_trainkit._model.graph import is_graph
from keras_trainkit._model.kernels import (
    Kernel,
    inputs_of,
    kernels,
    without_kernels,
)
from keras_trainkit._model.select import chains, path_of

__all__ = ["Lp", "Orthogonality", "apply"]


def __dir__() -> list[str]:
    return __all__


_register = keras.saving.register_keras_serializable(package="keras_trainkit")


@_register
class Lp(keras.regularizers.Regularizer):
    """The penalty `strength * sum(|w|^p)`.

    `Lp(1, s)` is `keras.regularizers.L1(s)` and `Lp(2, s)` is `L2(s)`. Below 2 the
    penalty shrinks the weights and drives many of them close to 0, more so the closer
    `p` is to 1. The gradient is finite everywhere and 0 at `w = 0`.

    Args:
        p: The exponent, >= 1.
        strength: Factor of the penalty, >= 0.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> float(kt.regularizers.Lp(3, 0.5)(np.array([1.0, -2.0], "float32")))
        4.5

    Reference:
        I. Frank and J. Friedman, A Statistical View of Some Chemometrics Regression
        Tools (1993), section 5 (bridge regression).
    """

    def __init__(self, p: float, strength: float):
        self.p = check_finite("p", p, "a finite number >= 1")
        if self.p < 1:
            reject("p", p, "a finite number >= 1")
        self.strength = check_positive("strength", strength, allow_zero=True)

    def __call__(self, x):
        x = ops.convert_to_tensor(x)
        # |x|, with gradient 0 at 0 on every backend.
        size = x * ops.stop_gradient(ops.sign(x))
        powers = size if self.p == 1 else ops.power(size, self.p)
        return self.strength * ops.sum(powers)

    def get_config(self):
        return {"p": self.p, "strength": self.strength}


@_register
class Orthogonality(keras.regularizers.Regularizer):
    """The penalty `strength * ||W^T W - I||^2`, which makes units orthonormal.

    Each column of `W` has the incoming weights of one unit. This works for the kernel
    of any layer. If there are more units than incoming weights, the penalty is
    `||W W^T - I||^2`, because then only the rows can be orthogonal. By contrast,
    `keras.regularizers.OrthogonalRegularizer` accepts only matrices and does not
    constrain the norms.

    Args:
        strength: Factor of the penalty, >= 0.

    Raises:
        ValueError: If `strength` is negative or not finite.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> penalty = kt.regularizers.Orthogonality(0.5)
        >>> float(penalty(np.eye(3, dtype="float32")))
        0.0
        >>> float(penalty(2 * np.eye(3, dtype="float32")))  # 0.5 * 3 * (4 - 1)^2
        13.5

    Reference:
        N. Bansal et al., Can We Gain More from Orthogonality Regularizations in
        Training Deep CNNs? (2018), arXiv:1810.09102, equation 1.
    """

    def __init__(self, strength: float = 1e-4):
        self.strength = check_positive("strength", strength, allow_zero=True)

    def __call__(self, x):
        inputs = inputs_of(x)
        x = ops.convert_to_tensor(x)
        rank = len(x.shape)
        units = [axis for axis in range(rank) if axis not in inputs]
        fan_in = 1
        for axis in inputs:
            fan_in *= x.shape[axis]
        matrix = ops.reshape(ops.transpose(x, [*inputs, *units]), (fan_in, -1))
        if fan_in < matrix.shape[1]:
            matrix = ops.transpose(matrix)
        gram = ops.matmul(ops.transpose(matrix), matrix)
        excess = gram - ops.eye(gram.shape[0], dtype=gram.dtype)
        return self.strength * ops.sum(ops.square(excess))

    def get_config(self):
        return {"strength": self.strength}


def apply(
    model: keras.Model,
    *,
    kernel: Any = None,
    constraint: Any = None,
    where: str | Callable[[keras.layers.Layer], bool] | None = None,
) -> list[str]:
    """Add a regularizer or a constraint to the kernels of a model that is built.

    This has the same effect as creating the layers with `kernel_regularizer` and
    `kernel_constraint`. It covers the kernels of Dense, convolutions, Embedding and
    attention projections, and the input and recurrent kernels of RNNs. Biases and
    normalization layers are not changed.

    A saved model keeps the regularizer and the constraint. Cases in which the file
    would lose them raise an error: a composite layer whose config does not include its
    inner layers, or a `where` that selects only some of an attention layer's
    projections.

    Args:
        model: A built model; it is changed in place. The optimizer keeps its state.
        kernel: A regularizer, its name (such as `"l2"`), or None for no change.
        constraint: A constraint, its name, or None for no change.
        where: A regular expression to search for in the path of each kernel (such as
            `"block1/conv/kernel"`), a function of the layer that returns whether to
            select it, or None for all kernels.

    Returns:
        The paths of the kernels that were changed.

    Raises:
        ValueError: If the model is not built, if neither `kernel` nor `constraint` is
            given, if `where` is not a valid regular expression, if it selects no kernel
            or one that is quantized or has LoRA, or if the model's file would lose the
            change. The model is then unchanged.

    Examples:
        >>> import keras, keras_trainkit as kt
        >>> model = keras.Sequential([
        ...     keras.Input((4,)),
        ...     keras.layers.Dense(8, name="hidden"),
        ...     keras.layers.Dense(2, name="out"),
        ... ], name="mlp")
        >>> kt.regularizers.apply(model, kernel="l2", where="hidden")
        ['mlp/hidden/kernel']
        >>> len(model.losses)
        1
    """
    check_built(model)
    if kernel is None and constraint is None:
        raise ValueError(
            "`kernel` or `constraint` must be given. "
            "Received: kernel=None, constraint=None"
        )
    regularizer = _known("kernel", kernel, keras.regularizers.get)
    limit = _known("constraint", constraint, keras.constraints.get)
    chosen = [found for found in kernels(model) if _selected(found, where)]
    _check_trainable(model, where)
    if not chosen:
        reject("where", where, "such that it selects at least one kernel")
    for role, value in (("regularizer", regularizer), ("constraint", limit)):
        if value is not None:
            with _undone_on_error(model, chosen, role):
                _set(model, chosen, role, value)
                _check_file(model, chosen, role, value)
    # The compiled functions do not include the change; build them again.
    model.train_function = model.test_function = None
    return [found.variable.path for found in chosen]


def _known(name: str, value: Any, get: Callable[[Any], Any]) -> Any:
    try:
        return get(value)
    except (TypeError, ValueError):
        reject(name, value, "one of Keras's, by name, or a function")


def _check_trainable(model, where) -> None:
    """Raise if `where` selects a kernel that cannot be trained."""
    for layer in sublayers(model):
        reason = without_kernels(layer)
        for weight in layer.weights if reason else ():
            is_kernel = weight.name in ("kernel", "embeddings")
            if is_kernel and _selected(Kernel(layer, weight, ()), where):
                expected = "such that it selects no kernel without training"
                reject("where", where, f"{expected}, and {layer.name!r} {reason}")


def _set(model, chosen: list[Kernel], role: str, value) -> None:
    for kernel in chosen:
        setattr(kernel.variable, role, value)
        setattr(kernel.layer, f"{kernel.prefix}_{role}", value)
    # An attention layer's config has one option for all of its projections.
    changed = {id(kernel.variable) for kernel in chosen}
    for layer in sublayers(model):
        if all(id(kernel.variable) in changed for kernel in kernels(layer)):
            set_projection_option(layer, f"kernel_{role}", value)


@contextlib.contextmanager
def _undone_on_error(model, chosen: list[Kernel], role: str) -> Iterator[None]:
    """Restore the previous options of kernels and layers if the body raises."""
    variables = [(one.variable, getattr(one.variable, role)) for one in chosen]
    names = [(one.layer, f"{one.prefix}_{role}") for one in chosen]
    own = [(layer, name, getattr(layer, name, None)) for layer, name in names]
    option = f"kernel_{role}"
    options = [(part, getattr(part, f"_{option}", None)) for part in sublayers(model)]
    try:
        yield
    except BaseException:
        for variable, value in variables:
            setattr(variable, role, value)
        for layer, name, value in own:
            setattr(layer, name, value)
        for layer, value in options:
            set_projection_option(layer, option, value)
        raise


def _check_file(model, chosen: list[Kernel], role: str, value) -> None:
    """Raise if a saved model would not include what was applied.

    For a layer inside another layer, the file has only the outer layer's config.
    """
    for chain in [(model,), *((model, *rest) for rest in chains(model))]:
        outer = next((x for x in chain if not _lists_layers(x)), chain[-1])
        for kernel in chosen:
            if kernel.layer is not chain[-1] or outer is kernel.layer:
                continue
            if not _is_in_config(kernel, chain, outer, role):
                path = path_of(chain[1:])
                raise ValueError(
                    f"`{role}` must be one that the model's file keeps, but the config "
                    f"of {type(outer).__name__} {outer.name!r} does not have that of "
                    f"its {path!r}: give that layer its `kernel_{role}` where it is "
                    f"made, or leave it out by `where`. Received: {role}={value!r}"
                )


def _lists_layers(layer) -> bool:
    """Whether a model's config includes the configs of its layers.

    A Functional subclass, such as KerasHub's models, may define its own config instead.
    """
    return is_graph(layer) and "layers" in layer.get_config()


def _is_in_config(kernel: Kernel, chain, outer, role: str) -> bool:
    """Whether an outer layer's config depends on the option of a kernel inside it."""
    option = f"_kernel_{role}"
    changes = [(kernel.layer, f"{kernel.prefix}_{role}", None)]
    # An attention layer's config has one option shared by its projections.
    changes += [(layer, option, None) for layer in chain if option in vars(layer)]
    before = _config(outer)
    with patched(changes):
        return _config(outer) != before


def _config(layer) -> str:
    try:
        return json.dumps(layer.get_config(), default=str)
    except Exception:
        # A class without `get_config` is recreated by its code only.
        return ""


def _selected(kernel: Kernel, where) -> bool:
    if where is None:
        return True
    # Layers and layer classes are callable too, but are not selection functions.
    if callable(where) and not isinstance(where, keras.layers.Layer | type):
        return bool(where(kernel.layer))
    try:
        return re.search(where, kernel.variable.path) is not None
    except (re.error, TypeError):
        reject("where", where, "a regular expression or a function of a layer")
