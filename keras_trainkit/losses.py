"""Losses for `compile` that Keras lacks."""

import keras
from keras import ops

from keras_trainkit._checks import check_in_range, reject

__all__ = ["GaussianNLL"]


def __dir__() -> list[str]:
    return __all__


@keras.saving.register_keras_serializable(package="keras_trainkit")
class GaussianNLL(keras.losses.Loss):
    """Negative log likelihood of a normal distribution with a learned variance.

    The model's last layer needs two units per target: first the means, then the
    logarithms of the variances. `mc_predict(..., task="heteroscedastic")` expects the
    same outputs.

        loss = var^beta * (log var + (y - mean)^2 / var) / 2

    The constant `log(2 pi) / 2` is omitted. The gradient treats `var^beta` as a
    constant.

    Args:
        beta: 0 gives the plain likelihood. 0.5 is recommended for neural networks: rows
            with a larger variance get a larger weight, so that the mean is also learned
            where it is poor at first. With 1, the mean is learned as with a mean
            squared error.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.
        dtype: The dtype of the computation.

    Call arguments:
        y_true: The targets, `(rows, outputs)`, or `(rows,)` for one output.
        y_pred: Means and logarithms of variances, `(rows, 2 * outputs)`.

    Raises:
        ValueError: If `beta` is not in `[0, 1]`, or the model does not have two units
            per target.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> model.compile("adam", kt.losses.GaussianNLL(beta=0.5))
        >>> x, y = np.ones((8, 3), "float32"), np.ones(8, "float32")
        >>> history = model.fit(x, y, verbose=0)
        >>> loss = kt.losses.GaussianNLL()
        >>> float(loss(np.array([[1.0]]), np.array([[0.0, 0.0]])))
        0.5

    Reference:
        D. Nix and A. Weigend, Estimating the Mean and Variance of the Target
        Probability Distribution (1994); beta: M. Seitzer et al., On the Pitfalls of
        Heteroscedastic Uncertainty Estimation (2022), arXiv:2203.09168, equation 5.
    """

    def __init__(
        self,
        beta: float = 0.0,
        reduction: str = "sum_over_batch_size",
        name: str = "gaussian_nll",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.beta = check_in_range("beta", beta, 0, 1)

    def call(self, y_true, y_pred):
        units = y_pred.shape[-1]
        if len(y_true.shape) < len(y_pred.shape):
            y_true = ops.expand_dims(y_true, -1)
        if units != 2 * y_true.shape[-1]:
            expected = f"{2 * y_true.shape[-1]} units: a mean and a log variance each"
            reject("y_pred", tuple(y_pred.shape), expected)
        mean, log_variance = ops.split(y_pred, 2, axis=-1)
        error = ops.square(ops.cast(y_true, mean.dtype) - mean)
        loss = (log_variance + error * ops.exp(-log_variance)) / 2
        if self.beta:
            loss = loss * ops.stop_gradient(ops.exp(self.beta * log_variance))
        return ops.mean(loss, axis=-1)

    def get_config(self):
        return {**super().get_config(), "beta": self.beta}
