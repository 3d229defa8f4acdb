"""Find a learning rate on the data of the fit that is about to start."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_trainkit._checks import reject
from keras_trainkit._keras.fitting import fit_arguments
from keras_trainkit._training.as_fit import prepared
from keras_trainkit.lr_finder import LRFinderResult, analyse, find_lr

RATE_FILE = "keras_trainkit_rate.json"
# What `find_lr` takes of the arguments of a fit.
_DATA = ("x", "y", "batch_size", "sample_weight", "class_weight")


def automatic_rate(callback: Any, argument: str, rule: str) -> float:
    """Find the rate for the fit whose callback is being set up.

    The result is stored in `callback.found` and in the backups of the fit. The model
    is left unchanged.

    Args:
        callback: The callback; an earlier result in `found` is reused.
        argument: Which of its arguments is `"auto"`, for errors.
        rule: Which of the rates: `"suggestion"` or `"one_cycle"`.
    """
    if callback.found is not None:
        return _rate(callback.found, argument, rule)
    fit = fit_arguments(callback.model)
    name = type(callback).__name__
    instead = f"find it beforehand: {name}(kt.find_lr(model, x, y).{rule})"
    if callback.optimizer is not None:
        reject(argument, "auto", f"a rate for one of several optimizers; {instead}")
    if fit is None:
        reject(argument, "auto", f"a rate outside of `fit`; {instead}")
    files = [Path(folder, RATE_FILE) for folder in _backups(fit["callbacks"])]
    found = next((_read(file) for file in files if _goes_on(file)), None)
    where = "of the backup"
    if found is None:
        if fit["initial_epoch"]:
            reject(
                argument,
                "auto",
                f"the rate of the training that goes on in epoch "
                f"{fit['initial_epoch']}, which its line and its history show",
            )
        if isinstance(fit["x"], Iterator):
            # The batches used here would be missing from the training.
            expected = f"a rate for data that can be read once; {instead}"
            reject(argument, "auto", expected)
        with prepared(callback.model):
            found = find_lr(callback.model, **{name: fit[name] for name in _DATA})
        where = f"found in {len(found.lrs)} steps"
    rate = _rate(found, argument, rule)
    for file in files:
        _write(file, found)
    if fit["verbose"]:
        print(f"{name}: {argument}={rate:.3g}, {where}")
    callback.found = found
    return rate


def _rate(found: LRFinderResult, argument: str, rule: str) -> float:
    rate = getattr(found, rule)
    if rate is None:
        expected = (
            f"a rate, since a range test found none ({found.verdict}): "
            "`kt.diagnostics.check_up(model, x, y)` looks for the reason"
        )
        reject(argument, "auto", expected)
    return float(rate)


def _backups(callbacks: Any) -> list[str]:
    """Return the folders of `BackupAndRestore` and `Resumable`."""
    callbacks = getattr(callbacks, "callbacks", callbacks)
    callbacks = callbacks if isinstance(callbacks, list | tuple) else [callbacks]
    return [one.backup_dir for one in callbacks if hasattr(one, "backup_dir")]


def _goes_on(file: Path) -> bool:
    """Whether a backup lies beside the rate; without one the training is new."""
    return file.exists() and any(other != file for other in file.parent.iterdir())


def _read(file: Path) -> LRFinderResult:
    saved = json.loads(file.read_text("utf-8"))
    return analyse(saved["lrs"], saved["losses"])


def _write(file: Path, found: LRFinderResult) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".partial")
    saved = {"lrs": found.lrs.tolist(), "losses": found.losses.tolist()}
    scratch.write_text(json.dumps(saved), encoding="utf-8")
    os.replace(scratch, file)
