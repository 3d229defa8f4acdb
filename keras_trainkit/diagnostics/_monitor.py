"""The checks of `check_up`, in a running fit."""

import math
import warnings
from collections import deque
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import (
    check_flag,
    check_integer,
    check_positive,
    reject,
)
from keras_trainkit._keras import sync_state
from keras_trainkit._training.as_fit import batch_as_fit
from keras_trainkit._training.batches import columns, is_arrays
from keras_trainkit._training.recording import leaves, outputs
from keras_trainkit._training.state import as_it_was
from keras_trainkit.diagnostics._check_batch import unit_findings
from keras_trainkit.diagnostics._curves import curve_findings
from keras_trainkit.diagnostics._finding import Finding
from keras_trainkit.diagnostics._subject import take

_BEFORE_A_SPIKE = 20
_SAMPLE = 256


class Monitor(keras.callbacks.Callback):
    """Watch a training run and warn once of each thing that goes wrong.

    After each step it checks the loss of the step; after each epoch it checks the
    curves and, if it has inputs, dead and saturated units. It does not change the
    training. To keep the batch of the first loss that is not finite or is a spike, let
    it supply the batches: `model.fit(monitor.watch(x, y), callbacks=[monitor])`.

    Args:
        x: Inputs on which to check the units, a few hundred rows; by default rows of
            the data passed to `watch`.
        every: Number of epochs between checks of the units.
        spike: A loss this many times the median of the last 20 steps is a spike.
        stop: Whether an error stops the training.
        seed: Seed of the order of the rows in the batches from `watch`.

    Attributes:
        findings: A `kt.diagnostics.Finding` for each thing that went wrong.
        bad_batch: `(x, y)` or `(x, y, sample_weight)` of the first bad step; None if
            there was none, or if the batches did not come from `watch`.
        bad_step: The epoch and the batch of that step, counted from 0.
        bad_layer: The name of the first layer whose output for that batch is not
            finite, computed with the weights from the beginning of the epoch; if all
            outputs are finite, the first layer whose weights no longer are.

    Raises:
        ValueError: If an argument is wrong.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> model = kt.models.build_mlp((4,), 2, hidden_units=(8,))
        >>> model = kt.models.PRESETS["default"].compile(model)
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> monitor = kt.callbacks.Monitor()
        >>> batches = monitor.watch(x, (x[:, 0] > 0).astype(int))
        >>> history = model.fit(batches, epochs=2, callbacks=[monitor], verbose=0)
        >>> monitor.findings, monitor.bad_batch
        ((), None)
    """

    def __init__(
        self,
        x: Any = None,
        *,
        every: int = 1,
        spike: float = 10.0,
        stop: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        self.x = x
        self.every = check_integer("every", every, minimum=1)
        self.spike = check_positive("spike", spike)
        self.stop = check_flag("stop", stop)
        self.seed = check_integer("seed", seed, minimum=0)
        self._watched: _Watched | None = None
        self._begin()

    def watch(
        self, x: Any, y: Any, sample_weight: Any = None, batch_size: int = 32
    ) -> keras.utils.PyDataset:
        """Return batches for `fit`, shuffled in each epoch.

        Args:
            x: Inputs, an array or a list or dict of arrays.
            y: Targets, likewise.
            sample_weight: A weight for each row.
            batch_size: Rows of a batch.
        """
        if not is_arrays(x) or y is None:
            reject("x", type(x), "arrays, with their targets in `y`")
        data = tuple(map(columns, (x, y)))
        if sample_weight is not None:
            data = (*data, columns(sample_weight))
        sizes = {len(array) for array in keras.tree.flatten(data)}
        if len(sizes) > 1:
            reject("x", sorted(sizes), "of as many rows as `y` and `sample_weight`")
        size = check_integer("batch_size", batch_size, minimum=1)
        self._watched = _Watched(data, size, self.seed)
        return self._watched

    def _begin(self) -> None:
        self.findings: tuple[Finding, ...] = ()
        self.bad_batch: tuple | None = None
        self.bad_step: tuple[int, int] | None = None
        self.bad_layer: str | None = None
        self._curves: dict[str, list[float]] = {}
        self._recent: deque[float] = deque(maxlen=_BEFORE_A_SPIKE)

    def on_train_begin(self, logs=None):
        self._begin()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._mean, self._count = epoch, 0.0, 0
        sync_state(self.model)
        # Copies, because JAX donates the old buffers to the compiled step.
        self._weights = [np.array(weight) for weight in self.model.get_weights()]
        if self._watched is not None:
            self._watched.given.clear()

    def on_train_batch_end(self, batch, logs=None):
        mean = float((logs or {}).get("loss", math.nan))
        if self.bad_step is not None or "loss" not in (logs or {}):
            return
        # Keras logs the running mean of the epoch, not the loss of the step.
        steps = batch + 1 - self._count
        loss = (mean * (batch + 1) - self._mean * self._count) / max(steps, 1)
        self._mean, self._count = mean, batch + 1
        usual = float(np.median(self._recent)) if self._recent else math.inf
        full = len(self._recent) == _BEFORE_A_SPIKE
        if not math.isfinite(loss):
            self._bad(batch, f"the loss is {loss}", "error")
        elif full and loss > self.spike * max(usual, 1e-3):
            self._bad(batch, f"the loss is {loss:.3g}, usual {usual:.3g}", "warning")
        self._recent.append(loss)

    def _bad(self, batch: int, evidence: str, severity: str) -> None:
        """Record a bad step and its batch, and warn."""
        self.bad_step = self._epoch, batch
        self.bad_batch = self._given(batch)
        nan_in_batch = not _finite(self.bad_batch)
        self.bad_layer = self._first_bad_layer()
        where = f"epoch {self._epoch}, batch {batch}"
        if self.bad_layer is not None:
            where += f", layer {self.bad_layer}"
        if nan_in_batch:
            remedy = "Look at `monitor.bad_batch` and remove the rows with NaN."
        else:
            remedy = (
                "Lower the learning rate, `model.optimizer.learning_rate = "
                "kt.find_lr(model, x, y).suggestion` before training, and clip the "
                "gradient, `clipnorm=1.0`; look at `monitor.bad_batch`."
            )
        kind = "oscillating_loss" if severity == "warning" else "learning_rate_too_high"
        kind = "nan_in_data" if nan_in_batch else kind
        self._found(Finding(kind, severity, where, evidence, remedy))

    def _first_bad_layer(self) -> str | None:
        model = self.model
        sync_state(model)
        if self.bad_batch is not None:
            with as_it_was(model):
                model.set_weights(self._weights)
                x, *_ = batch_as_fit(model, *self.bad_batch)
                x = keras.tree.map_structure(keras.ops.convert_to_tensor, x)
                found = outputs(model, x, leaves(model), training=True)
            for layer, array in found:
                if not np.isfinite(array).all():
                    return layer.name
        for layer in leaves(model):
            if not all(np.isfinite(weight).all() for weight in layer.get_weights()):
                return layer.name
        return None

    def _given(self, batch: int) -> tuple | None:
        """Return a batch of this epoch, if it came from `watch`."""
        if self._watched is None or batch >= len(self._watched.given):
            return None
        return take(self._watched.data, self._watched.given[batch])

    def _check_weights(self) -> None:
        """Look for weights that are not finite although the loss still is.

        A ReLU can turn NaN into 0 (TensorFlow's does on some CPUs): the loss stays
        finite although the weights before it are lost.
        """
        sync_state(self.model)
        if self.bad_step is not None or _finite(self.model.get_weights()):
            return
        batches = range(self._count)
        broken = (batch for batch in batches if not _finite(self._given(batch)))
        self._bad(next(broken, self._count - 1), "weights are not finite", "error")

    def on_epoch_end(self, epoch, logs=None):
        self._check_weights()
        for name, value in (logs or {}).items():
            self._curves.setdefault(name, []).append(float(value))
        for finding in curve_findings(self._curves):
            self._found(finding)
        x = self._inputs()
        if x is not None and epoch % self.every == 0 and self.bad_step is None:
            sync_state(self.model)
            with as_it_was(self.model):
                x, *_ = batch_as_fit(self.model, x)
                for finding in unit_findings(self.model, x):
                    self._found(finding)

    def _inputs(self) -> Any:
        if self.x is not None or self._watched is None:
            return self.x
        return take(self._watched.data[0], np.arange(min(_SAMPLE, self._watched.rows)))

    def _found(self, finding: Finding) -> None:
        """Warn, but only once for each kind of finding."""
        if finding.kind in {known.kind for known in self.findings}:
            return
        self.findings += (finding,)
        warnings.warn(f"{finding}. {finding.remedy}", stacklevel=2)
        if self.stop and finding.severity == "error":
            self.model.stop_training = True


def _finite(arrays: Any) -> bool:
    """Whether all numbers in arrays are finite."""
    return all(
        np.isfinite(array).all()
        for array in keras.tree.flatten(arrays)
        if array is not None and array.dtype.kind == "f"
    )


class _Watched(keras.utils.PyDataset):
    """Batches that remember which rows they consist of."""

    def __init__(self, data: tuple, batch_size: int, seed: int):
        super().__init__()
        self.data, self.batch_size = data, batch_size
        self.rows = len(keras.tree.flatten(data)[0])
        # The rows of each batch that was read in this epoch.
        self.given: list[np.ndarray] = []
        self._rng = np.random.default_rng(seed)
        self._order = self._rng.permutation(self.rows)

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def __getitem__(self, index: int) -> tuple:
        begin = index * self.batch_size
        rows = self._order[begin : begin + self.batch_size]
        self.given.append(rows)
        return take(self.data, rows)

    def on_epoch_end(self) -> None:
        self._order = self._rng.permutation(self.rows)
