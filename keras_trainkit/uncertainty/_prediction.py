"""The result of Monte Carlo prediction."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from keras_trainkit._checks import check_in_range, reject
from keras_trainkit._table import Report, Table


@dataclass(frozen=True, repr=False)
class MCPrediction(Report):
    """The result of Monte Carlo prediction for each input.

    Attributes that do not apply to the task are None.

    Attributes:
        mean: Mean of the samples, `(rows, outputs)`.
        std: Standard deviation of the samples, `(rows, outputs)`: the epistemic
            uncertainty, which more training data would lower.
        predictive_entropy: Entropy of the mean in nats, `(rows,)`: the total
            uncertainty; `(rows, outputs)` for a binary task.
        mutual_information: Entropy of the mean minus the mean entropy of the samples,
            in nats, of the same shape: the epistemic part of the uncertainty.
        variation_ratio: Fraction of the samples that vote for another class than the
            majority, of the same shape.
        num_samples: Number of samples; for each row, `(rows,)`, if a `tolerance` was
            given.
        samples: `(num_samples, rows, outputs)`, or None if they were not kept.
        aleatoric_std: Standard deviation of the noise in the data, `(rows, outputs)`,
            from a heteroscedastic head.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> model = keras.Sequential([
        ...     keras.Input((4,)), keras.layers.Dropout(0.5),
        ...     keras.layers.Dense(3, activation="softmax"),
        ... ])
        >>> x = np.ones((5, 4), "float32")
        >>> mc = kt.uncertainty.mc_predict(model, x, 20, seed=0)
        >>> mc.mean.shape, mc.mutual_information.shape
        ((5, 3), (5,))
        >>> most_certain_first = np.argsort(mc.predictive_entropy)
    """

    mean: np.ndarray
    std: np.ndarray
    predictive_entropy: np.ndarray | None
    mutual_information: np.ndarray | None
    variation_ratio: np.ndarray | None
    num_samples: int | np.ndarray
    samples: np.ndarray | None = None
    aleatoric_std: np.ndarray | None = None

    @property
    def total_std(self) -> np.ndarray:
        """Root of the epistemic and the aleatoric variance, `(rows, outputs)`.

        A. Kendall and Y. Gal, What Uncertainties Do We Need (2017), arXiv:1703.04977,
        equation 9.
        """
        if self.aleatoric_std is None:
            return self.std
        return np.hypot(self.std, self.aleatoric_std)

    def quantile(self, q: Any) -> np.ndarray:
        """Quantiles of the samples, linear between them.

        Args:
            q: One or more fractions in `[0, 1]`.

        Returns:
            An array of shape `(*q.shape, rows, outputs)`.

        Raises:
            ValueError: If the samples were not kept.
        """
        if self.samples is None:
            raise ValueError(
                "quantiles need mc_predict(..., keep_samples=True). Received: "
                "samples=None"
            )
        for fraction in np.ravel(q):
            check_in_range("q", fraction, 0, 1)
        return np.quantile(self.samples, q, axis=0)

    def interval(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Return the central credible interval of each output.

        Args:
            level: The fraction of the samples inside, in `(0, 1)`.

        Returns:
            The lower and the upper bound, `(rows, outputs)` each.

        Raises:
            ValueError: If the samples were not kept.
        """
        check_in_range("level", level, 0, 1, closed="neither")
        low, high = self.quantile([(1 - level) / 2, (1 + level) / 2])
        return low, high

    def coverage(self, y: Any, level: float = 0.9) -> float:
        """How many of the true values of a regression are inside the intervals.

        Only where it is about `level` do the intervals say what they seem to:
        `ConformalRegressor` makes it so.

        Args:
            y: The true values, `(rows, outputs)`, or `(rows,)` for one output.
            level: The fraction of the distribution inside, in `(0, 1)`. The interval
                is `interval(level)` where samples were kept and there is no aleatoric
                noise; else that of a normal distribution with `total_std`.

        Returns:
            A fraction, over all rows and outputs.

        Raises:
            ValueError: If the task is no regression, or `y` has another shape.
        """
        if self.predictive_entropy is not None:
            expected = "a regression; for classes, `expected_calibration_error`"
            reject("prediction", "a classification", expected)
        truth = np.asarray(y)
        if truth.shape != self.mean.shape and (
            self.mean.shape[1:] != (1,) or truth.shape != self.mean.shape[:1]
        ):
            reject("y", truth.shape, f"of shape {self.mean.shape}")
        truth = truth.reshape(self.mean.shape)
        if self.samples is not None and self.aleatoric_std is None:
            low, high = self.interval(level)
        else:
            check_in_range("level", level, 0, 1, closed="neither")
            width = NormalDist().inv_cdf((1 + level) / 2) * self.total_std
            low, high = self.mean - width, self.mean + width
        return float(np.mean((low <= truth) & (truth <= high)))

    def summary(self, y: Any = None, level: float = 0.9) -> str:
        """The shapes and the mean uncertainties in one line.

        Args:
            y: The true values of a regression, to add the coverage of its intervals.
            level: As in `coverage`.

        Returns:
            One line.
        """
        means = ", ".join(f"{name} {value}" for name, value in self._means())
        if y is not None:
            covered = self.coverage(y, level)
            means += f"; {level:.0%} intervals cover {covered:.1%} of the true values"
        return f"MCPrediction({self._count()}; in the mean, {means})"

    def _count(self) -> str:
        count = str(self.num_samples)
        if not isinstance(self.num_samples, int):
            count = f"{self.num_samples.min()} to {self.num_samples.max()}"
        return f"{count} samples of {len(self.mean)} rows"

    def _means(self) -> Iterator[tuple[str, str]]:
        if self.predictive_entropy is None or self.mutual_information is None:
            yield "epistemic std", f"{self.std.mean():.3g}"
        else:
            yield "predictive entropy", f"{self.predictive_entropy.mean():.3g} nats"
            yield "mutual information", f"{self.mutual_information.mean():.3g} nats"
        if self.aleatoric_std is not None:
            yield "aleatoric std", f"{self.aleatoric_std.mean():.3g}"

    def _table(self) -> Table:
        return Table(["uncertainty", "mean"], list(self._means()))

    def _notes(self) -> list[str]:
        return [self._count()]


def prediction_of(
    kind: str, sums: dict[str, np.ndarray], same_count: bool
) -> MCPrediction:
    """Return the prediction from sums over samples, for an output of a kind."""
    mean = sums["mean"].astype(np.float64)
    predictive = information = ratio = aleatoric = None
    if "entropy" in sums:
        votes, entropy = sums["votes"], sums["entropy"]
        if kind == "binary":
            predictive = surprise(mean) + surprise(1 - mean)
            winners = np.maximum(votes, count_of(sums, votes) - votes)
        else:
            predictive, winners = surprise(mean).sum(-1), votes.max(-1)
        count = count_of(sums, entropy)
        information = np.maximum(predictive - entropy / count, 0)
        ratio = 1 - winners / count
    if "variance" in sums:
        aleatoric = np.sqrt(sums["variance"] / count_of(sums, mean))
    samples = sums.get("samples")
    return MCPrediction(
        mean=mean,
        std=np.sqrt(sums["squares"] / count_of(sums, mean)),
        predictive_entropy=predictive,
        mutual_information=information,
        variation_ratio=ratio,
        num_samples=int(sums["count"][0]) if same_count else sums["count"],
        samples=None if samples is None else np.swapaxes(samples, 0, 1),
        aleatoric_std=aleatoric,
    )


def surprise(p: np.ndarray) -> np.ndarray:
    """Return the contribution of each probability to the entropy, in nats."""
    return -p * np.log(np.maximum(p, np.finfo(np.float32).tiny))


def count_of(sums: dict[str, np.ndarray], like: np.ndarray) -> np.ndarray:
    """Return the number of samples of each row, shaped to broadcast with an array."""
    return sums["count"].reshape(-1, *[1] * (like.ndim - 1)).astype(np.float64)
