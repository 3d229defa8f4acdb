"""`mc_predict`: Monte Carlo prediction with active dropout."""

import random
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import keras
import numpy as np

from keras_trainkit._checks import (
    check_choice,
    check_integer,
    check_positive,
    refusing,
    reject,
    reject_model,
)
from keras_trainkit._keras import functional_part
from keras_trainkit._model import graph as _graph
from keras_trainkit._training.batches import batches_of, columns, num_rows
from keras_trainkit.uncertainty._engine import Engine, Trial
from keras_trainkit.uncertainty._prediction import (
    count_of,
    prediction_of,
)
from keras_trainkit.uncertainty._sums import Sums, merged

_TASKS = ("classification", "logits", "binary", "regression", "heteroscedastic")
# Number of samples between checks of the standard error.
_ROUND = 20
# Compiled functions live as long as the Functional model they belong to.
_engines: WeakKeyDictionary[Any, Engine] = WeakKeyDictionary()


def mc_predict(
    model: keras.Model,
    x: Any,
    num_samples: int = 100,
    batch_size: int | None = None,
    noise: str = "independent",
    seed: int | None = None,
    keep_samples: bool = False,
    *,
    task: Any = None,
    tolerance: float | None = None,
    verbose: int = 0,
) -> Any:
    """Predict many times with active dropout, and summarize the samples.

    The layers that no dropout affects run once per batch; the rest runs in a loop
    inside one compiled function, which is reused by the next call as long as only the
    values of variables have changed. Everything except dropout is as in `predict`:
    BatchNorm, augmentation and noise layers are in inference mode, and no random
    generator advances. A mask depends only on the seed, the number of the sample and
    the number of the row, so the batch size does not change the result.

    Under a `keras.distribution` on JAX the devices along the batch axis share the rows
    of a batch, or the samples if several are computed at once. The samples for a seed
    are those of one device.

    If the output for a row depends on the other rows, as for the nodes of a graph, a
    batch is processed as a whole: all rows of arrays are one batch unless `batch_size`
    is given, and `noise` makes no difference.

    Args:
        model: A model with dropout: `Dropout`, `AlphaDropout`, `GaussianDropout`,
            `SpatialDropout1D/2D/3D`, the `dropout` and `recurrent_dropout` of
            recurrent layers and of `MultiHeadAttention`, `Attention` and
            `AdditiveAttention`, in nested models, wrappers and your own layers, and
            those of `kt.layers`. A subclassed model works too, but is compiled at each
            call. The model is not changed.
        x: As for `model.predict`: arrays of shape `(rows, *input_shape)`, a list or a
            dict of them, a `keras.utils.PyDataset`, a `tf.data.Dataset`, or another
            iterable of batches that ends. A KerasHub task preprocesses them.
        num_samples: Number of samples.
        batch_size: Rows per batch; by default what fits the processor's caches. A
            dataset has its own.
        noise: `"independent"`: each row has its own masks. `"shared"`: in each sample
            all rows have the same masks, so that a sample is one function and
            differences between rows are meaningful; also faster.
        seed: Integer seed of the masks; by default a new one at each call.
        keep_samples: Whether to keep all samples, which needs `num_samples` times the
            memory.
        task: What the outputs are: `"classification"` (probabilities that sum to 1),
            `"logits"` of such, `"binary"` (independent probabilities),
            `"regression"`, or `"heteroscedastic"` (in the last axis first the means,
            then as many logarithms of variances). By default classification if the
            outputs sum to 1, binary after a sigmoid, and otherwise regression. For
            several outputs, one task each, in the structure of the outputs.
        tolerance: Stop adding samples to a row as soon as the standard error of its
            mean is below this for every output; `num_samples` is then the maximum. It
            is checked every 20 samples.
        verbose: 1 for a progress bar.

    Returns:
        An `MCPrediction`; for a model with several outputs a list or dict of them, as
        from `predict`.

    Raises:
        ValueError: If an argument is wrong, or the model has no dropout.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> model = keras.Sequential([
        ...     keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)
        ... ])
        >>> x = np.ones((3, 4), "float32")
        >>> mc = kt.uncertainty.mc_predict(model, x, 50, seed=0, keep_samples=True)
        >>> mc.mean.shape, mc.std.shape, mc.samples.shape
        ((3, 1), (3, 1), (50, 3, 1))
        >>> low, high = mc.interval(0.9)
        >>> bool((low <= mc.mean).all() and (mc.mean <= high).all())
        True

    References:
        Y. Gal, Uncertainty in Deep Learning (2016), section 3.3.

        A. Kendall and Y. Gal, What Uncertainties Do We Need (2017), arXiv:1703.04977,
        equation 9, for the heteroscedastic task.
    """
    check_integer("num_samples", num_samples, minimum=1)
    check_choice("noise", noise, ("independent", "shared"))
    if tolerance is not None:
        check_positive("tolerance", tolerance)
        if keep_samples:
            reject("keep_samples", keep_samples, "False where a tolerance is given")
    if seed is None:
        # As in Keras's layers, it depends on `keras.utils.set_random_seed`.
        seed = random.getrandbits(32)
    check_integer("seed", seed, minimum=0)
    words = seed_words(seed)
    engine = _engine_of(model)
    batches, number = _batches(model, engine, x, batch_size)
    bar = keras.utils.Progbar(number, verbose=verbose)
    trial: Trial | None = None
    outputs, size, done = [], 0, 0
    parts: list[list[Sums]] = []
    for step, inputs in enumerate(batches):
        before, trial = trial, _try_out(engine, inputs)
        if trial is not before:
            outputs = _outputs(engine, trial.sample, task)
            size = len(inputs[0])
        if trial.whole and tolerance is not None:
            reject("tolerance", tolerance, "None where rows depend on each other")
        rows = len(inputs[0])
        draw = _Draw(engine, inputs, done, words, outputs, noise, keep_samples)
        if trial.whole:
            parts.append(draw(np.arange(rows), 0, num_samples, whole=True))
        else:
            # All batches have the size of the first, because each size is compiled.
            chosen = np.minimum(np.arange(max(size, rows)), rows - 1)
            if tolerance is None:
                sums = draw(chosen, 0, num_samples)
            else:
                sums = _until_sure(draw, chosen, num_samples, tolerance)
            parts.append([{name: a[:rows] for name, a in p.items()} for p in sums])
        done += rows
        bar.update(step + 1)
    if trial is None:
        reject("x", x, "at least one row")
    engine.settle()
    results = [
        prediction_of(kind, _joined(of_output), tolerance is None)
        for (kind, _), of_output in zip(outputs, zip(*parts, strict=True), strict=True)
    ]
    return keras.tree.pack_sequence_as(trial.sample, results)


def seed_words(seed: int) -> np.ndarray:
    """Return the two 32-bit words that seed the masks."""
    return np.random.SeedSequence(seed).generate_state(2).view(np.int32)


def _joined(parts: Sequence[Sums]) -> Sums:
    shapes = {part["mean"].shape[1:] for part in parts}
    if len(shapes) > 1:
        reject("x", sorted(shapes), "batches whose outputs have one shape for each row")
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _engine_of(model: Any) -> Engine:
    """Return the engine of the last call with this model if it is still valid."""
    if not isinstance(model, keras.Model):
        reject_model(model, "a keras.Model")
    if not _graph.is_graph(model):
        return Engine(model)
    # A Sequential model gets a new one when a layer is added or removed.
    graph = functional_part(model)
    if graph not in _engines or not _engines[graph].is_up_to_date():
        _engines[graph] = Engine(model)
    return _engines[graph]


def _batches(
    model: keras.Model, engine: Engine, x: Any, batch_size: int | None
) -> tuple[Iterator[list[np.ndarray]], int | None]:
    """Return batches as lists of arrays, and their number if it is known."""
    if hasattr(x, "shape") or isinstance(x, list | tuple | dict):
        arrays = [np.asarray(a) for a in _flat(engine, preprocessed(model, columns(x)))]
        if batch_size is not None:
            check_integer("batch_size", batch_size, minimum=1)
        if not all(a.ndim and len(a) for a in arrays):
            reject("x", [a.shape for a in arrays], "at least one row")
        first = [a[:batch_size] for a in arrays]
        if batch_size is None and _try_out(engine, first).whole:
            return iter([arrays]), 1
        rows = num_rows(arrays)
        batch_size = batch_size or engine.batch_size()
        # Of nearly equal size, so that little padding is needed.
        size = -(-rows // -(-rows // batch_size))
        starts = range(0, rows, size)
        return ([a[i : i + size] for a in arrays] for i in starts), len(starts)
    if batch_size is not None:
        reject("batch_size", batch_size, "None, since `x` makes its own batches")
    batches, number = batches_of(x)
    if isinstance(x, keras.utils.PyDataset) and number is None:
        reject("x", x, "a PyDataset with a number of batches")
    return (
        [
            keras.ops.convert_to_numpy(a)
            for a in _flat(engine, preprocessed(model, inputs))
        ]
        for inputs, *_ in batches
    ), number


def _try_out(engine: Engine, arrays: list[np.ndarray]) -> Trial:
    """Run a trial pass, of rows or, if they are not independent, of the whole."""
    lengths = {len(a) for a in arrays}
    with refusing("x", arrays, "inputs that the model takes"):
        try:
            return engine.try_out(arrays, len(lengths) > 1)
        except Exception:
            if len(lengths) > 1:
                num_rows(arrays)
            raise


def preprocessed(model: keras.Model, x: Any) -> Any:
    """Preprocess inputs as a KerasHub task does in `predict`."""
    preprocess = getattr(model, "preprocess_samples", None)
    if preprocess is None or getattr(model, "preprocessor", None) is None:
        return x
    return keras.utils.unpack_x_y_sample_weight(preprocess(x))[0]


def _flat(engine, x):
    try:
        flat = engine.network.flatten(x)
    except KeyError:
        flat = None
    if flat is None or len(flat) != (engine.network.num_inputs or len(flat)):
        reject("x", keras.tree.map_structure(np.shape, x), "the model's inputs")
    return flat


class _Draw:
    """Draw samples of some rows of a batch."""

    def __init__(self, engine, inputs, start, seed, outputs, noise, keep):
        self._engine, self._inputs, self._start = engine, inputs, start
        self._seed, self._outputs = seed, outputs
        self._shared, self._keep = noise == "shared", keep

    def __call__(
        self, chosen: np.ndarray, first: int, count: int, whole: bool = False
    ) -> list[Sums]:
        asked = len(chosen)
        if not whole:
            chosen = self._engine.filled(chosen)
        inputs = self._inputs if whole else [a[chosen] for a in self._inputs]
        outputs = [
            (kind, shape if whole else (len(chosen), *shape[1:]))
            for kind, shape in self._outputs
        ]
        rows = (self._start + chosen).astype(np.int32)
        plan = self._engine.plan(
            inputs, outputs, count, self._shared, self._keep, whole
        )
        all_sums = self._engine.draw(inputs, rows, self._seed, first, plan)
        if len(chosen) > asked:
            all_sums = [{k: a[:asked] for k, a in sums.items()} for sums in all_sums]
        return [
            {**sums, "count": np.full(len(sums["mean"]), count)} for sums in all_sums
        ]


def _until_sure(
    draw: _Draw, chosen: np.ndarray, most: int, tolerance: float
) -> list[Sums]:
    """Draw in rounds, each for the rows whose mean is not precise enough yet."""
    first = min(_ROUND, most)
    total = draw(chosen, 0, first)
    while first < most:
        errors = []
        for sums in total:
            n = count_of(sums, sums["mean"])
            error = np.sqrt(sums["squares"] / (n - 1) / n)
            errors.append(error.reshape(len(error), -1).max(1))
        worst = np.max(errors, axis=0)
        unsure = np.flatnonzero(worst >= tolerance)
        if not len(unsure):
            break
        # Only the batch size halved repeatedly, because each size is compiled.
        size = len(chosen)
        while (size + 1) // 2 >= len(unsure) and size > 1:
            size = (size + 1) // 2
        count = min(_ROUND, most - first)
        filled = unsure[np.minimum(np.arange(size), len(unsure) - 1)]
        for sums, new in zip(total, draw(chosen[filled], first, count), strict=True):
            _merge(sums, new, unsure)
        first += count
    return total


def _merge(sums: Sums, new: Sums, rows: np.ndarray) -> None:
    """Merge further samples of some rows into the sums."""
    new = {name: a[: len(rows)] for name, a in new.items()}
    before = {name: a[rows] for name, a in sums.items()}
    count, number = (count_of(part, part["mean"]) for part in (before, new))
    together = merged(before, count, new, number)
    for name in sums:
        sums[name] = sums[name].copy()
        sums[name][rows] = together[name]


def _outputs(
    engine: Engine, sample: Any, task: Any
) -> list[tuple[str, tuple[int, ...]]]:
    """Return the kind and the shape of each output of a trial."""
    arrays = keras.tree.flatten(sample)
    if task is None or isinstance(task, str):
        tasks = [task] * len(arrays)
    else:
        tasks = keras.tree.flatten(task)
        names = keras.tree.map_structure(lambda _: None, sample)
        if keras.tree.map_structure(lambda _: None, task) != names:
            reject("task", task, "in the structure of the outputs")
    last = engine.network.last_layers() or [None] * len(arrays)
    outputs = []
    for array, chosen, layer in zip(arrays, tasks, last, strict=True):
        kind = chosen
        if kind is None:
            kind = _usual_task(array, layer)
        check_choice("task", kind, _TASKS)
        shape = array.shape if array.ndim > 1 else (array.size, 1)
        if kind == "heteroscedastic" and shape[-1] % 2:
            reject("task", kind, f"another for an output of shape {shape}")
        outputs.append((kind, shape))
    return outputs


def _usual_task(sample: np.ndarray, layer: Any) -> str:
    sums_to_one = np.allclose(sample.sum(-1), 1, atol=0.01) and sample.min() >= 0
    if sample.ndim > 1 and sample.shape[-1] > 1 and sums_to_one:
        return "classification"
    if getattr(layer, "activation", None) is keras.activations.sigmoid:
        return "binary"
    return "regression"
