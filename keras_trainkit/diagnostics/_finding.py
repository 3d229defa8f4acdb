"""The results of a check-up."""

from collections.abc import Iterable
from dataclasses import dataclass

from keras_trainkit._table import Report, Table

# Every kind, causes before effects: the order of the findings of one severity.
KINDS = (
    # The data, and the match of data, loss and output.
    "nan_in_data",
    "wrong_loss_for_output",
    "labels_not_integers_or_one_hot",
    "labels_out_of_range",
    "logits_without_from_logits",
    "probabilities_as_logits",
    "activation_of_output_cannot_reach_targets",
    "one_wild_feature",
    "unscaled_inputs",
    "class_imbalance",
    "conflicting_labels",
    "duplicates_across_split",
    "too_few_rows",
    "constant_feature",
    # One batch.
    "nothing_trains",
    "frozen_by_mistake",
    "rows_leak_into_each_other",
    "not_deterministic_at_inference",
    "symmetric_initialization",
    "dead_units",
    "saturated_units",
    "exploding_gradient",
    "output_does_not_depend_on_input",
    "vanishing_gradient",
    "bad_initial_loss",
    "batch_norm_batch_too_small",
    # Some steps.
    "regularization_too_strong",
    "dropout_too_strong",
    "learning_rate_too_high",
    "learning_rate_too_low",
    "oscillating_loss",
    "cannot_overfit_a_batch",
    "labels_carry_no_signal",
    "underfitting",
    "overfitting",
)
SEVERITIES = ("error", "warning", "hint")
# A warning of these kinds comes before errors, because it explains them.
_CAUSES = {
    "one_wild_feature",
    "unscaled_inputs",
    "frozen_by_mistake",
    "dead_units",
    "saturated_units",
    "bad_initial_loss",
    "batch_norm_batch_too_small",
    "regularization_too_strong",
    "dropout_too_strong",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a training.

    Attributes:
        kind: One of the names in the guide "My model does not learn".
        severity: `"error"` if the training cannot work, `"warning"` if it suffers,
            `"hint"` if it may be intended.
        where: The layer, the column, or the argument.
        evidence: The figures that show it.
        remedy: What to do, with code to paste.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> model = kt.models.build_mlp((4,), 2, hidden_units=(8,))
        >>> model = kt.models.PRESETS["default"].compile(model)
        >>> found = kt.diagnostics.check_up(model, 1e4 * x, (x[:, 0] > 0).astype(int))
        >>> finding = found.findings[0]
        >>> finding.kind, finding.severity in ("error", "warning", "hint")
        ('unscaled_inputs', True)
    """

    kind: str
    severity: str
    where: str
    evidence: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.kind} ({self.where}): {self.evidence}"


@dataclass(frozen=True, repr=False)
class CheckUp(Report):
    """The result of a check-up: what is wrong with a training, and what to do.

    Attributes:
        findings: A `Finding` for each fault, errors first, and likely causes before
            their effects.
        skipped: A dict from each check that did not apply to the reason.
        rounds: Number of rounds that ran: 1 for the data, the loss and the output, 2
            for one batch, 3 for some steps. A round with an error is the last, because
            later findings would follow from it.
        seconds: How long it took.

    Examples:
        >>> import keras_trainkit as kt
        >>> found = kt.diagnostics.check_up(model, x_train, y_train)  # doctest: +SKIP
        >>> print(found.summary())  # doctest: +SKIP
        >>> for finding in found.findings:  # doctest: +SKIP
        ...     print(finding.remedy)
    """

    findings: tuple[Finding, ...]
    skipped: dict[str, str]
    rounds: int
    seconds: float

    @property
    def healthy(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return all(finding.severity == "hint" for finding in self.findings)

    def _table(self) -> Table:
        return Table(
            ("finding", "severity", "where"),
            [(f.kind, f.severity, f.where) for f in self.findings]
            or [("nothing found", "", "")],
        )

    def _notes(self) -> list[str]:
        notes = [f"{f.kind}: {f.evidence}. {f.remedy}" for f in self.findings]
        if self.rounds < 3 and self.findings:
            notes.append(
                f"Stopped after round {self.rounds} of 3: fix this, then run it again."
            )
        notes += [f"not judged: {name}: {why}" for name, why in self.skipped.items()]
        return notes


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort errors and what explains them first, then warnings, then hints."""

    def place(finding: Finding) -> tuple[int, int]:
        severity = SEVERITIES.index(finding.severity)
        if severity == 1 and finding.kind in _CAUSES:
            severity = 0
        return severity, KINDS.index(finding.kind)

    return tuple(sorted(findings, key=place))
