"""Resume a training run together with the state of its callbacks."""

import inspect
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import (
    check_flag,
    check_items,
    check_path,
    reject,
)
from keras_trainkit._keras import sync_state, torch_rng_state
from keras_trainkit._keras.fitting import begin_at_epoch
from keras_trainkit.callbacks._automatic_rate import RATE_FILE

# Attributes that `fit` sets on a callback; they are not part of its state.
_NOT_STATE = {"model", "_model", "params", "validation_data"}


class Resumable(keras.callbacks.Callback):
    """Back up a training run after each epoch, including the state of its callbacks.

    `keras.callbacks.BackupAndRestore` restores the weights and the optimizer, but
    `EarlyStopping`, `ModelCheckpoint` and `ReduceLROnPlateau` forget their best value
    and their patience, and the history starts empty. Here they are part of the backup,
    and so are the callbacks of this package and your own. The state of a callback is
    what `get_state()` returns and `set_state(state)` accepts, or, if it has no such
    methods, all attributes that are numbers, strings, arrays, or lists, tuples and
    dicts of these, except its arguments.

    Run the same script again in the same directory, and it resumes after the last
    complete epoch, with the weights, optimizer, history, callbacks and dropout seeds of
    that moment. The result equals that of an uninterrupted run if the order of the data
    does not depend on the interruption: with `shuffle=False`, or with data that are
    shuffled by epoch number. Each backup is written to a new file and then renamed, and
    the previous one is kept, so one of them is complete whenever the process is killed.
    The backups are deleted at the end of the training.

    Args:
        callbacks: The callbacks of the fit, in order; pass them only here.
        directory: The folder of the backups.
        delete: Whether to delete the backups at the end of the training.

    Raises:
        ValueError: If `callbacks` are not callbacks; in `fit`, if the backup is of
            another model or of other callbacks.

    Examples:
        >>> import keras, numpy as np, tempfile, keras_trainkit as kt
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("adam", loss="mse")
        >>> stop = keras.callbacks.EarlyStopping("loss", patience=2)
        >>> backup = kt.callbacks.Resumable([stop], tempfile.mkdtemp())
        >>> history = model.fit(x, x[:, 0], epochs=3, callbacks=[backup], verbose=0)
        >>> len(history.history["loss"])
        3
    """

    def __init__(
        self,
        callbacks: Sequence[keras.callbacks.Callback],
        directory: str | os.PathLike,
        delete: bool = True,
    ):
        super().__init__()
        if isinstance(callbacks, keras.callbacks.Callback):
            callbacks = [callbacks]
        self.callbacks = check_items("callbacks", callbacks, "Keras callbacks")
        for callback in self.callbacks:
            if not isinstance(callback, keras.callbacks.Callback):
                reject("callbacks", callback, "Keras callbacks")
        self.directory = self.backup_dir = check_path("directory", directory)
        self.delete = check_flag("delete", delete)
        self._restored: dict[str, Any] | None = None

    def set_model(self, model):
        """Pass the model on to the callbacks."""
        super().set_model(model)
        for callback in self.callbacks:
            callback.set_model(model)

    def set_params(self, params):
        """Pass the parameters of the fit on to the callbacks."""
        super().set_params(params)
        for callback in self.callbacks:
            callback.set_params(params)

    def on_train_begin(self, logs=None):
        _call(self.callbacks, "on_train_begin", logs)
        self._restored = None
        found = _read(self.directory)
        if found is None:
            return
        record, arrays = found
        _check(record, self.callbacks)
        _restore(self.model, arrays, record["sizes"])
        for callback, state in zip(self.callbacks, record["callbacks"], strict=True):
            _set_state(callback, _decoded(state["state"], arrays))
        self._restored = record
        begin_at_epoch(self.model, record["epoch"] + 1)

    def on_epoch_begin(self, epoch, logs=None):
        if self._restored is not None:
            # Only now: Keras clears the history at the beginning of the training.
            history = self.model.history
            history.history.update(self._restored["history"])
            history.epoch[:] = list(range(epoch))
            self._restored = None
        _call(self.callbacks, "on_epoch_begin", epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        _call(self.callbacks, "on_epoch_end", epoch, logs)
        sync_state(self.model)
        arrays: dict[str, np.ndarray] = {}
        sizes = []
        for name, variables in _variables(self.model).items():
            sizes.append(len(variables))
            for place, variable in enumerate(variables):
                value = keras.ops.convert_to_numpy(variable)
                arrays[f"{name}-{place}"] = np.array(value)
        rng = torch_rng_state()
        if rng is not None:
            arrays["rng"] = np.array(rng)
        history = {k: [*v] for k, v in self.model.history.history.items()}
        # Keras appends this epoch's entries after the callbacks have run.
        for name, value in (logs or {}).items():
            history[name] = [*history.get(name, [])[:epoch], float(value)]
        record = {
            "epoch": epoch,
            "sizes": sizes,
            "history": history,
            "callbacks": [
                {"class": type(one).__name__, "state": _encoded(_state(one), arrays)}
                for one in self.callbacks
            ],
        }
        _write(self.directory, record, arrays)

    def on_train_end(self, logs=None):
        _call(self.callbacks, "on_train_end", logs)
        if self.delete:
            for path in (*_files(self.directory), self.directory / RATE_FILE):
                path.unlink(missing_ok=True)

    def on_train_batch_begin(self, batch, logs=None):
        _call(self.callbacks, "on_train_batch_begin", batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        _call(self.callbacks, "on_train_batch_end", batch, logs)

    def on_test_begin(self, logs=None):
        _call(self.callbacks, "on_test_begin", logs)

    def on_test_end(self, logs=None):
        _call(self.callbacks, "on_test_end", logs)

    def on_test_batch_begin(self, batch, logs=None):
        _call(self.callbacks, "on_test_batch_begin", batch, logs)

    def on_test_batch_end(self, batch, logs=None):
        _call(self.callbacks, "on_test_batch_end", batch, logs)


def _call(callbacks: Sequence[Any], hook: str, *args: Any) -> None:
    for callback in callbacks:
        getattr(callback, hook)(*args)


def _variables(model: keras.Model) -> dict[str, list]:
    """Return all that a step changes: weights, statistics, seeds, optimizer."""
    optimizer = model.optimizer
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    return {"model": model.variables, "optimizer": optimizer.variables}


def _restore(model: keras.Model, arrays: dict, sizes: list[int]) -> None:
    every = _variables(model)
    expected = [len(variables) for variables in every.values()]
    pairs = [
        (variable, arrays[f"{name}-{place}"])
        for name, variables in every.items()
        for place, variable in enumerate(variables)
        if f"{name}-{place}" in arrays
    ]
    if sizes != expected or any(tuple(v.shape) != a.shape for v, a in pairs):
        reject("directory", sizes, f"of the backup of this model: {expected} variables")
    for variable, value in pairs:
        variable.assign(value)
    if "rng" in arrays and keras.backend.backend() == "torch":
        import torch

        torch_rng_state(torch.tensor(arrays["rng"]))


def _state(callback: Any) -> Any:
    if hasattr(callback, "get_state"):
        return callback.get_state()
    # Keras flips the sign of some arguments at the beginning of a fit.
    arguments = inspect.signature(type(callback).__init__).parameters
    return {
        name: value
        for name, value in vars(callback).items()
        if name not in {*_NOT_STATE, *arguments} and _is_plain(value)
    }


def _set_state(callback: Any, state: Any) -> None:
    if hasattr(callback, "set_state"):
        callback.set_state(state)
    else:
        vars(callback).update(state)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) for k in value) and all(
            map(_is_plain, value.values())
        )
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biuf"
    return value is None or isinstance(value, bool | int | float | str)


def _encoded(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return a value for JSON; arrays are stored separately."""
    if isinstance(value, dict):
        return {"dict": {k: _encoded(v, arrays) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encoded(v, arrays) for v in value]}
    if isinstance(value, np.ndarray | np.generic):
        name = f"state-{len(arrays)}"
        arrays[name] = np.array(value)
        return {"array": name}
    return value


def _decoded(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {k: _decoded(v, arrays) for k, v in content.items()}
    if kind == "array":
        return arrays[content]
    parts = [_decoded(v, arrays) for v in content]
    return tuple(parts) if kind == "tuple" else parts


def _check(record: dict, callbacks: Sequence[Any]) -> None:
    saved = [one["class"] for one in record["callbacks"]]
    given = [type(one).__name__ for one in callbacks]
    if saved != given:
        reject("callbacks", given, f"those of the backup, {saved}")


def _files(directory: Path) -> list[Path]:
    """The files: the last backup, the one before it, and the one being written."""
    return [directory / f"{name}.npz" for name in ("latest", "previous", "partial")]


def _write(directory: Path, record: dict, arrays: dict[str, np.ndarray]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    latest, previous, partial = _files(directory)
    parts: dict[str, Any] = dict(arrays)
    parts["record"] = np.frombuffer(json.dumps(record).encode(), np.uint8)
    np.savez(partial, **parts)
    if latest.exists():
        os.replace(latest, previous)
    os.replace(partial, latest)


def _read(directory: Path) -> tuple[dict, dict[str, np.ndarray]] | None:
    """Return the last complete backup."""
    for path in _files(directory)[:2]:
        try:
            # Opened here, because NumPy leaves a file open that is not an archive.
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return json.loads(arrays.pop("record").tobytes()), arrays
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue
    return None
