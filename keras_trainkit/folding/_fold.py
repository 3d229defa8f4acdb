"""Fold BatchNorms into the layers in front of them or behind."""

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import reject
from keras_trainkit._keras import exchange_part, sublayers
from keras_trainkit._model import graph as _graph
from keras_trainkit._model.compare import check_same, drawn_inputs
from keras_trainkit._model.opening import open_up
from keras_trainkit._table import Report, Table
from keras_trainkit.folding import _affine, _linear
from keras_trainkit.folding._affine import Affine, Kept


@dataclass(frozen=True, repr=False)
class FoldResult(Report):
    """A model with its BatchNorms folded.

    Attributes:
        model: The folded copy, a plain Keras model.
        folded: Names of the BatchNorm layers that are gone.
        kept: The BatchNorm layers that stay, with the reason.
        max_error: Largest difference of the outputs on random inputs, relative to the
            largest output. NaN if they could not be compared: the model is random at
            inference, or takes no random inputs and `x` was not given.

    Examples:
        >>> import keras, keras_trainkit as kt
        >>> model = keras.Sequential([
        ...     keras.Input((8, 8, 3)),
        ...     keras.layers.Conv2D(4, 3),
        ...     keras.layers.BatchNormalization(name="norm"),
        ... ])
        >>> result = kt.folding.fold_batch_norm(model)
        >>> result.folded, result.kept
        (('norm',), {})
    """

    model: keras.Model
    folded: tuple[str, ...]
    kept: dict[str, str]
    max_error: float

    def _table(self) -> Table:
        rows = [[name, "folded"] for name in self.folded]
        return Table(["BatchNorm", ""], rows + [[name, "kept"] for name in self.kept])

    def _notes(self) -> list[str]:
        count = f"{len(self.folded)} BatchNorm layers folded, {len(self.kept)} kept"
        error = f"largest relative error {self.max_error:.1e}"
        if math.isnan(self.max_error):
            error = "not compared with the model: give `x`, inputs that it takes"
        reasons = [f"kept {name}: {reason}" for name, reason in self.kept.items()]
        return [f"{count}, {error}", *reasons]

    def summary(self) -> str:
        """What was folded, what was not and why."""
        return "\n".join(self._notes())


def fold_batch_norm(model: keras.Model, x: Any = None) -> FoldResult:
    """Fold the BatchNorms of a model into its linear layers.

    At inference a BatchNorm is `a x + b` with constants for each channel. It goes into
    the linear layer in front of it (`W -> a W`, `c -> a c + b`), or else into those
    behind it (`W -> diag(a) W`, `c -> c + b W`): Dense, EinsumDense, convolutions of
    every kind, Embedding. Dropout, reshaping, pooling and whatever else lets it pass
    may be in between. A layer made of layers, such as a residual block, is opened up
    into a Functional model of these layers if it has BatchNorms and its `call` can be
    traced. Each BatchNorm that stays has a reason.

    Args:
        model: A built Sequential or Functional model, with nested models, shared
            layers and `TimeDistributed` if need be; or a subclassed model, whose
            Functional parts are folded. It is not changed.
        x: Inputs on which the two models are compared; random ones by default.

    Returns:
        A `FoldResult`. Its model is not compiled. It has no custom class, but for a
        subclassed one, which can be exported but not be loaded from a `.keras` file:
        its code would build the BatchNorms again.

    Raises:
        ValueError: If the model is not built.
        RuntimeError: If the folded model's outputs differ from the model's by more than
            rounding.

    Examples:
        >>> import keras, keras_trainkit as kt
        >>> model = keras.Sequential([
        ...     keras.Input((4,)),
        ...     keras.layers.Dense(8),
        ...     keras.layers.BatchNormalization(),
        ...     keras.layers.ReLU(),
        ...     keras.layers.BatchNormalization(),
        ... ])
        >>> result = kt.folding.fold_batch_norm(model)
        >>> result.folded
        ('batch_normalization',)
        >>> for name, reason in result.kept.items():
        ...     print(name, "stays:", reason)
        batch_normalization_1 stays: re_lu is in front of it; its output is an
        output of the model

    Reference:
        B. Jacob et al., Quantization and Training of Neural Networks (2017),
        arXiv:1712.05877, equation 14.
    """
    if not isinstance(model, keras.Model) or not model.built:
        reject("model", model, "a built Keras model")
    if x is None:
        x = _random(model)
    if _graph.is_graph(model):
        copy, folded, kept = _fold_graph(model)
    else:
        copy, folded, kept = _fold_parts(model)
    error = math.nan if x is None else check_same(model, copy, x, "The folded model")
    return FoldResult(copy, tuple(folded), kept, error)


def _random(model: keras.Model) -> Any:
    """Random inputs, or None if the model takes none."""
    if not getattr(model, "inputs", None):
        reject("x", None, "given for a subclassed model, to compare outputs on it")
    return drawn_inputs(model)


def _fold_graph(model) -> tuple[keras.Model, list[str], dict[str, str]]:
    model, closed = open_up(model, _has_norms)
    graph = _graph.read(model)
    weights: dict[Any, _linear.Weights] = {}
    norms = list({call.layer: None for call in graph.calls if _is_norm(call.layer)})
    paths = {layer: graph.calls_of(layer)[0].path for layer in norms}
    names = [layer.name for layer in norms]
    reasons: dict[Any, list[str]] = {norm: [] for norm in norms}
    gone = set()
    # Of two in a row, the first goes into what is in front and the last into what is
    # behind; then the other is at the layer's side.
    for fold, order in ((_fold_back, norms), (_fold_forth, norms[::-1])):
        for norm in order:
            if norm in gone:
                continue
            try:
                weights |= fold(graph, norm, weights)
            except Kept as reason:
                reasons[norm].append(str(reason))
            else:
                graph.remove(norm)
                gone.add(norm)

    def replacement(layer):
        if layer in gone:
            return _graph.REMOVED
        return _linear.make(layer, weights[layer]) if layer in weights else None

    copy, pairs = _graph.rebuild(model, replacement)
    for layer, new_weights in weights.items():
        _linear.write(pairs[layer], new_weights)

    def label(norm):
        return norm.name if names.count(norm.name) == 1 else paths[norm]

    kept = {
        label(n): "; ".join(dict.fromkeys(reasons[n])) for n in norms if n not in gone
    }
    kept |= _hidden(model, norms, closed)
    return copy, [label(norm) for norm in norms if norm in gone], kept


def _is_norm(layer) -> bool:
    return isinstance(_linear.unwrap(layer), keras.layers.BatchNormalization)


def _has_norms(layer) -> bool:
    return any(_is_norm(part) for part in sublayers(layer))


def _hidden(model, norms, closed: dict[str, str]) -> dict[str, str]:
    """The BatchNorms that the graph does not show."""
    seen = {id(_linear.unwrap(norm)) for norm in norms}
    reasons = {}
    for call in _graph.read(model).calls:
        for layer in sublayers(call.layer) if _is_layer(call.layer) else ():
            if isinstance(layer, keras.layers.BatchNormalization):
                why = closed.get(call.path, f"{call.layer.name} cannot be opened up")
                reasons[layer] = f"it is inside a layer that stays whole: {why}"
    return {
        layer.name: reason for layer, reason in reasons.items() if id(layer) not in seen
    }


def _is_layer(layer) -> bool:
    return isinstance(layer, keras.layers.Layer)


def _calls(graph, norm) -> list[tuple[_graph.Call, Affine]]:
    """The uses of a BatchNorm, each with what it does."""
    inner = _linear.unwrap(norm)
    if type(inner) is not keras.layers.BatchNormalization:
        raise Kept(f"a {type(inner).__name__} may compute something else")
    calls = graph.calls_of(norm)
    if any(call.training for call in calls):
        raise Kept("it is called with training=True and uses the batch's statistics")
    steps = inner is not norm
    found = []
    for call in calls:
        shape = call.inputs[0].shape
        affine = _affine.of_batch_norm(
            inner, (shape[0], *shape[2:]) if steps else shape
        )
        if steps:
            affine = affine.map(lambda a: a[np.newaxis])
        found.append((call, affine))
    return found


def _fold_back(graph, norm, weights) -> dict[Any, _linear.Weights]:
    found = [_look_back(call, affine) for call, affine in _calls(graph, norm)]
    return _fold_into(graph, found, weights, _linear.fold_behind, lambda c: c.outputs)


def _look_back(call, affine: Affine) -> tuple[_graph.Call, Affine]:
    """The linear layer in front, and what is to happen behind it."""
    edge = call.inputs[0]
    while True:
        producer = edge.producer
        if producer is None:
            raise Kept("no layer is in front of it")
        if edge.is_output or len(edge.consumers) > 1:
            raise Kept(f"the output of {producer.layer.name} is used elsewhere too")
        if _linear.is_linear(producer.layer):
            return producer, affine
        edge = _through(producer, "in front of")
        shapes = edge.shape, producer.outputs[0].shape
        affine = _affine.backward(affine, producer.layer, *shapes)


def _fold_forth(graph, norm, weights) -> dict[Any, _linear.Weights]:
    found = [
        pair
        for call, affine in _calls(graph, norm)
        for pair in _look_forth(call.outputs[0], affine)
    ]
    return _fold_into(graph, found, weights, _linear.fold_in_front, lambda c: c.inputs)


def _look_forth(edge, affine: Affine) -> list[tuple[_graph.Call, Affine]]:
    """All linear layers behind, and what is to happen in front of each."""
    if edge.is_output:
        raise Kept("its output is an output of the model")
    found = []
    for consumer in edge.consumers:
        if _linear.is_linear(consumer.layer):
            found.append((consumer, affine))
            continue
        _through(consumer, "behind")
        behind = consumer.outputs[0]
        moved = _affine.forward(affine, consumer.layer, edge.shape, behind.shape)
        found += _look_forth(behind, moved)
    return found


def _through(call, where: str) -> _graph.Edge:
    """The input of a layer that an affine function may pass."""
    if not _affine.is_transparent(call.layer):
        raise Kept(f"{call.layer.name} is {where} it")
    return call.inputs[0]


def _fold_into(graph, found, weights, fold, side) -> dict[Any, _linear.Weights]:
    """The new weights of the layers that were found, each for all its uses."""
    new = {}
    for layer in {call.layer: None for call, _ in found}:
        uses = [(call, affine) for call, affine in found if call.layer is layer]
        if len(uses) < len(graph.calls_of(layer)):
            raise Kept(f"{layer.name} is shared with another branch")
        old = weights.get(layer) or _linear.read(layer)
        results = [
            fold(layer, old, affine, len(side(call)[0].shape)) for call, affine in uses
        ]
        for result in results[1:]:
            if any((result[name] != results[0][name]).any() for name in result):
                raise Kept(f"{layer.name} would need other weights at each of its uses")
        new[layer] = results[0]
    return new


def _fold_parts(model) -> tuple[keras.Model, list[str], dict[str, str]]:
    """Fold the Functional parts of a subclassed model."""
    copy = _graph.copy_model(model)
    folded: list[str] = []
    kept: dict[str, str] = {}
    rewritten: set[int] = set()
    # PyTorch's modules keep their parts apart.
    for name in [*vars(copy), *vars(copy).get("_modules", ())]:
        part = getattr(copy, name)
        if _graph.is_graph(part):
            new, done, stay = _fold_graph(part)
            exchange_part(copy, name, new)
            folded += done
            kept |= stay
            rewritten |= {id(layer) for layer in sublayers(new)}
    for layer in sublayers(copy):
        if _is_norm(layer) and id(layer) not in rewritten and layer.name not in kept:
            kept[layer.name] = "the code of a subclassed model cannot be rewritten"
    return copy, folded, kept
