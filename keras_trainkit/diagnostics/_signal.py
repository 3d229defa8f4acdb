"""Measure activations and gradients layer by layer."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit._checks import check_built, refusing, reject
from keras_trainkit._model.select import paths
from keras_trainkit._table import Report, Table
from keras_trainkit._training.as_fit import batch_as_fit, step_as_fit
from keras_trainkit._training.batches import batches_of, is_arrays
from keras_trainkit._training.optimizer import install
from keras_trainkit._training.recording import gradients_of, leaves, outputs
from keras_trainkit._training.scheduled import as_of_now
from keras_trainkit._training.state import as_it_was

# The bounds of the bounded activations.
_BOUNDS = {
    "sigmoid": (0.0, 1.0),
    "hard_sigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "hard_tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
}
# Within this fraction of the whole range from a bound, an activation is saturated: a
# sigmoid's slope is then below a fifth of its largest.
_SATURATED = 0.05
# A gradient this many times smaller or larger at one end than at the other is reported.
_UNBALANCED = 1e3
_MANY_DEAD = 0.5


@dataclass(frozen=True)
class LayerSignal:
    """The signal in one layer.

    Attributes:
        name: The layer's path.
        kind: The layer's class.
        mean: Mean of the outputs.
        std: Standard deviation of the outputs.
        dead: Fraction of the units (channels) that are 0 for every row.
        saturated: Fraction of the outputs within 5% of a bound of the activation; None
            if the activation has no bounds.
        gradient_norm: Euclidean norm of the gradient of the loss with respect to the
            layer's weights; None without targets or without trainable weights.
        update_ratio: Norm of the change of the layer's weights in one step of the
            optimizer over the norm of the weights; None as for `gradient_norm`. About
            0.001 is usual.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> model = kt.models.build_mlp((4,), 2, hidden_units=(8,))
        >>> first = kt.diagnostics.signal_report(model, x).layers[0]
        >>> first.dead
        0.0
    """

    name: str
    kind: str
    mean: float
    std: float
    dead: float
    saturated: float | None = None
    gradient_norm: float | None = None
    update_ratio: float | None = None


@dataclass(frozen=True, repr=False)
class SignalReport(Report):
    """The signal in each layer of a model, in forward order.

    Attributes:
        layers: A `LayerSignal` for each layer.
        problems: One sentence per problem; empty if there are none.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> model = kt.models.build_mlp((4,), 2, hidden_units=(8,))
        >>> report = kt.diagnostics.signal_report(model, x)
        >>> len(report.layers) > 0
        True
    """

    layers: tuple[LayerSignal, ...]
    problems: tuple[str, ...] = ()

    def _table(self) -> Table:
        head = ["layer", "mean", "std", "dead", "saturated", "gradient", "update"]
        return Table(head, [_cells(layer) for layer in self.layers])

    def _notes(self) -> list[str]:
        return [f"! {problem}" for problem in self.problems]


def signal_report(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    training: bool = True,
    gradients: bool | None = None,
) -> SignalReport:
    """Measure activations, gradients and updates in each layer.

    Shows signals that vanish, explode or die. The model is left unchanged.

    Args:
        model: A built Sequential or Functional model, including nested ones; of a
            subclassed one, the layers that are its attributes.
        x: A batch of inputs as `fit` accepts them, a few hundred rows; or a dataset, of
            which the first batch is used.
        y: Its targets, for gradients and updates; the model must be compiled.
        training: Whether to run the layers in training mode, with dropout and with the
            batch's own statistics in BatchNorm.
        gradients: Whether to measure gradients and updates; by default if there are
            targets. Pass True for a model that trains without targets, such as a VAE.

    Returns:
        A `SignalReport`.

    Raises:
        ValueError: If the model is not built, or if gradients are requested and it is
            not compiled.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> model = kt.models.build_mlp((20,), 3)
        >>> report = kt.diagnostics.signal_report(model, np.ones((8, 20), "float32"))
        >>> [layer.kind for layer in report.layers]
        ['Dense', 'Activation', 'Dense', 'Activation', 'Dense']

    Reference:
        X. Glorot and Y. Bengio, Understanding the Difficulty of Training Deep
        Feedforward Neural Networks (2010), sections 3 and 4.
    """
    check_built(model)
    batch = _first_batch(x, y)
    backward = batch[1] is not None if gradients is None else gradients
    if backward and not model.compiled:
        reject("model", model.name, "compiled where `y` is given")
    with as_it_was(model):
        batch = batch_as_fit(model, *batch)
        arrays = outputs(model, batch[0], leaves(model), training=training)
    if gradients is None:
        backward = batch[1] is not None
    with refusing("y", batch[1], "targets of `x` that the model's loss takes"):
        norms, updates = _backward(model, batch) if backward else ({}, {})
    widths = Counter(layer for layer, _ in arrays)
    path = paths(model)
    signals = tuple(
        LayerSignal(
            name=path[layer] + (f" ({array.shape[1]} units)" if several else ""),
            kind=type(layer).__name__,
            mean=float(array.mean()),
            std=float(array.std()),
            dead=float((array == 0).all(0).mean()),
            saturated=_saturated(layer, array),
            # Shown once for each layer, in its first line.
            gradient_norm=norms.pop(layer, None),
            update_ratio=updates.pop(layer, None),
        )
        for layer, array in arrays
        for several in [widths[layer] > 1]
    )
    return SignalReport(signals, tuple(_problems(signals)))


def _first_batch(x: Any, y: Any) -> tuple:
    """Return `(x, y, sample_weight)` of the batch to measure."""
    if is_arrays(x):
        return x, y, None
    batches, _ = batches_of(x)
    if y is not None:
        reject("y", type(y), "None where x yields batches")
    for batch in batches:
        return (*batch, None, None)[:3]
    return reject("x", x, "an iterable with at least one batch")


def _cells(layer: LayerSignal) -> list[str]:
    def number(form: str, value: float | None) -> str:
        return "" if value is None else form.format(value)

    return [
        layer.name,
        f"{layer.mean:.3g}",
        f"{layer.std:.3g}",
        f"{layer.dead:.1%}",
        number("{:.1%}", layer.saturated),
        number("{:.2e}", layer.gradient_norm),
        number("{:.2e}", layer.update_ratio),
    ]


def _backward(model, batch: tuple):
    """Return the gradient norms, and the update norms over the weights', by layer."""
    found = gradients_of(model, *batch)
    # A frozen layer reports no trainable weights, even if LoRA trains inside it.
    owned = {
        layer: [v for v in layer.variables if id(v) in found] for layer in leaves(model)
    }
    layers = [layer for layer, own in owned.items() if own]
    variables = [owned[layer] for layer in layers]
    gradients = [_norm([found[id(v)] for v in own]) for own in variables]
    with as_it_was(model):
        # A copy, because an optimizer stays built after its first step.
        install(model, as_of_now(model), rewrap=True)
        before = [_arrays(own) for own in variables]
        step_as_fit(model, *batch)
        ratios = [
            _norm([a - b for a, b in zip(_arrays(own), old, strict=True)])
            / max(_norm(old), 1e-12)
            for own, old in zip(variables, before, strict=True)
        ]
    return (
        dict(zip(layers, gradients, strict=True)),
        dict(zip(layers, ratios, strict=True)),
    )


def _arrays(variables) -> list[np.ndarray]:
    return [np.array(ops.convert_to_numpy(v), np.float64) for v in variables]


def _norm(values) -> float:
    squares = [np.square(array).sum() for array in _arrays(values)]
    return float(np.sqrt(np.sum(squares)))


def _saturated(layer, array: np.ndarray) -> float | None:
    activation = getattr(layer, "activation", None)
    bounds = _BOUNDS.get(getattr(activation, "__name__", ""))
    if bounds is None:
        return None
    low, high = bounds
    margin = _SATURATED * (high - low)
    return float(((array < low + margin) | (array > high - margin)).mean())


def _problems(layers: tuple[LayerSignal, ...]):
    for layer in layers:
        if not np.isfinite(layer.std):
            yield f"{layer.name}: outputs that are not finite"
            return
    for layer in layers:
        if layer.dead >= _MANY_DEAD:
            yield f"{layer.name}: {layer.dead:.0%} of its units are dead"
    hidden = [layer for layer in layers if layer.kind != "Activation"][:-1] or layers
    if hidden[0].std > _UNBALANCED * hidden[-1].std:
        yield _imbalance("vanishing signal", hidden[0], hidden[-1], "std")
    elif hidden[0].std * _UNBALANCED < hidden[-1].std:
        yield _imbalance("exploding signal", hidden[0], hidden[-1], "std")
    weighted = [layer for layer in layers if layer.gradient_norm is not None]
    norms = [layer.gradient_norm or 0.0 for layer in weighted]
    if not weighted:
        return
    if not np.isfinite(norms).all():
        yield "gradients that are not finite"
    elif norms[0] * _UNBALANCED < norms[-1]:
        yield _imbalance("vanishing gradient", weighted[0], weighted[-1])
    elif norms[0] > _UNBALANCED * norms[-1]:
        yield _imbalance("exploding gradient", weighted[0], weighted[-1])


def _imbalance(kind, first, last, figure="gradient_norm") -> str:
    begin, end = getattr(first, figure), getattr(last, figure)
    return f"{kind}: {begin:.1e} in {first.name}, {end:.1e} in {last.name}"
