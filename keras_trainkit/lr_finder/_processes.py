"""Several trainings at a time, each in a process of its own."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from keras_trainkit._checks import reject


@dataclass(frozen=True)
class Settings:
    """What a new process does not have from the one that started it."""

    backend: str
    floatx: str
    image_data_format: str
    dtype_policy: str

    @classmethod
    def current(cls) -> "Settings":
        """Those of this process."""
        return cls(
            keras.backend.backend(),
            keras.config.floatx(),
            keras.config.image_data_format(),
            keras.config.dtype_policy().name,
        )

    def apply(self) -> None:
        """Set those that differ."""
        if self == Settings.current():
            return
        if keras.backend.backend() != self.backend:
            expected = f"as in the other process, {self.backend!r}: set it before"
            reject("KERAS_BACKEND", keras.backend.backend(), expected)
        keras.config.set_floatx(self.floatx)
        keras.config.set_image_data_format(self.image_data_format)
        keras.config.set_dtype_policy(self.dtype_policy)


def in_processes(
    training: Callable[[Any], Any], items: list, n_jobs: int, progress: bool
) -> list:
    """What a function that can be sent to other processes gives for each item."""
    try:
        import joblib
        from joblib.externals.loky.process_executor import (
            BrokenProcessPool,
            TerminatedWorkerError,
        )
        from joblib.parallel import get_active_backend
    except ImportError as error:
        raise ImportError(
            f"`n_jobs={n_jobs}` needs joblib, which scikit-learn brings: "
            "`pip install joblib`."
        ) from error
    # Writable, since PyTorch warns of arrays that are not.
    parallel = joblib.Parallel(n_jobs, verbose=10 * progress, mmap_mode="c")
    backend, _ = get_active_backend()
    if getattr(backend, "supports_sharedmem", False):
        expected = "1 where the backend of joblib has threads: Keras's seeds are shared"
        reject("n_jobs", n_jobs, expected)
    try:
        return parallel(joblib.delayed(training)(item) for item in items)
    except TerminatedWorkerError:
        # It crashed, or ran out of memory.
        raise
    except (pickle.PicklingError, BrokenProcessPool) as error:
        # The last line of what another process says is its error.
        said = str(error.__cause__ or error).strip(" \n'\"").splitlines()[-1][:200]
        expected = (
            "1 where the model that `build` uses, the data or the options of `fit` "
            f"cannot be sent to another process ({said})"
        )
        raise ValueError(
            f"`n_jobs` must be {expected}. Received: n_jobs={n_jobs}"
        ) from error
