"""`check_up`: find out in three rounds what is wrong with a training."""

import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import keras

from keras_trainkit._checks import check_positive
from keras_trainkit._training.state import as_it_was
from keras_trainkit.diagnostics import _check_batch as batch
from keras_trainkit.diagnostics import _check_data as data
from keras_trainkit.diagnostics import _check_steps as steps
from keras_trainkit.diagnostics._check_labels import labels_and_loss
from keras_trainkit.diagnostics._finding import CheckUp, Finding, in_order
from keras_trainkit.diagnostics._subject import subject_of

Check = Callable[[Any], Iterable[Finding]]

_DATA: tuple[Check, ...] = (
    data.nan_in_data,
    data.input_scale,
    data.constant_feature,
    data.class_imbalance,
    data.rows_again,
    data.too_few_rows,
    labels_and_loss,
)


def check_up(
    model: keras.Model,
    x: Any,
    y: Any = None,
    validation_data: Any = None,
    *,
    epochs: float = 1.0,
    sample_weight: Any = None,
    batch_size: int | None = None,
    time_limit: float = 60.0,
    seed: int = 0,
) -> CheckUp:
    """Find out what is wrong with a training, and what to do about it.

    Checks run in three rounds, the cheapest first: the data, the loss and the output;
    one batch; some steps of training. A round that finds an error is the last. The
    model, its optimizer, the random states and the history are left unchanged, even
    after an error. Checks that do not apply are listed in `skipped`.

    Args:
        model: A compiled model, trained or not.
        x: What `fit` accepts: inputs as an array (or a list or dict of arrays), or an
            iterable of batches, of which the first 20,000 rows are used; a generator is
            consumed.
        y: Targets, if `x` is an array; None for a model that trains without targets, by
            a `train_step`, a `compute_loss` or an `add_loss` of its own.
        validation_data: `(x, y)`, or an iterable of batches; by default a fifth of the
            rows is held out of the trial trainings.
        epochs: Length of the trial training in epochs, but at least 60 steps and, up to
            one epoch, at most 200; 0 skips the third round. With more than one,
            overfitting shows even in a model that has not been trained.
        sample_weight: A weight for each row, if `x` is an array.
        batch_size: Rows per batch if `x` is an array, as in your training; 32 by
            default.
        time_limit: Seconds after which no new trial is started.
        seed: Seed of the choice of rows.

    Returns:
        A `CheckUp`.

    Raises:
        ValueError: If an argument is wrong or the model is not compiled.

    Examples:
        >>> import numpy as np, keras, keras_trainkit as kt
        >>> rng = np.random.default_rng(0)
        >>> x, y = rng.normal(size=(200, 8)).astype("float32"), np.arange(200) % 3
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> found = kt.diagnostics.check_up(model, x, y)
        >>> found.findings[0].kind, found.findings[0].severity
        ('logits_without_from_logits', 'error')

    Reference:
        A. Karpathy, A Recipe for Training Neural Networks (2019). X. Zhang et al.,
        AutoTrainer (2021), arXiv:2002.04562. M. Wardat et al., DeepDiagnosis (2022),
        arXiv:2112.04036.
    """
    started = time.perf_counter()
    check_positive("epochs", epochs, allow_zero=True)
    check_positive("time_limit", time_limit)
    subject = subject_of(model, x, y, validation_data, sample_weight, batch_size, seed)
    asked = _Asked()
    with warnings.catch_warnings(), as_it_was(model):
        # Keras's warnings are about the faults that the checks report.
        warnings.simplefilter("ignore")
        asked.get("outputs", subject.look_at_outputs)
        asked.round(_DATA, subject)
        if asked.goes_on:
            seen = asked.get("one batch", lambda: batch.batch_of(subject))
            asked.round(batch.CHECKS, seen)
        if asked.goes_on and epochs:
            deadline = started + time_limit
            trial = asked.get(
                "some steps",
                lambda: steps.results_of(subject, epochs, deadline, asked.findings),
            )
            asked.round(steps.CHECKS, trial)
        asked.ask(steps.history, model)
    seconds = time.perf_counter() - started
    return CheckUp(in_order(asked.findings), asked.skipped, asked.rounds, seconds)


class _Asked:
    """The findings so far."""

    def __init__(self):
        self.findings: list[Finding] = []
        self.skipped: dict[str, str] = {}
        self.rounds = 0

    @property
    def goes_on(self) -> bool:
        return not any(finding.severity == "error" for finding in self.findings)

    def get(self, name: str, function: Callable[[], Any]) -> Any:
        """Return the result of a function; None if it does not apply here."""
        try:
            return function()
        except Exception as error:
            # A user's own model may raise anything.
            line = (str(error).strip().splitlines() or [""])[0]
            self.skipped[name] = f"{type(error).__name__}: {line}"
            return None

    def round(self, checks: tuple[Check, ...], subject: Any) -> None:
        """Run all checks of a round."""
        if subject is None:
            return
        self.rounds += 1
        for check in checks:
            self.ask(check, subject)

    def ask(self, check: Check, subject: Any) -> None:
        """Run one check; each kind is reported only once."""
        known = {finding.kind for finding in self.findings}
        found = self.get(check.__name__, lambda: list(check(subject)))
        self.findings += [f for f in found or [] if f.kind not in known]
