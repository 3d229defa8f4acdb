"""What the notebooks share: how long to train, runs over seeds, tables of results."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import keras
import numpy as np

import keras_trainkit as kt

# Set by `build.py --quick`: everything runs, on little data and for few epochs, to show
# that it does; the figures then mean nothing.
QUICK = bool(os.environ.get("KERAS_TRAINKIT_QUICK"))
SEEDS = (0,) if QUICK else (0, 1, 2)


def epochs(number: int) -> int:
    """The number of epochs, or fewer to be quick."""
    return min(number, 2) if QUICK else number


def load(name: str, **options):
    """The data set; to be quick, a few rows of each part.

    For CIFAR-10, which has to be fetched, the quick run has scikit-learn's digits in
    the shape of its images.
    """
    if not QUICK:
        return kt.datasets.load(name, **options)
    if name == "cifar10":
        options["validation"] = 0.1
    source = "digits" if name == "cifar10" else name
    data = kt.datasets.load(source, **options)
    parts = ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test")
    data = replace(data, **{part: getattr(data, part)[:512] for part in parts})
    if name == "cifar10":
        images = {
            part: np.tile(getattr(data, part), (1, 4, 4, 3))
            for part in parts
            if part.startswith("x_")
        }
        data = replace(data, **images)
    return data


def conditions() -> str:
    """On what, and with what, this runs."""
    backend = keras.backend.backend()
    devices = ", ".join(sorted({name.split(":")[0] for name in _devices()}))
    note = " **A quick run: its figures mean nothing.**" if QUICK else ""
    return (
        f"Keras {keras.__version__} on {backend}, {devices} ({os.cpu_count()} cores), "
        f"Python {platform.python_version()}.{note}"
    )


def _devices() -> list[str]:
    return keras.distribution.list_devices() or ["cpu"]


@dataclass
class Run:
    """One training."""

    model: keras.Model
    history: dict[str, list[float]]
    seconds: float

    @property
    def score(self) -> float:
        """Validation accuracy after the last epoch."""
        return self.history["val_accuracy"][-1]

    @property
    def best(self) -> float:
        """Validation accuracy after the epoch with the lowest validation loss."""
        epoch = int(np.argmin(self.history["val_loss"]))
        return self.history["val_accuracy"][epoch]


def train(
    make: Callable[[], keras.Model],
    data,
    *,
    epochs: int,
    batch_size: int = 128,
    callbacks: Callable[[], list] = list,
    seeds: Sequence[int] = SEEDS,
) -> list[Run]:
    """Train the model that `make` returns, compiled, once for each seed."""
    runs = []
    for seed in seeds:
        keras.utils.set_random_seed(seed)
        model = make()
        start = time.perf_counter()
        history = model.fit(
            *data.train,
            batch_size=batch_size,
            epochs=epochs,
            validation_data=data.validation,
            callbacks=callbacks(),
            verbose=0,
        )
        runs.append(Run(model, history.history, time.perf_counter() - start))
    return runs


def mean_and_spread(scores: Sequence[float]) -> str:
    """Mean ± standard deviation of shares, in percent; of one alone, that one."""
    spread = f" ± {100 * np.std(scores, ddof=1):.1f}" if len(scores) > 1 else ""
    return f"{100 * np.mean(scores):.1f}{spread}"


@dataclass
class Table:
    """Accuracies over seeds beside published ones; a notebook shows it as a table."""

    published_is: str = "published"
    over: str = "seeds"
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    repeats: int = 0

    def add(
        self,
        name: str,
        scores: Sequence[float | Run],
        epochs: int | str,
        published: str = "",
    ) -> None:
        """Add a row: the scores, one for each seed, in `[0, 1]`."""
        values = [s.score if isinstance(s, Run) else float(s) for s in scores]
        self.repeats = len(values)
        self.rows.append((name, str(epochs), mean_and_spread(values), published))

    def _repr_markdown_(self) -> str:
        lines = [
            f"| | epochs | accuracy, % | {self.published_is} |",
            "|---|---|---|---|",
            *("| " + " | ".join(row) + " |" for row in self.rows),
        ]
        note = f"Mean ± standard deviation over {self.repeats} {self.over}."
        return "\n".join([*lines, "", f"{note} {conditions()}"])
