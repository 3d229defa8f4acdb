"""Round 2: checks of the network on one batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_trainkit._keras import sublayers
from keras_trainkit._model.graph import is_graph, read
from keras_trainkit._model.kernels import Kernel, kernels
from keras_trainkit._training.optimizer import core_optimizer, has_schedule
from keras_trainkit._training.recording import gradients_of, leaves, outputs
from keras_trainkit.diagnostics._finding import Finding
from keras_trainkit.diagnostics._signal import _saturated as saturation
from keras_trainkit.diagnostics._subject import Subject, has_batch_norm, take

# Fractions of a layer's units or outputs. The thresholds below separate the healthy
# from the broken trainings in the first half of the study: the highest healthy figures
# there are 0.23 dead, 0.00 saturated, an initial loss of 1.9 times the baseline, and
# gradients 0.27 times as large at one end as at the other.
_SOME, _MOST = 0.5, 0.9
_INITIAL_LOSS, _INITIAL_LOSS_ERROR = 4.0, 100.0
# Ratios of the norm of the gradient to that of the weights.
_VANISHED, _NONE, _EXPLODED = 1e-4, 1e-6, 1e3
_ROWS_OF_GRADIENT = 64
_NOISE = 1e-4
_SMALL_BATCH = 4
_MANY_WEIGHTS = 1024


@dataclass
class Batch:
    """A batch, and the model's predictions and gradients for it.

    Attributes:
        subject: The model and its data.
        x: Inputs.
        y: Targets.
        predictions: Arrays, one for each output.
        at_first: The same with `training=True`: a BatchNorm uses the statistics of the
            batch, because its moving averages mean nothing yet.
        gradients: Gradients by the id of the variable; None if no variable has any.
    """

    subject: Subject
    x: Any
    y: Any
    predictions: list[np.ndarray]
    at_first: list[np.ndarray]
    gradients: dict[int, np.ndarray] | None

    @property
    def model(self) -> keras.Model:
        """The model."""
        return self.subject.model

    def initial_loss(self) -> float | None:
        """Return the loss over that of the best constant, for a single output."""
        for output, prediction in zip(
            self.subject.outputs, self.at_first, strict=False
        ):
            targets = keras.tree.flatten(self.y)
            base = output.uninformed()
            if base and len(targets) == len(self.predictions) == 1:
                return output.value(targets[0], prediction) / base
        return None

    def untrained(self) -> bool:
        """Whether the model appears no better than a constant."""
        ratio = self.initial_loss()
        return ratio is None or ratio > 0.7


def batch_of(subject: Subject) -> Batch:
    """Run the model on a batch."""
    x, y, _ = subject.sample()
    rows = np.arange(min(subject.rows, _ROWS_OF_GRADIENT, len(_first(x))))
    gradients = None
    if subject.model.trainable_variables:
        try:
            gradients = gradients_of(subject.model, take(x, rows), take(y, rows))
        except ValueError as error:
            # Keras's message if no variable has a gradient.
            if "gradient" not in str(error).lower():
                raise
    at_first = predicted(subject.model, x, training=has_batch_norm(subject.model))
    predictions = predicted(subject.model, x)
    return Batch(subject, x, y, predictions, at_first, gradients)


def predicted(model: keras.Model, x: Any, training: bool = False) -> list[np.ndarray]:
    """Return the outputs of the model."""
    given = keras.tree.flatten(model(x, training=training))
    return [
        keras.ops.convert_to_numpy(keras.ops.cast(part, "float32")) for part in given
    ]


def _first(structure) -> Any:
    return keras.tree.flatten(structure)[0]


def nothing_trains(batch: Batch) -> Iterator[Finding]:
    """Check for weights that cannot change."""
    evidence = remedy = None
    if not batch.model.trainable_variables:
        evidence = f"all {len(batch.model.variables)} variables are frozen"
        remedy = "Set `model.trainable = True` and compile again."
    elif _rate(batch.model) == 0:
        evidence = "the learning rate is 0"
        remedy = "Set `model.optimizer.learning_rate = kt.find_lr(model, x, y)"
        remedy += ".suggestion`."
    elif batch.gradients is None:
        evidence = "the loss has no gradient in any weight"
        remedy = _DIFFERENTIABLE
    if evidence:
        yield Finding("nothing_trains", "error", "model", evidence, remedy or "")


_DIFFERENTIABLE = (
    "Look for an operation without a gradient before the loss: "
    "`keras.ops.stop_gradient`, `argmax`, `round`, a comparison, or a NumPy function "
    "in a layer, and use a smooth function there."
)


def _rate(model) -> float | None:
    """Return the learning rate; None for a schedule or several optimizers."""
    try:
        optimizer = core_optimizer(model)
    except ValueError:
        return None
    return None if has_schedule(optimizer) else float(optimizer.learning_rate)


def frozen_by_mistake(batch: Batch) -> Iterator[Finding]:
    """Check for frozen layers that still have their initial weights."""
    if not batch.model.trainable_variables:
        return
    found = [
        kernel.layer.name
        for kernel in kernels(batch.model)
        if not kernel.variable.trainable and _is_fresh(kernel)
    ]
    if found:
        yield Finding(
            "frozen_by_mistake",
            "error",
            ", ".join(dict.fromkeys(found)),
            "frozen, with weights as random as their initializer makes them",
            "Load trained weights (`model.load_weights(path)`), or let them train: "
            f"`model.get_layer({found[0]!r}).trainable = True`, then compile again.",
        )


def _is_fresh(kernel: Kernel) -> bool:
    """Whether a kernel is what its initializer returns, or just as random."""
    layer = kernel.layer
    initializer = getattr(layer, f"{kernel.prefix}_initializer", None)
    if initializer is None or not isinstance(getattr(initializer, "seed", 0), int):
        return False
    values = keras.ops.convert_to_numpy(kernel.variable)
    drawn = keras.ops.convert_to_numpy(initializer(values.shape))
    if np.allclose(values, drawn):
        return True
    # A model loaded from a file has another seed.
    bias = getattr(layer, "bias", None)
    if bias is None or np.any(keras.ops.convert_to_numpy(bias)):
        return False
    noise = 4 / np.sqrt(values.size) * drawn.std()
    return bool(
        values.size >= _MANY_WEIGHTS
        and abs(values.std() - drawn.std()) <= noise
        and abs(values.mean() - drawn.mean()) <= 2 * noise
    )


def rows_leak(batch: Batch) -> Iterator[Finding]:
    """`not_deterministic_at_inference` and `rows_leak_into_each_other`."""
    once, again = predicted(batch.model, batch.x), batch.predictions
    if _differ(once, again):
        yield from _random(batch.model)
        return
    half = len(_first(batch.x)) // 3
    if half < 1:
        return
    same = np.arange(half)
    first = predicted(batch.model, take(batch.x, np.concatenate([same, same + half])))
    other = predicted(
        batch.model, take(batch.x, np.concatenate([same, same + 2 * half]))
    )
    whole = all(len(part) == 2 * half for part in first)
    if whole and _differ([p[:half] for p in first], [p[:half] for p in other]):
        yield Finding(
            "rows_leak_into_each_other",
            "error",
            "model",
            "the output for a row changes with the other rows of its batch",
            "Look for an operation along axis 0: a `Lambda`, `Softmax(axis=0)`, a mean "
            "over all axes, a `Reshape` over the batch axis; name the axes "
            "that you mean, such as `keras.ops.mean(x, axis=-1)`.",
        )


def _random(model) -> Iterator[Finding]:
    parts = sublayers(model)
    if any(getattr(part, "stateful", False) for part in parts):
        return
    # Monte Carlo dropout is random on purpose.
    meant = any(
        type(part).__module__.startswith("keras_trainkit.layers")
        and type(part).__name__.startswith("MC")
        for part in parts
    )
    called = is_graph(model) and any(call.training for call in read(model).calls)
    if not meant:
        yield Finding(
            "not_deterministic_at_inference",
            "hint" if called else "warning",
            "model",
            "two predictions for the same rows differ",
            "Make the random operation depend on `training`: "
            "`def call(self, x, training=False): ... if training: ...`. If a dropout "
            "is on at inference on purpose, `kt.uncertainty.mc_predict` averages it.",
        )


def _differ(some, others) -> bool:
    """Whether outputs differ by more than rounding, even if nearly constant."""
    for a, b in zip(some, others, strict=True):
        if not a.size:
            continue
        size = max(float(np.abs(a).max()), 1e-6)
        spread = float(a.std(0).max())
        if np.abs(a - b).max() > min(_NOISE * size, 0.01 * spread + 1e-6 * size):
            return True
    return False


def constant_output(batch: Batch) -> Iterator[Finding]:
    """Check for outputs that are the same for every row."""
    for place, prediction in enumerate(batch.predictions):
        if len(prediction) < 2 or not _constant(prediction):
            continue
        # A last layer initialized to zeros is common, and outputs that passed many
        # layers may differ by less than a float can represent.
        if _zero_head(batch) or _vanishes(_relative_gradients(batch)):
            continue
        yield Finding(
            "output_does_not_depend_on_input",
            "error",
            f"output {place}",
            f"{len(prediction)} different rows have the same output, "
            f"{prediction.reshape(-1)[0]:.4g} first",
            "Look for the first layer that has one output for all rows: "
            "`kt.diagnostics.signal_report(model, x[:256])`, and for an input that is "
            "multiplied by 0, cut off, or not connected.",
        )


def _constant(values: np.ndarray) -> bool:
    spread = np.ptp(values, axis=0).max()
    return bool(spread <= 1e-6 * max(float(np.abs(values).max()), 1e-6))


def _zero_head(batch: Batch) -> bool:
    """Whether some kernels are zero and have a gradient that will change them."""
    gradients = batch.gradients or {}
    return any(
        not np.any(keras.ops.convert_to_numpy(kernel.variable))
        and np.any(gradients.get(id(kernel.variable), 0))
        for kernel in kernels(batch.model)
    )


def symmetric(batch: Batch) -> Iterator[Finding]:
    """Check for layers whose units are all the same and stay so."""
    gradients = batch.gradients or {}
    found = []
    constant = True
    for kernel in kernels(batch.model):
        gradient = gradients.get(id(kernel.variable))
        if gradient is None or kernel.prefix == "embeddings" or kernel.units < 2:
            continue
        values = _by_unit(kernel, keras.ops.convert_to_numpy(kernel.variable))
        if np.ptp(values, axis=1).any():
            continue
        # A layer of zeros can still learn if the gradients of its units differ.
        alike = np.ptp(_by_unit(kernel, gradient), axis=1)
        if values.any() or not (alike > 1e-4 * np.abs(gradient).max()).any():
            found.append(kernel.layer.name)
            constant &= not values.any()
    if found:
        yield Finding(
            "symmetric_initialization",
            "error",
            ", ".join(dict.fromkeys(found)),
            "all units of the layer have the same weights"
            + (", 0" if constant else "")
            + ", and get the same gradient",
            'Use a random initializer: `kernel_initializer="he_normal"` with ReLU and '
            'ELU, `"glorot_uniform"` otherwise.',
        )


def _by_unit(kernel: Kernel, values: np.ndarray) -> np.ndarray:
    """Return a matrix with a column for each unit."""
    rest = [axis for axis in range(values.ndim) if axis not in kernel.inputs]
    moved = np.transpose(values, [*kernel.inputs, *rest])
    return moved.reshape(kernel.fan_in, -1)


def units(batch: Batch) -> Iterator[Finding]:
    """`dead_units` and `saturated_units`."""
    yield from unit_findings(batch.model, batch.x)


def unit_findings(model: keras.Model, x: Any) -> Iterator[Finding]:
    """Check the outputs for some inputs for units that carry no information."""
    arrays = outputs(model, x, leaves(model), training=True)
    last = [layer for layer, _ in arrays[-1:]]
    dead = {
        layer: float((array == 0).all(0).mean())
        for layer, array in arrays
        if _is_relu(layer)
    }
    yield from _worst(
        "dead_units",
        dead,
        "of the units give 0 for every row",
        "Use an activation that has a slope everywhere, "
        '`activation="leaky_relu"` or `"elu"`, with `kernel_initializer="he_normal"` '
        "and a `bias_initializer` of zeros; if the network has trained already, lower "
        "the learning rate.",
    )
    saturated = {
        layer: saturation(layer, array) or 0.0
        for layer, array in arrays
        if layer not in last and _name(layer) != "softmax"
    }
    yield from _worst(
        "saturated_units",
        saturated,
        "of the outputs are within 5% of a bound of the activation",
        'Use smaller weights, `kernel_initializer="glorot_uniform"` (tanh, sigmoid), '
        "standardize the inputs, or put `keras.layers.BatchNormalization()` before the "
        'activation; `activation="elu"` does not saturate above.',
    )


def _worst(kind: str, fractions: dict, text: str, remedy: str) -> Iterator[Finding]:
    found = {layer: part for layer, part in fractions.items() if part >= _SOME}
    if found:
        layer, part = max(found.items(), key=lambda item: item[1])
        yield Finding(
            kind,
            "error" if part >= _MOST else "warning",
            ", ".join(layer.name for layer in found),
            f"in {layer.name} {part:.0%} {text}",
            remedy,
        )


def _name(layer) -> str:
    return getattr(getattr(layer, "activation", None), "__name__", "")


def _is_relu(layer) -> bool:
    return isinstance(layer, layers.ReLU) or _name(layer) in ("relu", "relu6")


def gradients(batch: Batch) -> Iterator[Finding]:
    """`vanishing_gradient` and `exploding_gradient`."""
    sizes = _relative_gradients(batch)
    if not sizes:
        return
    (first, start), (last, end) = sizes[0], sizes[-1]
    values = np.array([size for _, size in sizes])
    if not np.isfinite(values).all() or (
        values.max() > _EXPLODED and not _large_targets(batch)
    ):
        layer = sizes[int(np.argmax(np.nan_to_num(values, nan=np.inf)))][0]
        yield Finding(
            "exploding_gradient",
            "error",
            layer,
            f"gradient over weights {values.max():.2g}",
            'Start with smaller weights, `kernel_initializer="he_normal"`, normalize '
            "(`keras.layers.LayerNormalization()`), and clip the gradient: "
            "`keras.optimizers.Adam(1e-3, clipnorm=1.0)`.",
        )
    elif (values == 0).any() and not _zero_head(batch):
        names = [name for name, size in sizes if size == 0]
        yield Finding(
            "vanishing_gradient",
            "error",
            ", ".join(dict.fromkeys(names)),
            f"no gradient at all in {len(names)} of {len(sizes)} kernels",
            _DIFFERENTIABLE,
        )
    elif batch.untrained() and _vanishes(sizes):
        yield Finding(
            "vanishing_gradient",
            "error",
            first,
            f"gradient over weights {start:.2g} in {first}, {end:.2g} in {last}",
            'Use `activation="relu"` or `"elu"` with '
            '`kernel_initializer="he_normal"`, and '
            "`keras.layers.BatchNormalization()` or shortcuts "
            "(`keras.layers.Add()([x, y])`) between the layers.",
        )


def _vanishes(sizes: list[tuple[str, float]]) -> bool:
    """Whether there are gradients, but hardly any in the first layers."""
    values = [size for _, size in sizes]
    return bool(values) and (
        0 < values[0] < _VANISHED * values[-1] or 0 < max(values) < _NONE
    )


def _relative_gradients(batch: Batch) -> list[tuple[str, float]]:
    """Return gradient norm over weight norm, by layer in forward order."""
    found = []
    for kernel in kernels(batch.model):
        gradient = (batch.gradients or {}).get(id(kernel.variable))
        if gradient is None or kernel.prefix == "embeddings":
            continue
        norm = np.linalg.norm(keras.ops.convert_to_numpy(kernel.variable))
        if norm > 0:
            size = np.linalg.norm(gradient.astype(np.float64)) / norm
            found.append((kernel.layer.name, float(size)))
    return found


def _large_targets(batch: Batch) -> bool:
    """Whether errors are large because the targets are: a separate fault."""
    return any(
        output.family in ("squared", "absolute")
        and np.sqrt(np.mean(np.square(output.targets.astype(float)))) > 10
        for output in batch.subject.outputs
    )


def initial_loss(batch: Batch) -> Iterator[Finding]:
    """Check for an initial loss far above that of a constant prediction."""
    ratio = batch.initial_loss()
    if ratio is None or (np.isfinite(ratio) and ratio < _INITIAL_LOSS):
        return
    output = batch.subject.outputs[0]
    base = output.uninformed() or 0.0
    regression = not output.is_classifier
    yield Finding(
        "bad_initial_loss",
        "error" if not ratio < _INITIAL_LOSS_ERROR else "warning",
        output.where,
        f"the loss is {ratio * base:.3g}; predicting "
        + ("the mean of the targets" if regression else "all classes alike")
        + f" gives {base:.3g}",
        "Standardize the targets: `mean, std = y.mean(), y.std()`, train on "
        "`(y - mean) / std`, and predict `std * model.predict(x) + mean`."
        if regression and _large_targets(batch)
        else 'Start with smaller weights, `kernel_initializer="he_normal"` (ReLU) or '
        '`"glorot_uniform"`, and standardized inputs.',
    )


def small_batches(batch: Batch) -> Iterator[Finding]:
    """Check for BatchNorm over too few rows."""
    norms = [
        layer
        for layer in sublayers(batch.model)
        if isinstance(layer, layers.BatchNormalization) and layer.trainable
    ]
    size = batch.subject.batch_size
    if norms and size <= _SMALL_BATCH:
        yield Finding(
            "batch_norm_batch_too_small",
            "warning",
            norms[0].name,
            f"batches of {size}: the mean and variance of so few rows are noise",
            "Train with `batch_size=32`, or use "
            "`keras.layers.GroupNormalization(groups=8)` instead.",
        )


CHECKS = (
    nothing_trains,
    frozen_by_mistake,
    rows_leak,
    symmetric,
    units,
    gradients,
    constant_output,
    initial_loss,
    small_batches,
)
