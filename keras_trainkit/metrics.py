"""Metrics for `compile` that Keras lacks."""

from typing import Any

import keras
from keras import ops

from keras_trainkit._checks import (
    check_flag,
    check_integer,
)

__all__ = ["ExpectedCalibrationError"]


def __dir__() -> list[str]:
    return __all__


@keras.saving.register_keras_serializable(package="keras_trainkit")
class ExpectedCalibrationError(keras.metrics.Metric):
    """Expected calibration error: the mean gap between confidence and accuracy.

    Confidences are grouped into bins of equal width, over all rows of an epoch. This is
    the same value as `kt.uncertainty.expected_calibration_error`, as a metric that runs
    in the compiled training step.

    Args:
        num_bins: Number of bins.
        from_logits: Whether the model outputs logits.
        multi_label: Whether the last axis is independent labels with sigmoid outputs.
        name: Name of the metric.
        dtype: The dtype of the computation.

    Call arguments:
        y_true: Labels `(rows,)` or `(rows, 1)`, or one-hot `(rows, classes)`. There may
            be more axes in between, as in segmentation.
        y_pred: `(rows, ..., classes)`, or sigmoid outputs `(rows,)` or `(rows, 1)`.
        sample_weight: A weight for each row.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> model = kt.models.build_mlp((4,), 3, hidden_units=(8,))
        >>> model.compile(
        ...     "adam",
        ...     "sparse_categorical_crossentropy",
        ...     metrics=[kt.metrics.ExpectedCalibrationError(name="ece")],
        ... )
        >>> x, y = np.ones((8, 4), "float32"), np.zeros(8)
        >>> found = model.evaluate(x, y, verbose=0, return_dict=True)
        >>> 0 <= found["ece"] <= 1
        True

    Reference:
        C. Guo et al., On Calibration of Modern Neural Networks (2017),
        arXiv:1706.04599, equation 3.
    """

    def __init__(
        self,
        num_bins: int = 15,
        *,
        from_logits: bool = False,
        multi_label: bool = False,
        name: str = "expected_calibration_error",
        dtype: Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.num_bins = check_integer("num_bins", num_bins, minimum=1)
        self.from_logits = check_flag("from_logits", from_logits)
        self.multi_label = check_flag("multi_label", multi_label)
        zeros = keras.initializers.Zeros()
        self.surplus = self.add_weight(
            shape=(num_bins,), initializer=zeros, name="surplus"
        )
        self.total = self.add_weight(shape=(), initializer=zeros, name="total")

    def update_state(self, y_true, y_pred, sample_weight=None):
        claimed, true = self._claims(
            ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        )
        weights = ops.ones_like(claimed)
        if sample_weight is not None:
            # A row can be a whole image, so broadcast its weight to all of its pixels.
            weights = ops.cast(ops.convert_to_tensor(sample_weight), self.dtype)
            axes = range(len(weights.shape), len(claimed.shape))
            weights = ops.expand_dims(weights, tuple(axes)) * ops.ones_like(claimed)
        bins = ops.ceil(claimed * self.num_bins) - 1
        bins = ops.cast(ops.clip(bins, 0, self.num_bins - 1), "int32")
        surplus = ops.segment_sum(
            ops.reshape((true - claimed) * weights, (-1,)),
            ops.reshape(bins, (-1,)),
            num_segments=self.num_bins,
        )
        self.surplus.assign_add(surplus)
        self.total.assign_add(ops.sum(weights))

    def _claims(self, y_true, y_pred):
        """Return each prediction's confidence, and 1 if it is right or else 0."""
        p = ops.cast(y_pred, self.dtype)
        if self.multi_label or len(p.shape) == 1 or p.shape[-1] == 1:
            p = ops.sigmoid(p) if self.from_logits else p
            if not self.multi_label and len(p.shape) > 1:
                p = ops.squeeze(p, -1)
            return p, ops.reshape(ops.cast(y_true, self.dtype), ops.shape(p))
        p = ops.softmax(p) if self.from_logits else p
        guess = ops.argmax(p, axis=-1)
        one_hot = len(y_true.shape) == len(p.shape) and y_true.shape[-1] == p.shape[-1]
        labels = ops.argmax(y_true, axis=-1) if one_hot else y_true
        labels = ops.reshape(ops.cast(labels, guess.dtype), ops.shape(guess))
        return ops.max(p, axis=-1), ops.cast(ops.equal(guess, labels), self.dtype)

    def result(self):
        gaps = ops.sum(ops.abs(self.surplus.value))
        return ops.divide_no_nan(gaps, self.total.value)

    def get_config(self):
        return {
            **super().get_config(),
            "num_bins": self.num_bins,
            "from_logits": self.from_logits,
            "multi_label": self.multi_label,
        }
