"""The rate of a cycle, found on the data of the fit that is beginning."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from keras_trainkit._checks import reject
from keras_trainkit._keras.fitting import fit_arguments
from keras_trainkit.lr_finder import LRFinderResult, find_lr

RATE_FILE = "keras_trainkit_rate.json"
_INSTEAD = "find it beforehand: OneCycle(kt.find_lr(model, x, y).one_cycle)"


def automatic_rate(
    model: keras.Model, found: LRFinderResult | None
) -> tuple[float, LRFinderResult | None]:
    """The peak of a cycle for the fit in which a callback is being set up.

    Args:
        model: The model, which is as it was afterwards.
        found: What the same callback found before, which is kept.
    """
    fit = fit_arguments(model)
    if found is not None and found.one_cycle is not None:
        return found.one_cycle, found
    if fit is None or type(model).fit is not keras.Model.fit:
        reject("max_lr", "auto", f"a rate outside of Keras's own `fit`; {_INSTEAD}")
    files = [Path(folder, RATE_FILE) for folder in _backups(fit["callbacks"])]
    for file in files:
        if file.exists():
            return float(json.loads(file.read_text("utf-8"))["max_lr"]), None
    if fit["initial_epoch"]:
        expected = "the rate of the training that goes on in epoch "
        reject("max_lr", "auto", f"{expected}{fit['initial_epoch']}")
    result = _found(model, fit)
    rate = result.one_cycle
    if rate is None:
        reject("max_lr", "auto", f"a rate, since none was found ({result.verdict})")
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(".partial")
        scratch.write_text(json.dumps({"max_lr": rate}), encoding="utf-8")
        os.replace(scratch, file)
    if fit["verbose"]:
        print(f"OneCycle: max_lr={rate:.3g}, found in {len(result.lrs)} steps")
    return rate, result


def _found(model: keras.Model, fit: dict[str, Any]) -> LRFinderResult:
    x = fit["x"]
    if isinstance(x, Iterator):
        # Its batches would be missing in the training.
        expected = f"a rate for data that can be read once; {_INSTEAD}"
        reject("max_lr", "auto", expected)
    options = {"sample_weight": fit["sample_weight"], "batch_size": fit["batch_size"]}
    return find_lr(model, x, fit["y"], class_weight=fit["class_weight"], **options)


def _backups(callbacks: Any) -> list[str]:
    """The folders of `BackupAndRestore` and `Resumable`."""
    callbacks = callbacks if isinstance(callbacks, list | tuple) else [callbacks]
    return [one.backup_dir for one in callbacks if hasattr(one, "backup_dir")]
