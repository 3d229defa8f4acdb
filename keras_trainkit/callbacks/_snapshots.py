"""The models at the lowest points of a cyclic schedule."""

from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import check_integer, reject
from keras_trainkit._keras import sync_state
from keras_trainkit.uncertainty import MCPrediction, ensemble_prediction


class Snapshots(keras.callbacks.Callback):
    """Keeps the weights at the end of each cycle of a cyclic schedule: an ensemble.

    With a rate that falls to near zero and jumps up again, such as Keras's
    `CosineDecayRestarts`, a training passes several minima, whose models differ enough
    that their mean prediction is better than each. It costs no training beyond one.

    Args:
        cycle_epochs: Epochs of a cycle; the weights are kept at the end of each.
        path: Where to write each as a `.keras` file, with `{cycle}` for the number of
            the cycle from 1 on, such as `"snapshot-{cycle}.keras"`; by default they
            stay in memory.

    Attributes:
        weights: The weights of each cycle, as `model.get_weights()` gives them; empty
            where there is a `path`.
        paths: The files that were written.

    Raises:
        ValueError: If an argument is wrong.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> restarts = keras.optimizers.schedules.CosineDecayRestarts(0.1, 4, t_mul=1.0)
        >>> model.compile(keras.optimizers.SGD(restarts), loss="mse")
        >>> snapshots = kt.callbacks.Snapshots(cycle_epochs=2)
        >>> history = model.fit(
        ...     x, x[:, 0], epochs=6, batch_size=32, verbose=0, callbacks=[snapshots]
        ... )
        >>> ensemble = snapshots.predict(x)
        >>> len(snapshots.weights), ensemble.mean.shape, ensemble.std.shape
        (3, (64, 1), (64, 1))

    Reference:
        G. Huang et al., Snapshot Ensembles: Train 1, Get M for Free (2017),
        arXiv:1704.00109, section 3.
    """

    def __init__(self, cycle_epochs: int, path: str | Path | None = None):
        super().__init__()
        self.cycle_epochs = check_integer("cycle_epochs", cycle_epochs, minimum=1)
        self.path = None if path is None else str(path)
        if self.path is not None and "{cycle}" not in self.path:
            reject("path", path, "a path with {cycle} in it, or None")
        self.weights: list[list[np.ndarray]] = []
        self.paths: list[Path] = []

    def on_train_begin(self, logs=None):
        self.weights, self.paths = [], []

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.cycle_epochs:
            return
        sync_state(self.model)
        if self.path is None:
            # Copies, since JAX gives the old buffers up to the compiled step.
            self.weights.append([np.array(w) for w in self.model.get_weights()])
        else:
            path = Path(self.path.format(cycle=(epoch + 1) // self.cycle_epochs))
            self.model.save(path)
            self.paths.append(path)

    def predict(self, x: Any, **options: Any) -> MCPrediction:
        """The predictions of all snapshots as one, after the fit.

        Args:
            x: As in `predict`.
            **options: For `predict`, such as `batch_size`.

        Returns:
            An `MCPrediction`, as `mc_predict` returns it, with a sample for each
            snapshot; for classification if the rows are probabilities.

        Raises:
            ValueError: If there is no snapshot, or the model has several outputs.
        """
        outputs = list(self._outputs(x, {"verbose": 0, **options}))
        if not outputs:
            reject("snapshots", 0, "at least one: end a cycle of a fit first")
        return ensemble_prediction(np.stack(outputs))

    def _outputs(self, x, options):
        if self.paths:
            for path in self.paths:
                yield keras.saving.load_model(path, compile=False).predict(x, **options)
            return
        now = [np.array(w) for w in self.model.get_weights()] if self.weights else []
        try:
            for weights in self.weights:
                self.model.set_weights(weights)
                yield self.model.predict(x, **options)
        finally:
            if self.weights:
                self.model.set_weights(now)
