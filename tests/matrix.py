"""Every feature with every way to train: pairs that cover all combinations of two.

`python -m tests.matrix` runs the whole on the backend in KERAS_BACKEND and prints a
table; `--only` picks cells. Each cell compares with
something that does not use the feature: the same schedule given to the optimizer by
hand, an exact count of zeros, or the training without it. A refusal is a `ValueError`
that `REFUSALS` names.
"""

import argparse
import itertools
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

import keras_trainkit as kt

BACKEND = keras.backend.backend()
ROWS, BATCH, STEPS = 48, 8, 6
RATE = 0.02
_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(ROWS, 6)).astype("float32")
Y = (X[:, :1] - X[:, 1:2] * X[:, 2:3], X[:, 3:4] + 0.5)

FACTORS: dict[str, tuple[str, ...]] = {
    # `torch.compile` takes minutes for each step.
    "run": ("graph", "eager") if BACKEND == "torch" else ("jit", "graph", "eager"),
    # PyTorch makes one step in each call.
    "calls": ("1",) if BACKEND == "torch" else ("1", "4"),
    "optimizer": ("Adam", "accumulation", "EMA, clipnorm, decay"),
    "dtype": ("float32", "mixed_float16", "mixed_bfloat16"),
    "data": ("arrays", "tf.data", "PyDataset", "DataLoader", "generator"),
    "model": ("functional", "train_step", "two outputs"),
}


class Cell(NamedTuple):
    """A feature and a way to train."""

    feature: str
    run: str
    calls: str
    optimizer: str
    dtype: str
    data: str
    model: str

    @property
    def y(self) -> Any:
        """The targets."""
        return Y if self.model == "two outputs" else Y[0]


# ---------------------------------------------------------------- models and data


class OwnStep(keras.Model):
    """A model with a `train_step` of its own, as in Keras's guides."""

    def train_step(self, *args):
        if BACKEND == "jax":
            return self.jax_step(*args)
        x, y, _ = keras.utils.unpack_x_y_sample_weight(args[0])
        if BACKEND == "tensorflow":
            import tensorflow as tf

            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
                scaled = self.optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
        else:
            import torch

            self.zero_grad()
            loss = self.compute_loss(x, y, self(x, training=True))
            self.optimizer.scale_loss(loss).backward()
            gradients = [v.value.grad for v in self.trainable_variables]
            with torch.no_grad():
                self.optimizer.apply(gradients, self.trainable_variables)
        for metric in self.metrics:
            metric.update_state(loss)
        return {metric.name: metric.result() for metric in self.metrics}

    def jax_step(self, state, data):
        import jax

        weights, others, slots, metrics = state
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)

        def compute(weights, others):
            outputs, others = self.stateless_call(weights, others, x, training=True)
            loss = self.compute_loss(x, y, outputs)
            pairs = zip(self.optimizer.variables, slots, strict=True)
            with keras.StatelessScope(state_mapping=[*pairs]):
                return self.optimizer.scale_loss(loss), (loss, others)

        gradients, (loss, others) = jax.grad(compute, has_aux=True)(weights, others)
        weights, slots = self.optimizer.stateless_apply(slots, gradients, weights)
        (tracker,) = self.metrics
        metrics = tracker.stateless_update_state(metrics, loss)
        logs = {tracker.name: tracker.stateless_result(metrics)}
        return logs, (weights, others, slots, metrics)


def make_optimizer(cell: Cell, rate: Any = RATE, momentum: Any = 0.9) -> Any:
    """The optimizer of a cell."""
    if cell.optimizer == "accumulation":
        return kt.optimizers.SGD(rate, momentum, gradient_accumulation_steps=2)
    options: dict[str, Any] = {}
    if cell.optimizer.startswith("EMA"):
        options = {"use_ema": True, "ema_momentum": 0.9, "clipnorm": 0.5}
        options["weight_decay"] = 0.01
    return kt.optimizers.Adam(rate, momentum, **options)


def compile_(model: keras.Model, cell: Cell, optimizer: Any) -> keras.Model:
    """Compile, and build the loss: Keras's first fit reads a batch for that."""
    how = {"jit": {"jit_compile": True}, "graph": {"jit_compile": False}}
    options = how.get(cell.run, {"run_eagerly": True})
    if BACKEND != "torch":
        options["steps_per_execution"] = int(cell.calls)
    model.compile(optimizer, "mse", **options)
    targets = [keras.ops.convert_to_tensor(part[:2]) for part in as_tuple(cell.y)]
    outputs = model(X[:2])
    y = tuple(targets) if isinstance(cell.y, tuple) else targets[0]
    model.compute_loss(X[:2], y, tuple(outputs) if len(targets) > 1 else outputs)
    return model


def make(cell: Cell, optimizer: Any = None, compiled: bool = True) -> keras.Model:
    """The model of a cell, new, with the same weights and seeds each time."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((6,))
    options = {"dtype": cell.dtype}
    x = keras.layers.Dense(8, "tanh", name="low", **options)(x)
    x = keras.layers.Dense(8, "tanh", name="middle", **options)(x)
    x = keras.layers.Dropout(0.2, **options)(x)
    outputs = keras.layers.Dense(1, name="head", **options)(x)
    if cell.model == "two outputs":
        outputs = (outputs, keras.layers.Dense(1, name="second", **options)(x))
    model = (OwnStep if cell.model == "train_step" else keras.Model)(inputs, outputs)
    if compiled:
        compile_(model, cell, optimizer or make_optimizer(cell))
    return model


def as_tuple(y: Any) -> tuple:
    """Targets, always as a tuple."""
    return y if isinstance(y, tuple) else (y,)


def rows_of(y: Any, rows: Any) -> Any:
    """Some rows of targets."""
    return tuple(part[rows] for part in y) if isinstance(y, tuple) else y[rows]


class Batches(keras.utils.PyDataset):
    """The data, read by two workers."""

    def __init__(self, y):
        super().__init__(workers=2)
        self.y = y

    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        rows = slice(BATCH * index, BATCH * (index + 1))
        return X[rows], rows_of(self.y, rows)


def make_data(cell: Cell) -> dict[str, Any]:
    """The data of a cell, as arguments of `fit`."""
    y = cell.y
    if cell.data == "arrays":
        return {"x": X, "y": y, "batch_size": BATCH}
    if cell.data == "tf.data":
        import tensorflow as tf

        return {"x": tf.data.Dataset.from_tensor_slices((X, y)).batch(BATCH)}
    if cell.data == "PyDataset":
        return {"x": Batches(y)}
    if cell.data == "DataLoader":
        import torch

        def collate(items):
            return torch.tensor(X[items]), rows_of(
                tuple(map(torch.tensor, y))
                if isinstance(y, tuple)
                else torch.tensor(y),
                items,
            )

        loader = torch.utils.data.DataLoader(
            range(ROWS), batch_size=BATCH, collate_fn=collate
        )
        return {"x": loader}
    batches = Batches(y)
    endless = (batches[i % STEPS] for i in itertools.count())
    return {"x": endless, "steps_per_epoch": STEPS}


def fit(
    model: keras.Model,
    cell: Cell,
    callbacks: Any = (),
    epochs: int = 2,
    seeded: bool = True,
) -> dict[str, list]:
    """Train on the data of a cell, in order and with the same dropout on PyTorch."""
    if seeded:
        keras.utils.set_random_seed(1)
    options = {"shuffle": False, "verbose": 0, "epochs": epochs}
    return model.fit(**make_data(cell), callbacks=[*callbacks], **options).history


def array(value: Any) -> np.ndarray:
    """A variable or tensor as an array."""
    return np.array(keras.ops.convert_to_numpy(keras.ops.cast(value, "float32")))


def state(model: keras.Model) -> list[np.ndarray]:
    """Weights, seeds and the optimizer's variables."""
    return [array(v) for v in (*model.variables, *model.optimizer.variables)]


def assert_same(theirs: Any, ours: Any, cell: Cell) -> None:
    """Equal but for rounding: a rate rounded otherwise changes a float16 pass."""
    tolerance = 1e-5 if cell.dtype == "float32" else 2e-3
    for a, b in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)


def assert_equal(theirs: Any, ours: Any) -> None:
    """Equal in every bit."""
    for a, b in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(b, a)


# ---------------------------------------------------------------- features


def by_hand(callback: Callable, rate: Callable, momentum: Callable | None = None):
    """A schedule callback against the same schedule given to the optimizer."""

    def check(cell: Cell, directory: Path) -> None:
        high = 0.9 if momentum is None else momentum()
        theirs = make(cell, make_optimizer(cell, rate(), high))
        ours, plain = make(cell), make(cell)
        fit(theirs, cell)
        history = fit(ours, cell, [callback()])
        assert_same(theirs.get_weights(), ours.get_weights(), cell)
        last = array(rate()(2 * STEPS - 1))
        np.testing.assert_allclose(history["learning_rate"][-1], last, rtol=1e-5)
        fit(plain, cell)
        gap = np.abs(plain.get_weights()[0] - ours.get_weights()[0]).max()
        assert gap > 5e-3, "the schedule must matter"
        np.testing.assert_allclose(array(ours.optimizer.learning_rate), RATE, 1e-6)

    return check


def plateau(cell: Cell, directory: Path) -> None:
    """`PlateauSchedule` against Keras's `ReduceLROnPlateau`."""
    options = {"monitor": "loss", "factor": 0.1, "patience": 1, "min_delta": 9.0}
    theirs, ours = make(cell), make(cell)
    fit(theirs, cell, [keras.callbacks.ReduceLROnPlateau(**options)], epochs=3)
    fit(ours, cell, [kt.callbacks.PlateauSchedule(**options)], epochs=3)
    assert_same(theirs.get_weights(), ours.get_weights(), cell)
    rate = array(ours.optimizer.learning_rate(0))
    np.testing.assert_allclose(rate, RATE / 100, 1e-5)


def automatic(cell: Cell, directory: Path) -> None:
    """`OneCycle("auto")` against the cycle with the rate that it found."""
    cycle = kt.callbacks.OneCycle("auto")
    theirs, ours = make(cell), make(cell)
    fit(ours, cell, [cycle])
    fit(theirs, cell, [kt.callbacks.OneCycle(cycle.found.one_cycle)])
    assert_same(theirs.get_weights(), ours.get_weights(), cell)


def range_losses(cell: Cell) -> np.ndarray:
    """The losses of a range test made by hand, one step in each call."""
    rate = kt.schedules.Lambda(
        lambda t: 1e-4 * 10.0 ** (keras.ops.cast(t, "float32") / 5.5)
    )
    single = cell._replace(calls="1")
    model = make(single, make_optimizer(single, rate))
    losses: list[float] = []

    def keep(batch, logs):
        losses.append(float(logs["loss"]))
        model.reset_metrics()

    fit(model, single, [keras.callbacks.LambdaCallback(on_train_batch_end=keep)])
    return np.array(losses)


_RANGE = {"min_lr": 1e-4, "max_lr": 1e-2, "num_steps": 12}


def finder(cell: Cell, directory: Path) -> None:
    """`LRFinder`: the losses, and nothing left of it."""
    found = kt.callbacks.LRFinder(**_RANGE)
    ours = make(cell)
    before = state(ours)[: len(ours.variables)]
    fit(ours, cell, [found])
    assert_equal(before, state(ours)[: len(ours.variables)])
    assert int(array(ours.optimizer.iterations)) == 0
    assert_same(range_losses(cell), found.result.losses, cell)


def search(cell: Cell, directory: Path) -> None:
    """`find_lr`: the same training after it as without."""
    theirs, ours = make(cell), make(cell)
    data = make_data(cell)
    data.pop("steps_per_epoch", None)
    keras.utils.set_random_seed(1)
    found = kt.find_lr(ours, **data, **{**_RANGE, "num_steps": 10})
    assert len(found.losses) == 10
    assert np.isfinite(found.losses).all()
    fit(ours, cell, epochs=1, seeded=False)
    fit(theirs, cell, epochs=1)
    assert_equal(theirs.get_weights(), ours.get_weights())


def pruning(cell: Cell, directory: Path) -> None:
    """Exact counts of zeros, and an update of all that is left."""
    model = make(cell)
    before = model.get_weights()
    options = {"end_step": 8, "frequency": 2}
    fit(model, cell, [kt.pruning.MagnitudePruning(0.75, **options)])
    for old, new in zip(before, model.get_weights(), strict=True):
        if new.ndim == 2:
            kept = new.size - (new.size - max(round(new.size * 0.25), 1))
            assert np.count_nonzero(new) == kept
            assert np.all(new[new != 0] != old[new != 0])


def clustering(cell: Cell, directory: Path) -> None:
    """Few distinct values, which have moved."""
    model = make(cell)
    before = model.get_weights()
    fit(model, cell, [kt.quantization.Clustering(3)])
    for old, new in zip(before, model.get_weights(), strict=True):
        if new.ndim == 2:
            assert len(np.unique(new)) <= 3
            assert not np.isin(new, old).all()


def gradual(cell: Cell, directory: Path) -> None:
    """`GradualUnfreezing` against layers frozen by hand, and its next stage."""
    heads = ["head", "second"] if cell.model == "two outputs" else ["head"]
    stages = {0: heads, 1: "middle", 9: "low"}
    theirs = make(cell, compiled=False)
    for name in ("low", "middle"):
        theirs.get_layer(name).trainable = False
    compile_(theirs, cell, make_optimizer(cell))
    ours = make(cell)
    fit(theirs, cell, epochs=1)
    fit(ours, cell, [kt.callbacks.GradualUnfreezing(stages)], epochs=1)
    for name in ("low", "middle", "head"):
        layers = theirs.get_layer(name), ours.get_layer(name)
        assert_same(*(layer.get_weights() for layer in layers), cell)
    ours = make(cell)
    low, _, middle = ours.get_weights()[:3]
    fit(ours, cell, [kt.callbacks.GradualUnfreezing(stages)])
    np.testing.assert_array_equal(ours.get_weights()[0], low)
    assert not np.array_equal(ours.get_weights()[2], middle)


def layerwise(cell: Cell, directory: Path) -> None:
    """A multiplier for all layers against the rate times the multiplier."""
    theirs = make(cell, make_optimizer(cell, 0.5 * RATE))
    half = kt.optimizers.layerwise(make_optimizer(cell), {".*": 0.5})
    ours = make(cell, half)
    for model in (theirs, ours):
        fit(model, cell)
    assert_same(theirs.get_weights(), ours.get_weights(), cell)


def watched(callback: Callable, measured: Callable):
    """A callback that only looks, against the training without it."""

    def check(cell: Cell, directory: Path) -> None:
        theirs, ours, watch = make(cell), make(cell), callback(cell)
        fit(theirs, cell)
        fit(ours, cell, [watch])
        assert_equal(theirs.get_weights(), ours.get_weights())
        assert measured(watch)

    return check


def snapshots(cell: Cell, directory: Path) -> None:
    """The mean of the predictions at the end of each cycle."""
    model, every = make(cell), kt.callbacks.Snapshots(1)
    seen: list[Any] = []

    def predict(epoch, logs):
        seen.append(make(cell, compiled=False))
        seen[-1].set_weights(model.get_weights())

    fit(model, cell, [every, keras.callbacks.LambdaCallback(on_epoch_end=predict)])
    single = [one.predict(X, verbose=0) for one in seen]
    mean = every.predict(X).mean
    np.testing.assert_allclose(mean, np.mean(single, 0, "float32"), 1e-3, 1e-3)


def resumable(cell: Cell, directory: Path) -> None:
    """A training in two parts against the unbroken one."""
    theirs = make(cell)
    fit(theirs, cell, [kt.callbacks.OneCycle(0.05, total_steps=2 * STEPS)])
    for epochs in (1, 2):
        ours = make(cell)
        cycle = kt.callbacks.OneCycle(0.05, total_steps=2 * STEPS)
        backup = kt.callbacks.Resumable([cycle], directory, delete=epochs == 2)
        fit(ours, cell, [backup], epochs=epochs)
    assert_same(theirs.get_weights(), ours.get_weights(), cell)


def predictions(cell: Cell, directory: Path) -> None:
    """`mc_predict`: dropout before a linear head has the prediction as its mean."""
    model = make(cell)
    fit(model, cell, epochs=1)
    before = state(model)
    found = kt.uncertainty.mc_predict(model, X, 200, seed=1)
    again = kt.uncertainty.mc_predict(model, X, 200, seed=1)
    assert_equal(before, state(model))
    parts = zip(as_tuple(found), as_tuple(again), strict=True)
    plain = model.predict(X, verbose=0)
    for (one, other), exact in zip(parts, [*as_tuple(plain)], strict=True):
        np.testing.assert_array_equal(one.mean, other.mean)
        error = one.std / np.sqrt(200)
        assert (one.std > 0).all()
        assert (np.abs(one.mean - exact) < 6 * error + 5e-3).all()


def quantized(cell: Cell, directory: Path) -> None:
    """`quantize_aware`: trains, near the float model, which stays as it was."""
    plain = make(cell)
    fit(plain, cell, epochs=1)
    before = state(plain)
    aware = kt.quantization.quantize_aware(plain)
    compile_(aware, cell, make_optimizer(cell, 0.001))
    fit(aware, cell)
    assert_equal(before, state(plain))
    floats = kt.quantization.strip(aware)
    moved = np.abs(floats.get_weights()[0] - plain.get_weights()[0]).max()
    assert 0 < moved < 0.05
    pairs = zip(
        as_tuple(aware.predict(X, verbose=0)),
        as_tuple(floats.predict(X, verbose=0)),
        strict=True,
    )
    for rounded, exact in pairs:
        # Steps of 8 bits over a range of about 3, in three layers.
        np.testing.assert_allclose(rounded, exact, atol=0.08)


_decay = keras.optimizers.schedules
FEATURES: dict[str, Callable[[Cell, Path], None]] = {
    "OneCycle": by_hand(
        lambda: kt.callbacks.OneCycle(0.05),
        lambda: kt.schedules.OneCycle(0.05, 2 * STEPS),
        lambda: kt.schedules.OneCycleMomentum(2 * STEPS),
    ),
    'OneCycle("auto")': automatic,
    "ExponentialSchedule": by_hand(
        lambda: kt.callbacks.ExponentialSchedule(0.1, 1),
        lambda: _decay.ExponentialDecay(0.1, STEPS, 0.1),
    ),
    "PowerSchedule": by_hand(
        lambda: kt.callbacks.PowerSchedule(0.1, 1),
        lambda: _decay.InverseTimeDecay(0.1, STEPS, 1.0),
    ),
    "PiecewiseConstantSchedule": by_hand(
        lambda: kt.callbacks.PiecewiseConstantSchedule([1], [0.05, 0.005]),
        lambda: _decay.PiecewiseConstantDecay([STEPS - 1], [0.05, 0.005]),
    ),
    "ApplySchedule": by_hand(
        lambda: kt.callbacks.ApplySchedule(_decay.CosineDecay(0.05, 12)),
        lambda: _decay.CosineDecay(0.05, 12),
    ),
    "PlateauSchedule": plateau,
    "find_lr": search,
    "LRFinder": finder,
    "MagnitudePruning": pruning,
    "Clustering": clustering,
    "quantize_aware": quantized,
    "GradualUnfreezing": gradual,
    "layerwise": layerwise,
    "mc_predict": predictions,
    "SignalLogger": watched(
        lambda cell: kt.callbacks.SignalLogger(X, cell.y), lambda w: w.reports
    ),
    "Monitor": watched(lambda cell: kt.callbacks.Monitor(X), lambda w: True),
    "NoiseScale": watched(
        lambda cell: kt.callbacks.NoiseScale(X, cell.y, small_batch=1),
        lambda w: w.measured,
    ),
    "Snapshots": snapshots,
    "Resumable": resumable,
}

# Feature, values that it does not go with, and the message that says so.
REFUSALS: tuple[tuple[str, set[str], str], ...] = (
    ('OneCycle("auto")', {"generator"}, "a rate for data that can be read once"),
)


# ---------------------------------------------------------------- the selection


def covering() -> list[Cell]:
    """Cells in which every two values occur together, chosen greedily."""
    columns: list[tuple[str, ...]] = [tuple(FEATURES), *FACTORS.values()]
    open_pairs = {
        ((i, a), (j, b))
        for (i, one), (j, other) in itertools.combinations(enumerate(columns), 2)
        for a in one
        for b in other
    }
    cells = []
    while open_pairs:
        remaining = frozenset(open_pairs)
        first, second = min(open_pairs, key=str)
        row: dict[int, str] = dict((first, second))
        for column, values in enumerate(columns):
            if column not in row:
                chosen = tuple(row.items())

                def gain(value, column=column, remaining=remaining, chosen=chosen):
                    new = (column, value)
                    pairs = {(min(new, old), max(new, old)) for old in chosen}
                    return len(pairs & remaining)

                # Ties in turn, so that no value comes up much more than others.
                turn = len(cells) % len(values)
                row[column] = max((*values[turn:], *values[:turn]), key=gain)
        open_pairs -= set(itertools.combinations(sorted(row.items()), 2))
        cells.append(Cell(*(row[column] for column in range(len(columns)))))
    return cells


def refusal(cell: Cell) -> str | None:
    """The message with which a combination is refused, if it is."""
    for feature, values, message in REFUSALS:
        if cell.feature == feature and values & set(cell):
            return message
    return None


def check(cell: Cell) -> None:
    """Raise unless a cell does what it should."""
    expected = refusal(cell)
    with tempfile.TemporaryDirectory() as directory:
        if expected is None:
            FEATURES[cell.feature](cell, Path(directory))
            return
        try:
            FEATURES[cell.feature](cell, Path(directory))
        except ValueError as error:
            if re.search(expected, str(error)) is None:
                raise
            return
    raise AssertionError(f"not refused: {expected}")


def table(cells: list[Cell], failed: dict[Cell, str]) -> str:
    """What was found, a row for each feature and a column for each way to train."""
    groups = [(name, value) for name, values in FACTORS.items() for value in values]
    lines = ["| | " + " | ".join(value for _, value in groups) + " |"]
    lines.append("|---" * (len(groups) + 1) + "|")
    for feature in FEATURES:
        entries = []
        for name, value in groups:
            here = [
                c for c in cells if c.feature == feature and getattr(c, name) == value
            ]
            marks = {
                "wrong" if c in failed else "refused" if refusal(c) else "yes"
                for c in here
            }
            alone = any(f == feature and value in values for f, values, _ in REFUSALS)
            marks -= set() if alone or "wrong" in marks else {"refused"}
            entries.append(", ".join(sorted(marks)) or "-")
        lines.append(f"| `{feature}` | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the whole on one backend."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="regular expression of the cells")
    options = parser.parse_args()
    cells = [c for c in covering() if re.search(options.only, " ".join(c))]
    failed: dict[Cell, str] = {}
    for cell in cells:
        print("|".join(cell), flush=True)
        keras.utils.clear_session(free_memory=False)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check(cell)
        except Exception as error:
            failed[cell] = f"{type(error).__name__}: {error}"
            print("WRONG", failed[cell][:400].replace("\n", " "), flush=True)
    refused = sum(refusal(cell) is not None for cell in cells)
    summary = (
        f"{len(cells)} cells, {refused} refused as they should, {len(failed)} wrong"
    )
    print(f"{summary}\n\n{table(cells, failed)}")


if __name__ == "__main__":
    main()
