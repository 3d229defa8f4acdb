"""Conformal prediction: sets and intervals with a guaranteed coverage."""

import math
from typing import Any, Self

import numpy as np

from keras_trainkit._checks import (
    check_choice,
    check_flag,
    check_in_range,
    check_integer,
    check_positive,
    reject,
)
from keras_trainkit.uncertainty._outcomes import labels_of, probabilities_of
from keras_trainkit.uncertainty._prediction import MCPrediction


def conformal_quantile(scores: np.ndarray, alpha: float) -> float:
    """Return the score that a new row exceeds with probability at most `alpha`.

    The `ceil((n + 1) (1 - alpha))`-th smallest of `n` scores.

    Raises:
        ValueError: If there are too few scores for a finite value.
    """
    rows = len(scores)
    # Rounded, because floating-point products such as 0.9 * 10 may exceed an integer.
    place = math.ceil(round((rows + 1) * (1 - alpha), 9))
    if place > rows:
        least = math.ceil(round(1 / alpha - 1, 9))
        reject("y", rows, f"at least {least} rows, in each group, for alpha={alpha:g}")
    return float(np.partition(scores, place - 1)[place - 1])


class _Conformal:
    """Base class of both predictors: one quantile, or one for each group."""

    alpha: float
    _quantiles: dict[Any, np.ndarray]

    def _fit_quantiles(self, scores: np.ndarray, groups: Any) -> None:
        """Scores `(rows,)` or `(rows, outputs)`."""
        self._quantiles = {
            group: np.apply_along_axis(
                conformal_quantile, 0, scores[rows], alpha=self.alpha
            )
            for group, rows in _members(groups, len(scores)).items()
        }

    def _quantile_of_rows(self, groups: Any, rows: int) -> np.ndarray:
        """The quantile of each row's group, `(rows,)` or `(rows, outputs)`."""
        if not hasattr(self, "_quantiles"):
            raise ValueError("`fit` must come first. Received: no fit")
        members = _members(groups, rows)
        if unknown := [g for g in members if g not in self._quantiles]:
            reject("groups", unknown[0], f"one of {sorted(self._quantiles, key=str)}")
        some = next(iter(self._quantiles.values()))
        found = np.empty((rows, *np.shape(some)))
        for group, places in members.items():
            found[places] = self._quantiles[group]
        return found


class ConformalClassifier(_Conformal):
    """Predict sets of classes that contain the true one in `1 - alpha` of all cases.

    `fit` uses the outputs of a trained model for rows that it was not trained on. For
    new rows that are exchangeable with those, for any model and however badly it is
    calibrated, the set contains the true class with a probability of at least
    `1 - alpha`, and at most `1 / (rows + 1)` more if no two scores are equal. The
    better the model, the smaller the sets.

    Args:
        method: The score of a class `y`; classes with low scores are in the set.
            `"lac"`: `1 - p(y)`, the smallest sets, which can be empty; `"aps"`: the sum
            of the probabilities from the largest down to `p(y)`, with sets that adapt
            to how hard a row is; `"raps"`: the same with a penalty for each class
            beyond the first few, which keeps the sets small where there are many
            classes.
        alpha: The fraction of cases in which the set may miss, in `(0, 1)`.
        class_conditional: Whether the coverage must hold within each class, with a
            threshold for each (Mondrian). Every class must have at least
            `1 / alpha - 1` rows.
        penalty: Of `"raps"`: what each class beyond `free_classes` adds to the score.
        free_classes: Of `"raps"`: how many classes have no penalty.
        randomized: Of `"aps"` and `"raps"`: whether to subtract a random fraction of
            `p(y)` from the score, as in the papers. This makes the sets smaller, but
            the set of a row then depends on the seed.
        seed: Seed of `randomized`.

    Raises:
        ValueError: If an argument is wrong.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> rng = np.random.default_rng(0)
        >>> p = rng.dirichlet([1, 1, 1], size=2000)  # outputs of a model
        >>> y = np.array([rng.choice(3, p=row) for row in p])
        >>> conformal = kt.uncertainty.ConformalClassifier("aps", alpha=0.1)
        >>> sets = conformal.fit(p[:1000], y[:1000]).predict(p[1000:])
        >>> sets.shape, 0.88 < conformal.coverage(p[1000:], y[1000:]) < 0.92
        ((1000, 3), True)

    Reference:
        A. Angelopoulos and S. Bates, A Gentle Introduction to Conformal Prediction
        (2021), arXiv:2107.07511, sections 1, 2.1 and 4.2; Y. Romano, M. Sesia and
        E. Candes, Classification with Valid and Adaptive Coverage (2020),
        arXiv:2006.02544, equation 5; A. Angelopoulos et al., Uncertainty Sets for Image
        Classifiers (2021), arXiv:2009.14193, equation 4.
    """

    def __init__(
        self,
        method: str = "aps",
        alpha: float = 0.1,
        *,
        class_conditional: bool = False,
        penalty: float = 0.01,
        free_classes: int = 1,
        randomized: bool = False,
        seed: int = 0,
    ):
        self.method = check_choice("method", method, ("aps", "raps", "lac"))
        self.alpha = check_in_range("alpha", alpha, 0, 1, closed="neither")
        self.class_conditional = check_flag("class_conditional", class_conditional)
        self.penalty = check_positive("penalty", penalty, allow_zero=True)
        self.free_classes = check_integer("free_classes", free_classes, minimum=0)
        self.randomized = check_flag("randomized", randomized)
        self.seed = check_integer("seed", seed, minimum=0)

    def fit(self, outputs: Any, y: Any, *, groups: Any = None) -> Self:
        """Find the threshold on held-out rows.

        Args:
            outputs: Probabilities, `(rows, classes)`, or sigmoid outputs `(rows,)` or
                `(rows, 1)`, which count as two classes; or an `MCPrediction`.
            y: Labels or one-hot targets.
            groups: A label for each row, `(rows,)`, if the coverage must hold within
                each group; not with `class_conditional`.

        Returns:
            The object itself.

        Raises:
            ValueError: If the arrays do not match, or a group has too few rows.
        """
        p, labels = self._pairs(outputs, y)
        scores = self._scores(p, np.random.default_rng((self.seed, 0)))
        if self.class_conditional:
            if groups is not None:
                reject("groups", type(groups).__name__, "None with class_conditional")
            if missing := sorted(set(range(p.shape[1])) - set(labels.tolist())):
                reject("y", f"none of class {missing[0]}", "labels of every class")
            groups = labels
        self._classes = p.shape[1]
        self._fit_quantiles(scores[np.arange(len(labels)), labels], groups)
        return self

    def predict(self, outputs: Any, *, groups: Any = None) -> np.ndarray:
        """The set of each row.

        Args:
            outputs: As in `fit`, of any rows.
            groups: The group of each row, where `fit` had groups.

        Returns:
            Booleans `(rows, classes)`: whether a class is in the set.

        Raises:
            ValueError: If `fit` was not called, or the outputs do not match it.
        """
        p = _probabilities(outputs)
        rows = len(p)
        if self.class_conditional and hasattr(self, "_quantiles"):
            found = [self._quantiles[k] for k in range(self._classes)]
            quantiles = np.tile(np.array(found), (rows, 1))
        else:
            quantiles = self._quantile_of_rows(groups, rows)[:, None]
        if p.shape[1] != self._classes:
            reject("outputs", p.shape, f"of {self._classes} classes, as in `fit`")
        return self._scores(p, np.random.default_rng((self.seed, 1))) <= quantiles

    def coverage(self, outputs: Any, y: Any, *, groups: Any = None) -> float:
        """Return the fraction of rows whose set contains the true class.

        Args:
            outputs: As in `predict`.
            y: As in `fit`.
            groups: As in `predict`.
        """
        _, labels = self._pairs(outputs, y)
        sets = self.predict(outputs, groups=groups)
        return float(sets[np.arange(len(labels)), labels].mean())

    def mean_size(self, outputs: Any, *, groups: Any = None) -> float:
        """Return the mean number of classes in a set.

        Args:
            outputs: As in `predict`.
            groups: As in `predict`.
        """
        return float(self.predict(outputs, groups=groups).sum(1).mean())

    def _pairs(self, outputs: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        p = _probabilities(outputs)
        given = np.shape(_mean(outputs))
        return p, labels_of(y, given, p.shape, multi_label=False)

    def _scores(self, p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the score of every class of every row, `(rows, classes)`."""
        if self.method == "lac":
            return 1 - p
        # Stable, so that equal probabilities keep the order of the classes.
        order = np.argsort(-p, axis=1, kind="stable")
        ranked = np.take_along_axis(p, order, axis=1)
        totals = np.cumsum(ranked, axis=1)
        if self.randomized:
            totals = totals - rng.uniform(size=(len(p), 1)) * ranked
        if self.method == "raps":
            ranks = np.arange(1, p.shape[1] + 1)
            totals = totals + self.penalty * np.maximum(ranks - self.free_classes, 0)
        scores = np.empty_like(totals)
        np.put_along_axis(scores, order, totals, axis=1)
        return scores


class ConformalRegressor(_Conformal):
    """Predict intervals that contain the true value in `1 - alpha` of all cases.

    Like `ConformalClassifier`, for numbers. Each output has an interval, and the
    coverage holds for each output separately.

    Args:
        method: `"absolute"`: the prediction plus and minus one width for all rows;
            `"normalized"`: plus and minus a multiple of each row's standard deviation,
            such as that of `mc_predict`; `"cqr"`: the outputs are a lower and an upper
            quantile, from a model trained with the pinball loss, and are adjusted.
        alpha: The fraction of cases in which the interval may miss, in `(0, 1)`.

    Raises:
        ValueError: If an argument is wrong.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> rng = np.random.default_rng(0)
        >>> predicted = rng.normal(size=2000)
        >>> y = predicted + rng.normal(size=2000)
        >>> conformal = kt.uncertainty.ConformalRegressor("absolute", alpha=0.1)
        >>> lower, upper = conformal.fit(predicted[:1000], y[:1000]).predict([0.0])
        >>> bool(1.5 < upper[0] < 1.8)  # 1.64 is that of the normal distribution
        True
        >>> 0.88 < conformal.coverage(predicted[1000:], y[1000:]) < 0.92
        True

    Reference:
        A. Angelopoulos and S. Bates, A Gentle Introduction to Conformal Prediction
        (2021), arXiv:2107.07511, sections 2.2 and 2.3; Y. Romano, E. Patterson and
        E. Candes, Conformalized Quantile Regression (2019), arXiv:1905.03222,
        equation 8.
    """

    def __init__(self, method: str = "absolute", alpha: float = 0.1):
        self.method = check_choice("method", method, ("absolute", "normalized", "cqr"))
        self.alpha = check_in_range("alpha", alpha, 0, 1, closed="neither")

    def fit(self, outputs: Any, y: Any, *, groups: Any = None) -> Self:
        """Find the width on held-out rows.

        Args:
            outputs: For `"absolute"` the predictions, `(rows,)` or `(rows, outputs)`,
                or an `MCPrediction`; for `"normalized"` a pair of predictions and
                standard deviations, or an `MCPrediction`; for `"cqr"` a pair of lower
                and upper quantiles, or one array `(rows, 2)`.
            y: The true values, in the shape of the predictions.
            groups: A label for each row, `(rows,)`, if the coverage must hold within
                each group (Mondrian).

        Returns:
            The object itself.

        Raises:
            ValueError: If the arrays do not match or are not finite, or a group has too
                few rows.
        """
        low, high, scale = self._parts(outputs)
        truth = _like(y, low)
        scores = np.maximum(low - truth, truth - high) / scale
        self._fit_quantiles(scores, groups)
        return self

    def predict(
        self, outputs: Any, *, groups: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The interval of each row.

        Args:
            outputs: As in `fit`, of any rows.
            groups: The group of each row, where `fit` had groups.

        Returns:
            The lower and the upper bound, in the shape of the predictions.

        Raises:
            ValueError: If `fit` was not called, or the outputs do not match it.
        """
        low, high, scale = self._parts(outputs)
        quantiles = self._quantile_of_rows(groups, len(low))
        if quantiles.shape != low.shape:
            reject("outputs", low.shape, f"of shape (rows, *{quantiles.shape[1:]})")
        return low - quantiles * scale, high + quantiles * scale

    def coverage(self, outputs: Any, y: Any, *, groups: Any = None) -> float:
        """Return the fraction of values that are in their interval.

        Args:
            outputs: As in `predict`.
            y: As in `fit`.
            groups: As in `predict`.
        """
        lower, upper = self.predict(outputs, groups=groups)
        truth = _like(y, lower)
        return float(((lower <= truth) & (truth <= upper)).mean())

    def mean_size(self, outputs: Any, *, groups: Any = None) -> float:
        """Return the mean width of an interval.

        Args:
            outputs: As in `predict`.
            groups: As in `predict`.
        """
        lower, upper = self.predict(outputs, groups=groups)
        return float((upper - lower).mean())

    def _parts(self, outputs: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return both bounds before adjustment, and the unit of the adjustment."""
        if self.method == "absolute":
            center = _finite("outputs", _mean(outputs))
            return center, center, np.ones_like(center)
        if self.method == "normalized":
            if isinstance(outputs, MCPrediction):
                outputs = outputs.mean, outputs.total_std
            center, std = _pair(outputs, "predictions and standard deviations")
            if std.min() <= 0:
                reject("outputs", float(std.min()), "with standard deviations > 0")
            return center, center, std
        if not isinstance(outputs, tuple | list):
            both = np.asarray(outputs)
            if both.ndim != 2 or both.shape[1] != 2:
                reject("outputs", both.shape, "a pair of quantiles or (rows, 2)")
            outputs = both[:, 0], both[:, 1]
        low, high = _pair(outputs, "a lower and an upper quantile")
        return low, high, np.ones_like(low)


def _mean(outputs: Any) -> Any:
    return outputs.mean if isinstance(outputs, MCPrediction) else outputs


def _probabilities(outputs: Any) -> np.ndarray:
    given = np.asarray(_mean(outputs))
    if given.ndim not in (1, 2):
        reject("outputs", given.shape, "(rows, classes), (rows,) or (rows, 1)")
    return probabilities_of(given, name="outputs")[0]


def _finite(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim not in (1, 2) or not len(array) or not np.isfinite(array).all():
        reject(name, array.shape, "finite numbers, (rows,) or (rows, outputs)")
    return array


def _pair(outputs: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(outputs, tuple | list) or len(outputs) != 2:
        reject("outputs", type(outputs).__name__, f"a pair of {what}")
    first, second = (_finite("outputs", part) for part in outputs)
    if first.shape != second.shape:
        reject("outputs", (first.shape, second.shape), "a pair of one shape")
    return first, second


def _like(y: Any, like: np.ndarray) -> np.ndarray:
    """Return the targets in the shape of the predictions, up to a last axis of 1."""
    truth = _finite("y", y)
    if truth.size != like.size or len(truth) != len(like):
        reject("y", truth.shape, f"of shape {like.shape}")
    return truth.reshape(like.shape)


def _members(groups: Any, rows: int) -> dict[Any, np.ndarray]:
    """Return the rows of each group; without groups, all rows in the group None."""
    if groups is None:
        return {None: np.arange(rows)}
    labels = np.asarray(groups)
    if labels.shape != (rows,):
        reject("groups", labels.shape, f"{rows} labels")
    return {g: np.flatnonzero(labels == g) for g in np.unique(labels).tolist()}
