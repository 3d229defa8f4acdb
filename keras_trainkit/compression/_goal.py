"""What a compression is to reach, and which candidate is nearest to it."""

from collections.abc import Sequence
from dataclasses import dataclass

from keras_trainkit.compression._result import Candidate


@dataclass(frozen=True)
class Goal:
    """What is asked for.

    Attributes:
        budget: The most that each attribute of a candidate may be.
        max_drop: How much of the metric may be lost; None for any loss.
        before: The metric of the original.
    """

    budget: dict[str, float]
    max_drop: float | None
    before: float

    def excess(self, one: Candidate) -> float:
        """How many times the budget is taken; at most 1 is within."""
        pairs = self.budget.items()
        return max((getattr(one, name) / most for name, most in pairs), default=0.0)

    def too_low(self, one: Candidate) -> float:
        """How much of the metric is lost beyond what may be."""
        if self.max_drop is None:
            return 0.0
        return max(self.before - self.max_drop - one.metric, 0.0)

    def is_met(self, one: Candidate) -> bool:
        """Whether a candidate is all that is asked for."""
        return self.excess(one) <= 1 and not self.too_low(one)

    def best(self, candidates: Sequence[Candidate]) -> Candidate:
        """The candidate to give: the first in the order that `compress` tells."""

        def rank(one: Candidate) -> tuple:
            if self.budget:
                return max(self.excess(one), 1.0), -one.metric
            return self.too_low(one), one.bytes

        return min(candidates, key=rank)

    def __str__(self) -> str:
        limits = [f"{name} <= {most:g}" for name, most in self.budget.items()]
        if self.max_drop is not None:
            limits.append(f"at most {self.max_drop:g} lost")
        return " and ".join(limits)

    def missed(self, one: Candidate) -> str:
        """By how much a candidate misses the goal; empty if it does not."""
        parts = [
            f"{name} is {getattr(one, name):g}"
            for name, most in self.budget.items()
            if getattr(one, name) > most
        ]
        if self.too_low(one):
            parts.append(f"{self.before - one.metric:.4f} is lost")
        return " and ".join(parts)
