"""What the loss of each output expects of the output and the targets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_trainkit._model.graph import Edge, is_graph, read

_FAMILIES = {
    "sparse_categorical_crossentropy": "sparse",
    "categorical_crossentropy": "categorical",
    "categorical_focal_crossentropy": "categorical",
    "binary_crossentropy": "binary",
    "binary_focal_crossentropy": "binary",
    "mean_squared_error": "squared",
    "mean_absolute_error": "absolute",
    "huber": "absolute",
    "log_cosh": "absolute",
}
_PASSED_THROUGH = (layers.Reshape, layers.Flatten, layers.Identity, layers.Dropout)
# The targets of this many rows are enough for the figures.
_MANY = 100_000


@dataclass
class Judged:
    """An output, its targets and its loss.

    Attributes:
        name: Its name.
        family: `"sparse"`, `"categorical"` or `"binary"` cross-entropy, `"squared"` or
            `"absolute"` error, `"other"`; None without a loss.
        loss: The function of targets and predictions, or None.
        from_logits: Whether the loss expects logits.
        ignored: The label that the loss ignores, if any.
        targets: The targets.
        predictions: Predictions for some rows, not those of `targets`.
        activation: The name of the output's activation; `"unknown"` if it cannot be
            determined.
    """

    name: str
    family: str | None
    loss: Callable | None
    from_logits: bool
    ignored: int | None
    targets: np.ndarray
    predictions: np.ndarray
    activation: str

    @property
    def classes(self) -> int:
        """Size of the output's last axis."""
        return self.predictions.shape[-1] if self.predictions.ndim > 1 else 1

    @property
    def where(self) -> str:
        """The name of the output for a finding."""
        return f"output {self.name!r}" if self.name else "output"

    @property
    def is_classifier(self) -> bool:
        """Whether the loss is a cross-entropy."""
        return self.family in ("sparse", "categorical", "binary")

    def probabilities(self) -> bool:
        """Whether the predictions appear to be probabilities."""
        if self.activation in ("softmax", "sigmoid", "hard_sigmoid"):
            return True
        if self.activation != "unknown":
            return False
        p = self.predictions
        inside = bool((p >= -1e-6).all() and (p <= 1 + 1e-6).all())
        if self.family == "binary" or self.classes == 1:
            return inside
        return inside and bool(np.allclose(p.sum(-1), 1, atol=1e-2))

    def labels(self) -> np.ndarray | None:
        """Return the class of each row, if there is one for each row."""
        y = self.targets[:_MANY]
        if self.family == "sparse" or (self.family == "binary" and self.classes == 1):
            return y.reshape(-1).astype(int) if y.size == len(y) else None
        if self.family == "categorical" and y.ndim == 2 and y.shape[1] > 1:
            return y.argmax(-1)
        return None

    def baseline(self, targets: Any = None) -> float | None:
        """Return the lowest loss of a prediction that is the same for every row."""
        y = np.asarray(self.targets if targets is None else targets)[:_MANY]
        if self.family in ("squared", "absolute"):
            y = y.reshape(len(y), -1).astype(float)
            if self.family == "squared":
                return float(y.var(0).mean())
            return float(np.abs(y - np.median(y, 0)).mean())
        if self.family == "binary":
            p = np.clip(y.reshape(len(y), -1).mean(0), 1e-7, 1 - 1e-7)
            return float(-(p * np.log(p) + (1 - p) * np.log1p(-p)).mean())
        if self.family == "sparse":
            labels = y[y != self.ignored] if self.ignored is not None else y
            return _entropy(np.unique(labels, return_counts=True)[1])
        if self.family == "categorical":
            return _entropy(y.reshape(-1, y.shape[-1]).sum(0))
        return None

    def uninformed(self) -> float | None:
        """Return the loss of an untrained model: ln C, or that of the best constant."""
        if self.is_classifier:
            return float(np.log(2 if self.family == "binary" else self.classes))
        return self.baseline()

    def value(self, targets: np.ndarray, predictions: Any) -> float:
        """Return the mean loss."""
        assert self.loss is not None
        loss = self.loss(
            keras.ops.convert_to_tensor(targets),
            keras.ops.convert_to_tensor(predictions),
        )
        return float(keras.ops.convert_to_numpy(keras.ops.mean(loss)))


def _entropy(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def judged_outputs(model: keras.Model, y: Any, predictions: Any) -> list[Judged]:
    """Collect what is known of each output.

    Raises:
        ValueError: If outputs, targets and losses cannot be matched.
    """
    names = _names(model, predictions)
    found = by_output(predictions, names)
    targets = by_output(y, names)
    losses = by_output(getattr(model, "loss", None), names, spread=True)
    if y is None or len({len(names), len(found), len(targets), len(losses)}) > 1:
        raise ValueError("outputs, targets and losses are not of one structure")
    activations = _activations(model, len(names))
    return [
        _judged(name, loss, target, output, activation)
        for name, loss, target, output, activation in zip(
            names, losses, targets, found, activations, strict=True
        )
        if target is not None
    ]


def _names(model, predictions) -> list[str]:
    if isinstance(predictions, dict):
        return list(predictions)
    names = getattr(model, "output_names", None)
    if names and len(names) == len(keras.tree.flatten(predictions)):
        return list(names)
    count = len(keras.tree.flatten(predictions))
    return [""] if count == 1 else [f"{n}" for n in range(count)]


def by_output(values: Any, names: list[str], spread: bool = False) -> list[Any]:
    """Return the entry of each output, from a dict, a list or a single one."""
    if isinstance(values, dict):
        return [values.get(name) for name in names]
    if isinstance(values, list | tuple):
        return list(values)
    return [values] * (len(names) if spread else 1)


def _judged(name, loss, target, output, activation) -> Judged:
    function = None if loss is None else keras.losses.get(loss)
    config = _config(function)
    return Judged(
        name=name,
        family=None if function is None else _FAMILIES.get(_name(function), "other"),
        loss=function,
        from_logits=bool(config.get("from_logits", False)),
        ignored=config.get("ignore_class"),
        targets=np.asarray(target),
        predictions=keras.ops.convert_to_numpy(keras.ops.cast(output, "float32")),
        activation=activation,
    )


def _config(loss: Any) -> dict:
    if not isinstance(loss, keras.losses.Loss):
        return {}
    try:
        return loss.get_config()
    except Exception:
        # A custom loss may have none, and cannot be judged.
        return {}


def _name(loss: Any) -> str:
    cls = type(loss)
    if isinstance(loss, keras.losses.Loss):
        # A custom class may have the name of one of Keras's.
        if getattr(keras.losses, cls.__name__, None) is not cls:
            return "other"
        text = cls.__name__
        return "".join(
            f"_{c.lower()}" if c.isupper() and n else c.lower()
            for n, c in enumerate(text)
        )
    name = getattr(loss, "__name__", "other")
    return name if getattr(keras.losses, name, None) is loss else "other"


def _activations(model: keras.Model, count: int) -> list[str]:
    if not is_graph(model):
        return ["unknown"] * count
    found = [_activation(edge) for edge in read(model).outputs]
    return found if len(found) == count else ["unknown"] * count


def _activation(edge: Edge) -> str:
    call = edge.producer
    if call is None:
        return "unknown"
    layer = call.layer
    name = getattr(getattr(layer, "activation", None), "__name__", None)
    own = type(layer).__module__.startswith("keras.")
    if name is not None and own and not _is_recurrent(layer):
        if name != "linear":
            return name
        if not isinstance(layer, layers.Activation):
            return "linear"
    elif type(layer).__name__ in ("Softmax", "Sigmoid", "ReLU", "Relu", "Tanh") and own:
        return type(layer).__name__.lower()
    elif not isinstance(layer, _PASSED_THROUGH):
        return "unknown"
    return _activation(call.inputs[0])


def _is_recurrent(layer) -> bool:
    return isinstance(layer, layers.RNN)
