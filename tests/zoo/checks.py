"""What the cells of the matrix are checked with. None of it is the package's."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from .registry import Case

TOLERANCE = {"float32": 2e-5, "bfloat16": 5e-2, "float16": 5e-3}
DROPOUTS = (
    layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D,
    layers.SpatialDropout3D, layers.GaussianDropout, layers.AlphaDropout,
)  # fmt: skip
WITH_KERNEL = (
    layers.Dense, layers.EinsumDense, layers.Conv1D, layers.Conv2D, layers.Conv3D,
    layers.Conv1DTranspose, layers.Conv2DTranspose, layers.DepthwiseConv2D,
    layers.Embedding,
)  # fmt: skip


class Wrong(AssertionError):
    """The feature ran and did something else than it says."""


def check(holds: Any, what: str) -> None:
    """Raise unless it holds."""
    if not holds:
        raise Wrong(what)


def all_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Every layer in a model, those inside layers included, once each."""
    return list(dict.fromkeys(model._flatten_layers(include_self=False)))


def array(variable: Any) -> np.ndarray:
    """A copy of a variable's or tensor's value."""
    value = variable.value if hasattr(variable, "value") else variable
    if keras.backend.standardize_dtype(value.dtype) == "bfloat16":
        value = keras.ops.cast(value, "float32")
    return np.array(keras.ops.convert_to_numpy(value))


def outputs(model: Any, inputs: Any) -> list[np.ndarray]:
    """All outputs at inference."""
    found = keras.tree.flatten(model(inputs, training=False))
    return [array(keras.ops.cast(y, "float32")) for y in found]


def distance(before: list[np.ndarray], after: list[np.ndarray]) -> float:
    """The largest difference, relative to the largest value of the same output."""
    check(len(before) == len(after), f"{len(after)} outputs for {len(before)}")
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        check(a.shape == b.shape, f"an output of shape {b.shape} for {a.shape}")
        difference = np.abs(a - b).max(initial=0) / max(np.abs(a).max(initial=0), 1e-6)
        worst = max(worst, float(difference))
    return worst


def check_equal(before, after, model: keras.Model, what: str) -> None:
    """Raise unless outputs are equal up to rounding."""
    dtypes = {layer.compute_dtype for layer in all_layers(model)}
    tolerance = max(TOLERANCE.get(name, 0) for name in {*dtypes, "float32"})
    error = distance(before, after)
    check(error <= tolerance, f"{what} differ by {error:.1e} of the largest")


def state(case: Case) -> list[np.ndarray]:
    """Weights, statistics, seeds and the optimizers' variables."""
    found = [v for v in case.model.variables if id(v) not in case.restless]
    for name in case.optimizers:
        found += getattr(getattr(case.model, name, None), "variables", [])
    return [array(v) for v in found if v.dtype != "string"]


@contextlib.contextmanager
def untouched(case: Case) -> Iterator[None]:
    """Raise if the model is not afterwards as it was, bit for bit."""
    before = state(case), _flags(case), _optimizers(case)
    yield
    after = state(case), _flags(case), _optimizers(case)
    same = len(before[0]) == len(after[0]) and all(map(_identical, before[0], after[0]))
    check(same, "the user's model was changed")
    check(before[1] == after[1], "what trains in the user's model was changed")
    same = all(a is b for a, b in zip(before[2], after[2], strict=True))
    check(same, "the user's model has another optimizer")


def _flags(case: Case) -> list[bool]:
    return [layer.trainable for layer in all_layers(case.model)]


def _optimizers(case: Case) -> list[Any]:
    return [getattr(case.model, name, None) for name in case.optimizers]


def _identical(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def fit(case: Case, model: keras.Model | None = None, **options) -> Any:
    """A short fit, as the user would do it."""
    size = {} if is_batched(case.x) else {"batch_size": 4}
    options = {"verbose": 0, "shuffle": False, **size, **case.fit, **options}
    given = (case.x,) if case.y is None else (case.x, case.y)
    return (model or case.model).fit(*given, **options)


def is_batched(x: Any) -> bool:
    """Whether the data come in batches of their own."""
    return not isinstance(x, list | tuple | dict) and not hasattr(x, "shape")


def reload(model: keras.Model, custom: dict[str, Any]) -> keras.Model:
    """The model after a trip through its file; the user trusts their own file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        return keras.saving.load_model(
            path, custom_objects=custom, compile=False, safe_mode=False
        )


def dropouts(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers that drop something in training."""
    return [
        layer
        for layer in all_layers(model)
        if (isinstance(layer, DROPOUTS) and layer.rate > 0)
        or (
            isinstance(layer, layers.SimpleRNNCell | layers.LSTMCell | layers.GRUCell)
            and (layer.dropout > 0 or layer.recurrent_dropout > 0)
        )
    ]


def set_rates(model: keras.Model, rate: float) -> None:
    """Let every dropout drop a fraction `rate`."""
    for layer in dropouts(model):
        if isinstance(layer, DROPOUTS):
            layer.rate = rate
            continue
        layer.dropout = rate if layer.dropout > 0 else 0
        layer.recurrent_dropout = rate if layer.recurrent_dropout > 0 else 0


def kernels(model: keras.Model) -> list[tuple[keras.layers.Layer, Any]]:
    """The trainable kernels and embeddings of Keras's own layers."""
    found = {}
    for layer in all_layers(model):
        if isinstance(layer, WITH_KERNEL):
            name = "embeddings" if isinstance(layer, layers.Embedding) else "kernel"
            variable = getattr(layer, f"_{name}", None)
            if isinstance(variable, keras.Variable) and variable.trainable:
                found[id(variable)] = layer, variable
    return list(found.values())


def changed(model: keras.Model, before: dict[int, np.ndarray]) -> set[int]:
    """Which of a model's variables are not as they were, by id."""
    return {
        id(v)
        for v in model.variables
        if id(v) in before and not np.array_equal(array(v), before[id(v)])
    }


def values(model: keras.Model) -> dict[int, np.ndarray]:
    """The value of each variable, by id."""
    return {id(v): array(v) for v in model.variables if v.dtype != "string"}
