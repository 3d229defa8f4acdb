"""Round 1: checks of the data, without running the model."""

from collections import Counter, defaultdict
from collections.abc import Iterator

import keras
import numpy as np
from keras import layers

from keras_trainkit._model.graph import Edge, is_graph, read
from keras_trainkit.diagnostics._finding import Finding
from keras_trainkit.diagnostics._subject import Subject, is_numeric, named_leaves

# Root mean square of the input of the first layer with weights.
_LARGE, _HUGE, _SMALL = 10.0, 1e3, 0.02
# A column this many times larger than the median column.
_WILD = 100.0
_FEW_ROWS, _FEW_PER_CLASS = 50, 10
# Fractions of the rows.
_DUPLICATES, _CONFLICTS = 0.01, 0.05
_IMBALANCE = 20.0

_SCALES_ITSELF = (
    layers.Normalization, layers.BatchNormalization, layers.LayerNormalization,
    layers.GroupNormalization, layers.RMSNormalization, layers.UnitNormalization,
)  # fmt: skip
_KEEPS_VALUES = (
    layers.Flatten, layers.Reshape, layers.Permute, layers.RepeatVector,
    layers.Identity, layers.Masking, layers.Dropout, layers.ZeroPadding1D,
    layers.ZeroPadding2D, layers.ZeroPadding3D, layers.RandomFlip,
    layers.RandomTranslation, layers.RandomRotation, layers.RandomZoom,
    layers.RandomCrop, layers.CenterCrop, layers.Resizing,
)  # fmt: skip
_KERNELS = (
    layers.Dense, layers.EinsumDense, layers.Conv1D, layers.Conv2D, layers.Conv3D,
    layers.DepthwiseConv1D, layers.DepthwiseConv2D, layers.SeparableConv1D,
    layers.SeparableConv2D, layers.RNN, layers.Bidirectional,
)  # fmt: skip


def nan_in_data(subject: Subject) -> Iterator[Finding]:
    """Check for numbers that are not finite."""
    data = {"x": subject.x, "y": subject.y, "sample_weight": subject.weights}
    if subject.validation:
        data["x_val"], data["y_val"] = subject.validation
    for name, structure in data.items():
        for where, array in named_leaves(name, structure):
            if not is_numeric(array) or np.isfinite(array).all():
                continue
            bad = ~np.isfinite(array.reshape(len(array), -1)).all(1)
            yield Finding(
                "nan_in_data",
                "error",
                where,
                f"{bad.sum()} of {len(array)} rows have NaN or infinity, "
                f"the first is row {int(np.argmax(bad))}",
                "Remove these rows, or fill in the values: "
                f"`good = np.isfinite({where}.reshape(len({where}), -1)).all(1)`, then "
                "`x, y = x[good], y[good]`.",
            )


def input_scale(subject: Subject) -> Iterator[Finding]:
    """`unscaled_inputs` and `one_wild_feature`."""
    x, _, _ = subject.sample()
    for where, array, factor in _entering(subject.model, x):
        if not is_numeric(array) or array.dtype.kind == "b":
            continue
        values = np.asarray(array, float) * factor
        rms = np.sqrt(np.square(values.reshape(-1, values.shape[-1])).mean(0))
        varied = rms[rms > 0]
        if not len(varied):
            continue
        usual = float(np.median(varied))
        wild = np.flatnonzero(rms > _WILD * usual)
        if values.ndim < 4 and 0 < len(wild) <= max(1, len(rms) // 5):
            yield from _wild(where, wild, rms, usual)
        else:
            yield from _unscaled(where, float(np.sqrt(np.square(values).mean())))


def _wild(where: str, wild: np.ndarray, rms: np.ndarray, usual: float):
    names = ", ".join(map(str, wild[:5]))
    yield Finding(
        "one_wild_feature",
        "warning",
        f"{where}, column {names}",
        f"root mean square {rms[wild[0]]:.3g}, that of the median column {usual:.3g}",
        "Standardize each column: `scale = keras.layers.Normalization(); "
        f"scale.adapt({where})`, and make `scale` the first layer; look for typing "
        "errors in the column first.",
    )


def _unscaled(where: str, rms: float) -> Iterator[Finding]:
    if _SMALL <= rms < _LARGE:
        return
    yield Finding(
        "unscaled_inputs",
        "error" if rms >= _HUGE else "warning",
        where,
        f"root mean square {rms:.3g} where a layer with weights takes it; "
        "about 1 is usual",
        "Standardize: `scale = keras.layers.Normalization(); "
        f"scale.adapt({where})`, and make `scale` the first layer (for bytes "
        "`keras.layers.Rescaling(1 / 127.5, offset=-1)` does).",
    )


def _entering(model, x) -> Iterator[tuple[str, np.ndarray, float]]:
    """Return the inputs that reach a layer with a kernel unchanged, up to a factor."""
    leaves = named_leaves("x", x)
    if not is_graph(model):
        return
    edges = read(model).inputs
    if len(edges) != len(leaves):
        return
    for (where, array), edge in zip(leaves, edges, strict=True):
        factor = _factor(edge)
        if factor is not None:
            yield where, array, factor


def _factor(edge: Edge) -> float | None:
    """Return the factor with which a layer with a kernel receives it, or None."""
    for call in edge.consumers:
        layer = call.layer
        if isinstance(layer, layers.TimeDistributed):
            layer = layer.layer
        if isinstance(layer, _KERNELS):
            return 1.0
        if isinstance(layer, layers.Rescaling) and np.ndim(layer.scale) == 0:
            inner = _factor(call.outputs[0])
            return None if inner is None else inner * float(layer.scale)
        if isinstance(layer, _KEEPS_VALUES):
            inner = _factor(call.outputs[0])
            if inner is not None:
                return inner
    return None


def constant_feature(subject: Subject) -> Iterator[Finding]:
    """Check for columns, or channels of images, that never change."""
    for where, array in named_leaves("x", subject.x):
        if not is_numeric(array) or array.ndim < 2 or len(array) < 2:
            continue
        columns = array.reshape(-1, array.shape[-1])
        constant = np.flatnonzero((columns == columns[0]).all(0))
        if not len(constant):
            continue
        every = len(constant) == columns.shape[1]
        yield Finding(
            "constant_feature",
            "error" if every else "hint",
            f"{where}, column {', '.join(map(str, constant[:5]))}",
            f"{len(constant)} of {columns.shape[1]} columns have one value in all "
            f"{len(array)} rows",
            "Drop them, they carry nothing: "
            f"`keep = {where}.reshape(-1, {columns.shape[1]}).std(0) > 0`, then "
            f"`{where}[..., keep]`.",
        )


def rows_again(subject: Subject) -> Iterator[Finding]:
    """`duplicates_across_split` and `conflicting_labels`."""
    keys = _keys(subject.x)
    if subject.validation:
        held = _keys(subject.validation[0])
        known = set(keys)
        shared = sum(key in known for key in held) / max(len(held), 1)
        again = 1 - len(known) / len(keys)
        # Data with few distinct values repeat themselves even in a correct split.
        if shared >= _DUPLICATES and shared > 2 * again:
            yield Finding(
                "duplicates_across_split",
                "error" if shared > 0.5 else "warning",
                "validation_data",
                f"{shared:.1%} of the validation rows are in the training rows too",
                "Split by the distinct row: `_, group = np.unique(x.reshape(len(x), -1)"
                ", axis=0, return_inverse=True)`, then "
                "`sklearn.model_selection.GroupShuffleSplit` with `groups=group`.",
            )
    yield from _conflicts(subject, keys)


def _conflicts(subject: Subject, keys: list[int]) -> Iterator[Finding]:
    for output in subject.outputs:
        labels = output.labels()
        if labels is None or len(labels) != len(keys):
            continue
        by_row: dict[int, Counter] = defaultdict(Counter)
        for key, label in zip(keys, labels.tolist(), strict=True):
            by_row[key][label] += 1
        wrong = sum(c.total() - max(c.values()) for c in by_row.values() if len(c) > 1)
        # If nearly every row occurs many times, the labels are merely random.
        if wrong / len(keys) < _CONFLICTS or len(by_row) < len(keys) / 4:
            continue
        yield Finding(
            "conflicting_labels",
            "warning",
            output.where,
            f"equal rows have different labels: {wrong / len(keys):.1%} of the rows "
            "cannot be right",
            "Look at them: `_, group = np.unique(x.reshape(len(x), -1), axis=0, "
            "return_inverse=True)`, rows of one group with more than one label; keep "
            "the majority's, or train on the share of each label.",
        )


def _keys(x) -> list[int]:
    arrays = [np.ascontiguousarray(a) for a in keras.tree.flatten(x)]
    return [
        hash(tuple(a[row].tobytes() for a in arrays)) for row in range(len(arrays[0]))
    ]


def class_imbalance(subject: Subject) -> Iterator[Finding]:
    """Check for classes with too few rows, unless the rows have weights."""
    for output in subject.outputs:
        labels = output.labels()
        if labels is None or subject.weights is not None:
            continue
        classes, counts = np.unique(labels, return_counts=True)
        if len(classes) == 1:
            yield Finding(
                "class_imbalance",
                "error",
                output.where,
                f"all {len(labels)} labels are {classes[0]}",
                "There is nothing to learn: look at how `y` was made, "
                "`np.unique(y, return_counts=True)`.",
            )
        elif counts.max() >= _IMBALANCE * counts.min():
            yield Finding(
                "class_imbalance",
                "warning",
                output.where,
                f"{counts.max()} rows of class {classes[counts.argmax()]}, "
                f"{counts.min()} of class {classes[counts.argmin()]}",
                "Weight the classes: `classes, n = np.unique(y, return_counts=True)`, "
                "`fit(..., class_weight=dict(zip(classes.tolist(), (len(y) / (len(n) "
                "* n)).tolist())))`, and judge by a metric such as "
                "`keras.metrics.AUC(curve='PR')`, not by the accuracy.",
            )


def too_few_rows(subject: Subject) -> Iterator[Finding]:
    """Check for fewer rows than a network can learn from."""
    least = _FEW_ROWS
    for output in subject.outputs:
        if output.labels() is not None:
            least = max(least, _FEW_PER_CLASS * max(output.classes, 2))
    if subject.rows < least:
        yield Finding(
            "too_few_rows",
            "warning",
            "x",
            f"{subject.rows} rows; {least} are the fewest that can be expected to do",
            "Get more rows, augment them (`keras.layers.RandomFlip` ...), or start "
            "from a trained network (`kt.transfer.replace_head`).",
        )
