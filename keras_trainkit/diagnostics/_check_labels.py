"""Round 1: checks that labels, loss and output match."""

from collections.abc import Iterator

import numpy as np

from keras_trainkit.diagnostics._finding import Finding
from keras_trainkit.diagnostics._loss import Judged
from keras_trainkit.diagnostics._subject import Subject

_RANGES = {
    "relu": (0.0, np.inf),
    "softplus": (0.0, np.inf),
    "exponential": (0.0, np.inf),
    "sigmoid": (0.0, 1.0),
    "hard_sigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "relu6": (0.0, 6.0),
    "elu": (-1.0, np.inf),
    "selu": (-1.7581, np.inf),
}
# Fractions of the targets out of reach.
_SOME, _MANY = 0.01, 0.05
_SPARSE = '`loss="sparse_categorical_crossentropy"`'
_CATEGORICAL = '`loss="categorical_crossentropy"`'


def labels_and_loss(subject: Subject) -> Iterator[Finding]:
    """Check for every mismatch between an output, its loss and its targets."""
    for output in subject.outputs:
        if output.targets.dtype.kind not in "fiub" or not output.targets.size:
            continue
        found = list(_JUDGES.get(output.family or "", _nothing)(output))
        yield from found
        if not found and output.is_classifier:
            yield from _logits(output)


def _nothing(output: Judged) -> Iterator[Finding]:
    yield from ()


def _error(kind: str, output: Judged, evidence: str, remedy: str) -> Finding:
    return Finding(kind, "error", output.where, evidence, remedy)


def _integers(y: np.ndarray) -> bool:
    return bool((y == np.round(y)).all())


def _one_per_row(output: Judged) -> bool:
    """Whether there is one target per row but the output has several values."""
    shape, wanted = output.targets.shape[1:], output.predictions.shape[1:]
    return output.classes > 1 and shape in (wanted[:-1], (*wanted[:-1], 1))


def _sparse(output: Judged) -> Iterator[Finding]:
    y, classes = output.targets, output.classes
    if y.shape[1:] == output.predictions.shape[1:] and classes > 1:
        yield _error(
            "labels_not_integers_or_one_hot",
            output,
            f"targets of shape {y.shape}, where the loss takes one integer a row",
            f"They are one-hot: compile with {_CATEGORICAL}, or train on "
            "`y.argmax(-1)`.",
        )
    elif not _integers(y):
        yield _error(
            "labels_not_integers_or_one_hot",
            output,
            f"targets such as {y[y != np.round(y)][0]:.4g} are no class numbers",
            "Give integers from 0 (`np.unique(y, return_inverse=True)[1]`), or, if "
            'these are quantities, `loss="mse"` and an output '
            "`keras.layers.Dense(1)`.",
        )
    else:
        kept = y[y != output.ignored] if output.ignored is not None else y
        if kept.size and (kept.min() < 0 or kept.max() >= classes):
            yield _out_of_range(output, kept)


def _out_of_range(output: Judged, y: np.ndarray) -> Finding:
    classes = output.classes
    if y.min() == 1 and y.max() == classes:
        remedy = "They begin with 1: train on `y - 1`."
    else:
        remedy = (
            "Number the classes from 0, `y = np.unique(y, return_inverse=True)[1]`, "
            "and give the output `keras.layers.Dense(y.max() + 1, "
            'activation="softmax")`; for labels to leave out use '
            "`keras.losses.SparseCategoricalCrossentropy(ignore_class=-1)`."
        )
    return _error(
        "labels_out_of_range",
        output,
        f"labels from {int(y.min())} to {int(y.max())}, where an output of {classes} "
        f"takes 0 to {classes - 1}",
        remedy,
    )


def _categorical(output: Judged) -> Iterator[Finding]:
    y, classes = output.targets, output.classes
    if classes == 1:
        yield _one_unit(output)
    elif _one_per_row(output) and _integers(y):
        yield _error(
            "labels_not_integers_or_one_hot",
            output,
            f"integers of shape {y.shape}, where the loss takes {classes} values a row",
            f"Compile with {_SPARSE}, or train on `keras.ops.one_hot(y, {classes})`.",
        )
    elif y.shape[-1] != classes:
        yield _error(
            "labels_out_of_range",
            output,
            f"targets of {y.shape[-1]} classes, an output of {classes}",
            f'Give the output `keras.layers.Dense({y.shape[-1]}, activation="softmax")`'
            ".",
        )
    elif not np.allclose(y.sum(-1), 1, atol=1e-3) or y.min() < 0:
        yield _error(
            "labels_not_integers_or_one_hot",
            output,
            f"targets of a row add up to {y.sum(-1).min():.3g} to "
            f"{y.sum(-1).max():.3g}, not to 1",
            "For several classes per row use "
            f'`keras.layers.Dense({classes}, activation="sigmoid")` with '
            '`loss="binary_crossentropy"`; otherwise make each row one-hot.',
        )


def _binary(output: Judged) -> Iterator[Finding]:
    y, classes = output.targets, output.classes
    softmax = output.activation == "softmax"
    if classes == 1 and softmax:
        yield _one_unit(output)
    elif _one_per_row(output):
        yield _error(
            "wrong_loss_for_output",
            output,
            f"one target a row for {classes} outputs: the loss compares it with each",
            f"Compile with {_SPARSE} and a softmax output, or give one unit: "
            '`keras.layers.Dense(1, activation="sigmoid")`.',
        )
    elif y.min() < 0 or y.max() > 1:
        yield _error(
            "labels_out_of_range",
            output,
            f"targets from {y.min():.3g} to {y.max():.3g}, where the loss takes 0 to 1",
            "For -1 and 1 train on `(y + 1) / 2`; for more than two classes use "
            '`keras.layers.Dense(classes, activation="softmax")` and '
            f"{_SPARSE}.",
        )
    elif softmax and y.ndim == 2 and np.allclose(y.sum(-1), 1):
        yield Finding(
            "wrong_loss_for_output",
            "hint",
            output.where,
            "a softmax over classes that exclude each other, judged one by one",
            f"Compile with {_CATEGORICAL}.",
        )


def _one_unit(output: Judged) -> Finding:
    return _error(
        "wrong_loss_for_output",
        output,
        "the softmax of a single unit is 1, whatever goes in",
        'For two classes use `keras.layers.Dense(1, activation="sigmoid")` with '
        '`loss="binary_crossentropy"`; for a quantity `keras.layers.Dense(1)` with '
        '`loss="mse"`.',
    )


def _regression(output: Judged) -> Iterator[Finding]:
    y, classes = output.targets, output.classes
    if classes == 1 and output.activation == "softmax":
        yield _one_unit(output)
    elif _one_per_row(output):
        classifier = _integers(y) and output.activation == "softmax"
        yield _error(
            "wrong_loss_for_output",
            output,
            f"one target a row for {classes} outputs: the loss compares it with each",
            f"Compile with {_SPARSE}."
            if classifier
            else "Give the output one unit: `keras.layers.Dense(1)`.",
        )
    elif output.activation in _RANGES:
        yield from _reach(output)


def _reach(output: Judged) -> Iterator[Finding]:
    y = output.targets.astype(float)
    low, high = _RANGES[output.activation]
    margin = 1e-6 * max(1.0, float(np.abs(y).max()))
    outside = float(((y < low - margin) | (y > high + margin)).mean())
    if outside < _SOME:
        return
    yield Finding(
        "activation_of_output_cannot_reach_targets",
        "error" if outside >= _MANY else "warning",
        output.where,
        f"{output.activation} gives [{low:g}, {high:g}], and {outside:.0%} of the "
        f"targets, {y.min():.3g} to {y.max():.3g}, lie outside",
        f"Remove the activation: `keras.layers.Dense({output.classes})`.",
    )


def _logits(output: Judged) -> Iterator[Finding]:
    sparse = output.family == "sparse"
    loss = {
        "sparse": "SparseCategoricalCrossentropy",
        "categorical": "CategoricalCrossentropy",
        "binary": "BinaryCrossentropy",
    }[output.family or ""]
    wanted = "sigmoid" if output.family == "binary" else "softmax"
    if output.probabilities():
        # The values alone are no proof: small logits can lie between 0 and 1.
        if output.from_logits and output.activation != "unknown":
            yield _error(
                "probabilities_as_logits",
                output,
                f"the output is a {output.activation}, and the loss applies another "
                "(from_logits=True)",
                "Remove one of them: "
                + (f"compile with {_SPARSE}" if sparse else f"`keras.losses.{loss}()`")
                + ", or remove the activation of the last layer.",
            )
    elif not output.from_logits:
        linear = output.activation in ("linear", "unknown")
        p = output.predictions
        yield _error(
            "logits_without_from_logits" if linear else "wrong_loss_for_output",
            output,
            f"outputs from {p.min():.3g} to {p.max():.3g} are not probabilities, but "
            "the loss expects them",
            f'Give the last layer `activation="{wanted}"`'
            + (
                f", or compile with `keras.losses.{loss}(from_logits=True)`."
                if linear
                else f", not {output.activation!r}."
            ),
        )


_JUDGES = {
    "sparse": _sparse,
    "categorical": _categorical,
    "binary": _binary,
    "squared": _regression,
    "absolute": _regression,
}
