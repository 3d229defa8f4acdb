"""Log the gradient noise scale during training."""

from typing import Any

import keras

from keras_trainkit._checks import check_integer
from keras_trainkit.batch_size import GradientNoise, gradient_noise_scale


class NoiseScale(keras.callbacks.Callback):
    """Measure `kt.batch_size.gradient_noise_scale` every few epochs and log it.

    The noise scale grows as the loss falls: a batch size that is large enough at the
    beginning may be too small at the end. It appears in the logs as `noise_scale`. The
    callback does not change the training.

    Args:
        x: Inputs as arrays, a few thousand rows.
        y: Their targets.
        every: Number of epochs between measurements; the first is after the first
            epoch.
        small_batch: As in `gradient_noise_scale`.
        max_rows: As in `gradient_noise_scale`.

    Attributes:
        measured: A dict from an epoch, counted from 0, to its `GradientNoise`.

    Raises:
        ValueError: If an argument is wrong.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> x = np.random.default_rng(0).normal(size=(512, 8)).astype("float32")
        >>> y = (x[:, 0] > 0).astype(int)
        >>> model = kt.models.build_mlp((8,), 2, hidden_units=(16,))
        >>> model = kt.models.PRESETS["default"].compile(model)
        >>> noise = kt.callbacks.NoiseScale(x, y, every=2)
        >>> history = model.fit(x, y, epochs=3, callbacks=[noise], verbose=0)
        >>> sorted(noise.measured)
        [0, 2]

    Reference:
        S. McCandlish et al., An Empirical Model of Large-Batch Training (2018),
        arXiv:1812.06162, section 2.4.
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        *,
        every: int = 1,
        small_batch: int = 8,
        max_rows: int = 4096,
    ):
        super().__init__()
        self.x, self.y = x, y
        self.every = check_integer("every", every, minimum=1)
        self.small_batch = check_integer("small_batch", small_batch, minimum=1)
        self.max_rows = check_integer("max_rows", max_rows, minimum=1)
        self.measured: dict[int, GradientNoise] = {}

    def on_train_begin(self, logs=None):
        self.measured = {}

    def on_epoch_end(self, epoch, logs=None):
        if epoch % self.every:
            return
        found = gradient_noise_scale(
            self.model,
            self.x,
            self.y,
            small_batch=self.small_batch,
            max_rows=self.max_rows,
        )
        self.measured[epoch] = found
        if logs is not None:
            logs["noise_scale"] = found.noise_scale
