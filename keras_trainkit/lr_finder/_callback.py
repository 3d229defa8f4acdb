"""The range test as a callback."""

import contextlib

import keras

from keras_trainkit._checks import reject
from keras_trainkit._keras import sync_state
from keras_trainkit._keras.fitting import fit_arguments
from keras_trainkit._training.state import as_it_was
from keras_trainkit.lr_finder._analyse import LRFinderResult
from keras_trainkit.lr_finder._range_test import (
    RangeTest,
    Watch,
    default_steps,
    random_states_kept,
)


class LRFinder(keras.callbacks.Callback):
    """The range test of `kt.find_lr` as a callback.

    `model.fit(..., callbacks=[finder])` trains for `num_steps` batches while the
    learning rate grows, stops, and restores the model to its state before the fit. The
    loss of each step is recorded inside the compiled step, for any
    `steps_per_execution`.

    Args:
        min_lr: The first learning rate.
        max_lr: The last learning rate.
        num_steps: Number of steps; by default those of the fit, but at least 100 and at
            most 300.
        scale: `"exponential"` or `"linear"` growth of the rate.
        optimizer: As in `kt.find_lr`.
        monitor: As in `kt.find_lr`.

    Attributes:
        result: An `LRFinderResult`, after the fit.

    Raises:
        ValueError: If an argument is wrong; from `fit`, if it has fewer than 10 steps.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(256, 8)).astype("float32")
        >>> model = kt.models.build_mlp((8,), 2, hidden_units=(16,))
        >>> model = kt.models.PRESETS["default"].compile(model)
        >>> finder = kt.callbacks.LRFinder()
        >>> history = model.fit(
        ...     x, (x[:, 0] > 0).astype(int), epochs=20, callbacks=[finder], verbose=0
        ... )
        >>> 1e-4 < finder.result.suggestion < 1
        True

    Reference:
        L. Smith, Cyclical Learning Rates for Training Neural Networks (2015),
        arXiv:1506.01186, section 3.3.
    """

    def __init__(
        self,
        min_lr: float = 1e-7,
        max_lr: float = 10.0,
        num_steps: int | None = None,
        scale: str = "exponential",
        optimizer: str | None = None,
        monitor: str = "loss",
    ):
        super().__init__()
        if not isinstance(monitor, str):
            reject("monitor", monitor, "the name of a quantity")
        if not isinstance(optimizer, str | None):
            reject("optimizer", optimizer, "the name of an optimizer, or None")
        # Only to check the arguments; the number of steps depends on the fit.
        RangeTest(min_lr, max_lr, 100 if num_steps is None else num_steps, scale)
        self.min_lr, self.max_lr, self.scale = min_lr, max_lr, scale
        self.num_steps = num_steps
        self.optimizer, self.monitor = optimizer, monitor
        self.result: LRFinderResult | None = None
        self._kept = contextlib.ExitStack()

    def set_params(self, params):
        """Install the growing rate before `fit` compiles its step."""
        super().set_params(params)
        self.restore()
        steps, epochs = self.params["steps"], self.params["epochs"]
        num_steps = self.num_steps
        if num_steps is None:
            num_steps = default_steps(steps)
            if steps is not None:
                num_steps = min(num_steps, steps * epochs)
        self._test = RangeTest(
            self.min_lr,
            self.max_lr,
            num_steps,
            self.scale,
            self.optimizer,
            self.monitor,
        )
        self._watch = Watch(self._test)
        self._watch.set_model(self.model)
        self._kept.enter_context(random_states_kept())
        self._kept.enter_context(as_it_was(self.model, _reads_ahead(self.model)))
        self._kept.enter_context(self._test.installed(self.model))

    def on_train_batch_end(self, batch, logs=None):
        self._watch.on_train_batch_end(batch, logs)

    def on_train_end(self, logs=None):
        sync_state(self.model)
        if self._test.steps:
            self.result = self._test.result()
        self.restore()

    def restore(self) -> None:
        """Restore the model; needed only if the fit raised or was interrupted."""
        self._kept.close()


def _reads_ahead(model: keras.Model) -> bool:
    """Whether the data are read by workers, of which a model's first fit reads more."""
    data = (fit_arguments(model) or {}).get("x")
    return isinstance(data, keras.utils.PyDataset) and data.workers > 1
