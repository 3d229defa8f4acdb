"""Snapshot ensembles: keep the weights at the end of each cycle of a schedule."""

from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import check_integer, reject
from keras_trainkit._keras import sync_state
from keras_trainkit.uncertainty import MCPrediction, ensemble_prediction


class Snapshots(keras.callbacks.Callback):
    """Keep the weights at the end of each cycle of a cyclic schedule, as an ensemble.

    If the rate falls to near zero and jumps up again, as in Keras's
    `CosineDecayRestarts`, one training run visits several minima. Their models differ
    enough that their mean prediction is better than that of each one.

    Args:
        cycle_epochs: Epochs per cycle; the weights are kept at the end of each.
        path: Path of the `.keras` files, with `{cycle}` for the number of the cycle,
            counted from 1, such as `"snapshot-{cycle}.keras"`; by default the weights
            stay in memory.

    Attributes:
        weights: The weights of each cycle, as `model.get_weights()` returns them; empty
            if there is a `path`.
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
            # Copies, because JAX donates the old buffers to the compiled step.
            self.weights.append([np.array(w) for w in self.model.get_weights()])
        else:
            path = Path(self.path.format(cycle=(epoch + 1) // self.cycle_epochs))
            self.model.save(path)
            self.paths.append(path)

    def predict(self, x: Any, **options: Any) -> MCPrediction:
        """Combine the predictions of all snapshots, after the fit.

        Args:
            x: As in `predict`.
            **options: Passed to `predict`, such as `batch_size`.

        Returns:
            An `MCPrediction`, as from `mc_predict`, with one sample per snapshot. Rows
            of probabilities are treated as classification.

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
