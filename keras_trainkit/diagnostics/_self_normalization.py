"""The conditions under which a network normalizes itself."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers as kinds

from keras_trainkit._checks import (
    check_built,
    reject,
)
from keras_trainkit._model.select import paths
from keras_trainkit._model.self_normalizing import (
    layer_problem,
    standardization_problem,
)
from keras_trainkit._table import Report, Table
from keras_trainkit._training.recording import leaves, outputs


@dataclass(frozen=True, repr=False)
class SelfNormalizationReport(Report):
    """A report on whether a network normalizes itself, layer by layer.

    Attributes:
        names: Paths of the layers, in forward order.
        means: Mean of each layer's outputs, `(layers,)`.
        stds: Standard deviation of each layer's outputs, `(layers,)`.
        problems: One sentence per broken condition: a layer's path, or `"input"` for
            the data, and what breaks it; empty if there are none.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> model = kt.models.build_mlp((4,), 2, hidden_units=(8,))
        >>> report = kt.diagnostics.self_normalization(model, x)
        >>> report.holds
        False
    """

    names: tuple[str, ...]
    means: np.ndarray
    stds: np.ndarray
    problems: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether every condition holds."""
        return not self.problems

    def _table(self) -> Table:
        rows = zip(self.names, self.means, self.stds, strict=True)
        cells = [[name, f"{mean:.3g}", f"{std:.3g}"] for name, mean, std in rows]
        return Table(["layer", "mean", "std"], cells)

    def _notes(self) -> list[str]:
        verdict = "holds" if self.holds else "does not hold"
        problems = [f"! {problem}" for problem in self.problems]
        return [*problems, f"self-normalization {verdict}"]


def self_normalization(model: keras.Model, x: Any) -> SelfNormalizationReport:
    """Check whether a network keeps its outputs at mean 0 and standard deviation 1.

    The conditions: standardized inputs, SELU after Dense layers with the LeCun-normal
    initializer, no dropout except AlphaDropout, no normalization layer, and a plain
    stack of layers. The last layer with weights may have any activation and
    initializer.

    Args:
        model: A built Sequential or Functional model; it is not changed.
        x: A batch of inputs, a few hundred rows.

    Returns:
        A `SelfNormalizationReport`.

    Raises:
        ValueError: If the model is not built.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> model = kt.models.build_mlp((20,), 3, preset="self_normalizing")
        >>> x = np.random.default_rng(0).normal(size=(256, 20)).astype("float32")
        >>> kt.diagnostics.self_normalization(model, x).holds
        True

    Reference:
        G. Klambauer et al., Self-Normalizing Neural Networks (2017), arXiv:1706.02515.
    """
    check_built(model)
    flat = [np.asarray(part) for part in keras.tree.flatten(x)]
    if not flat or not all(part.ndim and len(part) for part in flat):
        reject("x", [part.shape for part in flat], "at least one row")
    used = outputs(model, x, leaves(model))
    if not all(np.isfinite(array).all() for _, array in used):
        reject("x", "NaN or infinity in a layer", "inputs with finite outputs")
    problems = []
    if why := standardization_problem(flat[0]):
        problems.append(f"input: {why}")
    order, path = [layer for layer, _ in used], paths(model)
    dense = [layer for layer in order if isinstance(layer, kinds.Dense)]
    for place, layer in enumerate(order):
        why = layer_problem(layer)
        if why is None and layer in dense[:-1]:
            why = _initializer_problem(layer) or _activation_problem(order[place:])
        if why:
            problems.append(f"{path[layer]}: {why}")
    return SelfNormalizationReport(
        names=tuple(path[layer] for layer in order),
        means=np.array([array.mean() for _, array in used]),
        stds=np.array([array.std() for _, array in used]),
        problems=tuple(problems),
    )


def _initializer_problem(layer) -> str | None:
    initializer = layer.kernel_initializer
    variance = keras.initializers.VarianceScaling
    if (
        isinstance(initializer, variance)
        and initializer.mode == "fan_in"
        and initializer.scale == 1
    ):
        return None
    return f"a {type(initializer).__name__} kernel; lecun_normal keeps the variance"


def _activation_problem(rest) -> str | None:
    """Look for SELU in a Dense layer, or in the Activation after it."""
    found = rest[0].activation
    if found is keras.activations.linear and len(rest) > 1:
        found = getattr(rest[1], "activation", None)
    if found is keras.activations.selu:
        return None
    name = getattr(found, "__name__", None)
    return f"activation {name}; only selu has the fixed point"
