"""A cell of the matrix, and what came of it."""

import io
import re
import signal
import sys
import time
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import keras

import keras_trainkit

from . import features
from .checks import Wrong
from .registry import Skip

PACKAGE = str(Path(keras_trainkit.__file__).parent)
SECONDS = 240


@dataclass(frozen=True)
class Outcome:
    """What came of a cell.

    Attributes:
        model: The architecture.
        feature: The feature.
        status: `"works"`, `"refuses"` with a reason of the package's own, `"skipped"`
            where the architecture does not exist here, `"error"` for an error from
            inside, or `"wrong"`.
        detail: The reason.
        seconds: How long it took.
    """

    model: str
    feature: str
    status: str
    detail: str = ""
    seconds: float = 0.0

    @property
    def fails(self) -> bool:
        """Whether it is a fault of the package."""
        return self.status in ("error", "wrong")


def run_cell(model: str, feature: str) -> Outcome:
    """Run a cell. Nothing is raised but Ctrl-C."""
    keras.config.disable_traceback_filtering()
    start = time.perf_counter()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with redirect_stderr(io.StringIO()):
                features.FEATURES[feature](model)
        status, detail = "works", ""
    except Skip as reason:
        status, detail = "skipped", str(reason)
    except Wrong as error:
        status, detail = "wrong", str(error)
    except Exception as error:
        is_refusal = _is_refusal(error)
        status = "refuses" if is_refusal else "error"
        detail = str(error) if is_refusal else _told(error)
    finally:
        signal.alarm(0)
    if status in ("error", "wrong"):
        features.forget()
    seconds = time.perf_counter() - start
    return Outcome(model, feature, status, _one_line(detail), round(seconds, 1))


def _too_long(*_):
    raise TimeoutError(f"took more than {SECONDS} s")


def _is_refusal(error: Exception) -> bool:
    """Whether the package itself raised it, and says what it received."""
    frames = traceback.extract_tb(error.__traceback__)
    return (
        type(error) in (ValueError, TypeError)
        and "Received" in str(error)
        and frames[-1].filename.startswith(PACKAGE)
    )


def _told(error: Exception) -> str:
    """The error, with the line of the package that it went through last."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(PACKAGE)]
    where = ""
    if ours:
        path = Path(ours[-1].filename).relative_to(Path(PACKAGE).parent)
        where = f" [{path}:{ours[-1].lineno}]"
    return f"{type(error).__name__}: {error}{where}"


def _one_line(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"0x[0-9a-f]{6,}", "0x...", text)
    return text if len(text) < 400 else f"{text[:250]} ... {text[-140:]}"


def show(outcome: Outcome) -> None:
    """A line for a cell."""
    line = f"{outcome.status:8} {outcome.model:28} {outcome.feature:24}"
    print(f"{line} {outcome.seconds:5.1f}s {outcome.detail}"[:420])
    sys.stdout.flush()
