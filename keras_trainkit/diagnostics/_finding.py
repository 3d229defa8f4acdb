"""What a check-up finds."""

from collections.abc import Iterable
from dataclasses import dataclass

# Every kind, causes before what they lead to: the order of the findings of a severity.
KINDS = (
    # The data, and the fit between data, loss and output.
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
    "vanishing_gradient",
    "output_does_not_depend_on_input",
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


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a training.

    Attributes:
        kind: What it is, one of the names in the guide "My model does not learn".
        severity: `"error"` where the training cannot work, `"warning"` where it
            suffers, `"hint"` where it may be meant so.
        where: The layer, the column, or the argument.
        evidence: The figures that show it.
        remedy: What to do, with code to paste.
    """

    kind: str
    severity: str
    where: str
    evidence: str
    remedy: str

    def __str__(self) -> str:
        return (
            f"{self.severity}: {self.kind} ({self.where})\n"
            f"  {self.evidence}\n  -> {self.remedy}"
        )


@dataclass(frozen=True, repr=False)
class CheckUp:
    """What is wrong with a training, and what to do about it.

    Attributes:
        findings: A `Finding` for each fault, errors first, and the likely cause before
            what follows from it.
        skipped: What could not be judged, by the name of the check, and why.
        rounds: Number of rounds that were gone through: 1 for the data, the loss and
            the output, 2 for one batch, 3 for some steps. A round with an error is the
            last, since what later ones find would follow from it.
        seconds: How long it took.
    """

    findings: tuple[Finding, ...]
    skipped: dict[str, str]
    rounds: int
    seconds: float

    @property
    def healthy(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return all(finding.severity == "hint" for finding in self.findings)

    def summary(self) -> str:
        """The findings, each with its evidence and its remedy."""
        lines = [str(finding) for finding in self.findings] or ["nothing found"]
        if self.rounds < 3 and self.findings:
            lines.append(
                f"Stopped after round {self.rounds} of 3: mend this, then ask again."
            )
        lines += [f"not judged: {name}: {why}" for name, why in self.skipped.items()]
        return "\n".join(lines)

    __repr__ = summary

    def to_markdown(self) -> str:
        """The findings as a table."""
        lines = ["| severity | finding | where | evidence | remedy |", "|---|" * 1]
        lines[1] = "|---|---|---|---|---|"
        for f in self.findings:
            cells = (f.severity, f"`{f.kind}`", f.where, f.evidence, f.remedy)
            lines.append("| " + " | ".join(_cell(text) for text in cells) + " |")
        return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first; within a severity causes before what they lead to."""
    return tuple(
        sorted(
            findings, key=lambda f: (SEVERITIES.index(f.severity), KINDS.index(f.kind))
        )
    )
