"""Time a training step at each batch size, up to the largest that fits memory."""

import gc
from collections.abc import Sequence

import keras
import numpy as np

from keras_trainkit._stopwatch import latencies
from keras_trainkit._training.as_fit import batch_as_fit, step_as_fit
from keras_trainkit._training.batches import batch_of
from keras_trainkit._training.optimizer import fresh_copy, install
from keras_trainkit._training.state import as_it_was

_TIMED = 5
# What the backends say when memory runs out: TensorFlow and XLA, PyTorch, NumPy.
_OUT_OF_MEMORY = (
    "resource_exhausted",
    "resource exhausted",
    "out of memory",
    "oom",
    "can't allocate memory",
    "unable to allocate",
    "failed to allocate",
)


def seconds_per_step(
    model: keras.Model, data: tuple, rows: int, sizes: Sequence[int]
) -> dict[int, float]:
    """Median seconds of a training step with batches of each size.

    It ends before the first size that memory does not hold. Where there are fewer rows
    than a batch has, they repeat.
    """
    found: dict[int, float] = {}
    for size in sizes:
        try:
            found[size] = _seconds(model, data, np.arange(size) % rows)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            # What the failed step holds would count against what comes next.
            error.__traceback__ = None
            gc.collect()
            break
    return found


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error of any backend says that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    text = f"{type(error).__name__} {error}".lower().replace("outofmemory", "oom")
    return any(words in text for words in _OUT_OF_MEMORY)


def _seconds(model: keras.Model, data: tuple, rows: np.ndarray) -> float:
    batch = batch_as_fit(model, *batch_of(data, rows))
    with as_it_was(model):
        install(model, fresh_copy(model), rewrap=True)
        # The loss comes back as a number, so the step is over.
        (taken,) = latencies([lambda: step_as_fit(model, *batch)], _TIMED)
    return float(np.median(taken))
