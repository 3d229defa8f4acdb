"""Round 3: checks of the training, by some steps on a copy of the state."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_trainkit._keras import sublayers
from keras_trainkit._training.as_fit import prepared
from keras_trainkit._training.optimizer import core_optimizer
from keras_trainkit.diagnostics._curves import curve_findings, overfitting
from keras_trainkit.diagnostics._finding import Finding
from keras_trainkit.diagnostics._probe import neighbours_agree
from keras_trainkit.diagnostics._subject import Subject
from keras_trainkit.diagnostics._trial import Run, Trial, penalty
from keras_trainkit.lr_finder import LRFinderResult, find_lr

_FEWEST, _MOST, _RANGE_TEST, _ONE_BATCH = 60, 200, 100, 150
# The loss over the reference: below the first a training makes progress, above the
# second it does not.
_LEARNS, _STAYS = 0.7, 0.9
# Ratio of the model's rate to the better one, too high and too low.
_TOO_HIGH, _TOO_LOW = 3.0, 10.0
# Fraction of the better rate's descent.
_SMALL_PART = 0.3
_DECAY_PER_STEP, _DECAY = 5e-3, 0.5
_DROPOUT = 0.8
_TINY = 1e-4
# Held-out loss over that of a constant, and the neighbours' agreement in deviations.
_SIGNAL, _SIGMAS, _SURE = 0.97, 3.0, 8.0
_GAP = 0.3


@dataclass
class Results:
    """Results of the trial trainings.

    Attributes:
        subject: The model and its data.
        trial: The trial that ran them.
        user: The training with the model as compiled.
        reference: The loss that a training must get below: the first, or that of a
            constant prediction if it is lower.
        trained: Whether the model was much better than a constant before.
        penalty: The sum of the regularizers' penalties at the beginning.
        found: The range test, if the training made no progress.
        better: The training at the rate that the range test suggests.
        one_batch: The loss on one batch before and after training on it alone.
        neighbours: From `neighbours_agree`, if nothing was learned.
        kinds: The kinds found so far.
    """

    subject: Subject
    trial: Trial
    user: Run
    reference: float
    trained: bool
    penalty: float
    found: LRFinderResult | None = None
    better: Run | None = None
    one_batch: tuple[float, float] | None = None
    neighbours: float | None = None
    kinds: set[str] = field(default_factory=set)

    @property
    def rate(self) -> float | None:
        """Return the model's learning rate; None for a schedule."""
        return self.trial.user_rate()

    @property
    def end(self) -> float:
        """Return the lowest loss that a training ended with."""
        runs = [self.user, self.better]
        return min(run.end for run in runs if run is not None)

    def stays(self) -> bool:
        """Whether no training makes progress."""
        return not self.trained and self.end > _STAYS * self.reference


def results_of(subject: Subject, epochs: float, deadline: float, found: Any) -> Results:
    """Train as compiled; if that makes no progress, find out why."""
    length = int(subject.rows / subject.batch_size * epochs)
    most = max(_MOST, length) if epochs > 1 else _MOST
    trial = Trial(subject, int(np.clip(length, _FEWEST, most)), deadline)
    added = penalty(subject.model)
    started = time.perf_counter()
    user = trial.run()
    spent = time.perf_counter() - started
    base = _baseline(subject)
    reference = user.start if base is None else min(base, user.start)
    results = Results(
        subject=subject,
        trial=trial,
        user=user,
        reference=reference,
        trained=base is not None and user.start < _LEARNS * base,
        penalty=added,
        kinds={finding.kind for finding in found},
    )
    learns = user.end < _LEARNS * reference and not _zigzags(user)
    if not learns and not results.trained:
        left = deadline - time.perf_counter()
        if left > 2 * spent / max(user.steps, 1) * _RANGE_TEST:
            _look_closer(results)
    return results


def _zigzags(run: Run) -> list[Finding]:
    curve = {"loss": [run.start, *run.train]}
    return [f for f in curve_findings(curve) if f.kind == "oscillating_loss"]


def _baseline(subject: Subject) -> float | None:
    outputs = subject.outputs
    return outputs[0].baseline() if len(outputs) == 1 else None


def _look_closer(results: Results) -> None:
    """Try another rate, one batch alone, and the data without the network."""
    subject, trial = results.subject, results.trial
    trial.reset()
    with prepared(subject.model):
        results.found = find_lr(
            subject.model,
            subject.x,
            subject.y,
            sample_weight=subject.weights,
            batch_size=subject.batch_size,
            num_steps=_RANGE_TEST,
            seed=subject.seed,
        )
    rate, own = results.found.suggestion, results.rate
    if rate is None and own and own < _TINY:
        # Such a short test may miss a descent.
        rate = 1000 * own
    if rate is not None:
        results.better = trial.run(rate)
    if results.end > _LEARNS * results.reference:
        results.one_batch = trial.one_batch(rate or results.rate, _ONE_BATCH)
        results.neighbours = _neighbours(results)


def _neighbours(results: Results) -> float | None:
    subject = results.subject
    if len(subject.outputs) != 1:
        return None
    output = subject.outputs[0]
    x, y, _ = subject.take(results.trial.rows[:1000])
    held_x, held_y = results.trial.held
    targets = [np.asarray(keras.tree.flatten(part)[0]) for part in (y, held_y)]
    if output.family == "categorical":
        targets = [part.argmax(-1) for part in targets]
    if any(part.size != len(part) for part in targets):
        return None
    return neighbours_agree(
        x, targets[0], held_x, targets[1], output.is_classifier, subject.seed
    )


def regularization(results: Results) -> Iterator[Finding]:
    """Check for penalties or a weight decay that outweigh the loss."""
    optimizer = core_optimizer(results.subject.model)
    decay = float(getattr(optimizer, "weight_decay", None) or 0)
    per_step = decay * (results.rate or 0)
    evidence = ""
    if decay >= _DECAY and per_step >= _DECAY_PER_STEP:
        evidence = f"weight decay removes {per_step:.1%} of each weight in every step"
        remedy = "Use `keras.optimizers.AdamW(1e-3, weight_decay=0.004)`."
    elif (
        results.penalty > results.reference
        and results.user.end > _LEARNS * results.reference
    ):
        evidence = (
            f"the penalties are {results.penalty:.3g} at the beginning, the loss that "
            f"is to be lowered {results.reference:.3g}"
        )
        remedy = (
            "Make the penalties a hundred times smaller or less, such as "
            "`keras.regularizers.L2(1e-4)`."
        )
    if evidence:
        results.kinds.add("regularization_too_strong")
        severity = "error" if results.stays() else "warning"
        yield Finding("regularization_too_strong", severity, "model", evidence, remedy)


def dropout(results: Results) -> Iterator[Finding]:
    """Check for layers that drop nearly everything."""
    found = [
        layer
        for layer in sublayers(results.subject.model)
        if isinstance(layer, layers.Dropout | layers.AlphaDropout)
        and layer.rate >= _DROPOUT
    ]
    if found:
        results.kinds.add("dropout_too_strong")
        yield Finding(
            "dropout_too_strong",
            "warning",
            ", ".join(layer.name for layer in found),
            f"{found[0].rate:.0%} of the units are dropped in every step",
            "Drop less: `keras.layers.Dropout(0.3)`; the argument is the fraction "
            "that is dropped, not the fraction that is kept.",
        )


def learning_rate(results: Results) -> Iterator[Finding]:
    """`learning_rate_too_high` and `learning_rate_too_low`."""
    if results.kinds & {"regularization_too_strong"}:
        return
    rate, user = results.rate, results.user
    better = results.better
    suggested = None if better is None else better.rate
    gain = 0.0 if better is None else results.reference - better.end
    own_gain = results.reference - user.end
    helps = gain > (1 - _STAYS) * results.reference and own_gain < _SMALL_PART * gain
    blown = not np.isfinite(user.end) or user.end > 3 * max(
        user.start, results.reference
    )
    # How many times too high the rate is.
    factor = rate / suggested if rate and suggested else 1.0
    kind = ""
    if blown or (helps and factor > _TOO_HIGH) or (_zigzags(user) and factor > 10):
        kind, text = "learning_rate_too_high", "high"
    elif helps and factor * _TOO_LOW <= 1:
        kind, text = "learning_rate_too_low", "low"
    if not kind:
        return
    results.kinds.add(kind)
    wanted = suggested or (rate / 100 if rate else 1e-3)
    at = "the schedule" if rate is None else f"{rate:.3g}"
    evidence = f"at {at} the loss goes from {user.start:.3g} to {user.end:.3g}"
    if better is not None:
        evidence += f", at {suggested:.3g} to {better.end:.3g}"
    yield Finding(
        kind,
        "error" if helps or blown else "warning",
        "optimizer",
        f"{evidence} in {user.steps} steps: too {text}",
        f"Set `model.optimizer.learning_rate = {wanted:.2g}`"
        + (
            " (a new optimizer if the rate is a schedule)."
            if rate is None
            else ", from the weights that the model began with."
        ),
    )


def oscillating(results: Results) -> Iterator[Finding]:
    """Check for a loss that oscillates."""
    if "learning_rate_too_high" in results.kinds:
        return
    if not results.trained:
        yield from _zigzags(results.user)


def no_signal(results: Results) -> Iterator[Finding]:
    """Check for labels that neither the network nor the nearest rows predict."""
    if results.neighbours is None or results.kinds & _EXPLAINED:
        return
    base = results.subject.outputs[0].baseline(
        np.asarray(keras.tree.flatten(results.trial.held[1])[0])
    )
    if base is None:
        return
    runs = [run for run in (results.user, results.better) if run is not None]
    held = min(float(np.nanmin(run.held)) for run in runs)
    if held > _SIGNAL * base and results.neighbours < _SIGMAS:
        results.kinds.add("labels_carry_no_signal")
        yield Finding(
            "labels_carry_no_signal",
            "warning",
            "y",
            f"the held-out loss is {held:.3g} at best, that of a constant {base:.3g}; "
            "the nearest rows predict the targets no better than permuted ones "
            f"({results.neighbours:.1f} standard deviations)",
            "See whether x and y are still in the same order: look at some rows, "
            "`print(x[:5], y[:5])`, and shuffle them together, "
            "`order = np.random.permutation(len(x)); x, y = x[order], y[order]`.",
        )


_EXPLAINED = {
    "regularization_too_strong",
    "learning_rate_too_high",
    "learning_rate_too_low",
}


def capacity(results: Results) -> Iterator[Finding]:
    """`cannot_overfit_a_batch` and `underfitting`."""
    explained = results.kinds & (_EXPLAINED | {"dropout_too_strong"})
    if results.one_batch is None or explained:
        return
    begin, end = results.one_batch
    if not end < 0.5 * begin:
        yield Finding(
            "cannot_overfit_a_batch",
            "error" if results.stays() else "warning",
            "model",
            f"{_ONE_BATCH} steps on one batch alone take its loss from {begin:.3g} to "
            f"{end:.3g}",
            "The network or the loss is wrong, not the data: look at the gradients, "
            "`kt.diagnostics.signal_report(model, x[:64], y[:64])`, at what scales or "
            "cuts the output, and at layers of very few units; "
            "`keras.layers.Dense(64, activation='relu')` instead.",
        )
    elif (
        results.stays()
        and results.neighbours is not None
        and results.neighbours > _SURE
        and "labels_carry_no_signal" not in results.kinds
    ):
        yield Finding(
            "underfitting",
            "hint",
            "model",
            f"the loss stays at {results.end:.3g}, yet the nearest rows predict the "
            f"targets ({results.neighbours:.0f} standard deviations above chance)",
            "Train for longer, or use a larger network, such as "
            "`kt.models.build_mlp(x.shape[1:], classes)`.",
        )


def overfits(results: Results) -> Iterator[Finding]:
    """Check for a held-out loss that rises, or is far above the training loss."""
    user = results.user
    if results.kinds & _EXPLAINED:
        return
    curves = {"loss": user.train.tolist(), "val_loss": user.held.tolist()}
    found = [f for f in curve_findings(curves) if f.kind == "overfitting"]
    base = _baseline(results.subject)
    if not found and results.trained and base:
        gap = user.start_held - user.start
        if gap > _GAP * base:
            found = [
                overfitting(
                    f"held-out loss {user.start_held:.3g}, training loss "
                    f"{user.start:.3g} as the model is now"
                )
            ]
    yield from found


def history(model: keras.Model) -> Iterator[Finding]:
    """Check the curves of the last `fit`."""
    last = getattr(model, "history", None)
    if last is not None:
        yield from curve_findings(last.history)


CHECKS = (
    regularization,
    dropout,
    learning_rate,
    oscillating,
    no_signal,
    capacity,
    overfits,
)
