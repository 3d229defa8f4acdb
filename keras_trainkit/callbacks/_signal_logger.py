"""Log the signals in each layer during training."""

from pathlib import Path
from typing import Any

import keras

from keras_trainkit._checks import (
    check_integer,
    check_path,
)
from keras_trainkit.diagnostics import SignalReport, signal_report


class SignalLogger(keras.callbacks.Callback):
    """Compute a `kt.diagnostics.signal_report` every few epochs and log it.

    The callback does not change the training.

    Args:
        x: A batch of inputs, a few hundred rows.
        y: Its targets, for gradients and updates.
        every: Number of epochs between reports; the first is after the first epoch.
        log_dir: A folder for TensorBoard, where each figure of each layer is a scalar
            such as `signal/gradient_norm/dense_1`. Needs TensorFlow, as
            `keras.callbacks.TensorBoard` does.

    Attributes:
        reports: A dict from an epoch, counted from 0, to its `SignalReport`.

    Raises:
        ValueError: If `every` is not an integer >= 1.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> model = kt.models.build_mlp((4,), 2, hidden_units=(8,))
        >>> model = kt.models.PRESETS["default"].compile(model)
        >>> x, y = np.eye(4, dtype="float32"), np.array([0, 1, 0, 1])
        >>> logger = kt.callbacks.SignalLogger(x, y, every=2)
        >>> history = model.fit(x, y, epochs=4, callbacks=[logger], verbose=0)
        >>> sorted(logger.reports)
        [0, 2]
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        *,
        every: int = 1,
        log_dir: str | Path | None = None,
    ):
        super().__init__()
        self.x, self.y = x, y
        self.every = check_integer("every", every, minimum=1)
        self.log_dir = None if log_dir is None else check_path("log_dir", log_dir)
        self.reports: dict[int, SignalReport] = {}

    def on_train_begin(self, logs=None):
        self.reports = {}

    def on_epoch_end(self, epoch, logs=None):
        if epoch % self.every:
            return
        report = signal_report(self.model, self.x, self.y)
        self.reports[epoch] = report
        if self.log_dir is not None:
            _write(report, str(self.log_dir), epoch)


def _write(report: SignalReport, log_dir: str, epoch: int) -> None:
    from tensorflow import summary

    figures = ("mean", "std", "dead", "saturated", "gradient_norm", "update_ratio")
    writer = summary.create_file_writer(log_dir)
    with writer.as_default(step=epoch):
        for layer in report.layers:
            for figure in figures:
                value = getattr(layer, figure)
                if value is not None:
                    summary.scalar(f"signal/{figure}/{layer.name}", value)
    writer.close()
