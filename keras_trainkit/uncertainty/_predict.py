"""Monte Carlo prediction."""

import random
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import keras
import numpy as np

from keras_trainkit._checks import check_choice, check_integer, check_positive, reject
from keras_trainkit._keras import functional_part
from keras_trainkit._model import graph as _graph
from keras_trainkit.uncertainty._engine import Engine, Sums, merged
from keras_trainkit.uncertainty._prediction import MCPrediction

_TASKS = ("classification", "logits", "binary", "regression", "heteroscedastic")
# Samples between two looks at the standard error.
_ROUND = 20
# A Functional model lives as long as its user wants; its compiled functions with it.
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
    """Predict with dropout switched on, many times, and sum up the samples.

    The layers that no dropout reaches run once for each batch; the rest runs in a loop
    inside one compiled function, which is kept for the next call. BatchNorm and all
    else stay in inference mode. A mask is a function of the seed, the number of the
    sample and the number of the row, so the size of the batches does not matter.

    Args:
        model: A model with dropout: `Dropout`, `AlphaDropout`, `GaussianDropout`,
            `SpatialDropout1D/2D/3D`, the `dropout` and `recurrent_dropout` of
            recurrent layers and of `MultiHeadAttention`, in nested models, wrappers
            and the user's own layers, and those of `kt.layers`. A subclassed model
            will do, but is compiled at each call. It is not changed.
        x: As for `model.predict`: arrays of shape `(rows, *input_shape)`, a list or a
            dict of them, a `keras.utils.PyDataset`, a `tf.data.Dataset`, or another
            iterable of batches that ends.
        num_samples: Number of samples.
        batch_size: Rows of a batch; by default what fits the processor's caches. A
            dataset has its own.
        noise: `"independent"`: each row has its own masks. `"shared"`: in each sample
            all rows have the same masks, so that a sample is one function, and
            differences between rows mean something; faster too.
        seed: Integer seed of the masks; another each time by default.
        keep_samples: Whether to keep all samples, which takes `num_samples` times the
            memory.
        task: What the outputs are: `"classification"` (probabilities that sum to 1),
            `"logits"` of such, `"binary"` (independent probabilities),
            `"regression"`, or `"heteroscedastic"` (in the last axis first the means,
            then as many logarithms of variances). By default classification where the
            outputs sum to 1, binary behind a sigmoid, and else regression. For several
            outputs, as many, in the structure of the outputs.
        tolerance: Stop adding samples to a row as soon as the standard error of its
            mean is below this for every output; `num_samples` is then the most. Looked
            at each 20 samples.
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
        # As for Keras's layers, from what `keras.utils.set_random_seed` sets.
        seed = random.getrandbits(32)
    check_integer("seed", seed, minimum=0)
    words = np.random.SeedSequence(seed).generate_state(2).view(np.int32)
    engine = _engine_of(model)
    batches, number = _batches(engine, x, batch_size)
    bar = keras.utils.Progbar(number, verbose=verbose)
    sample, outputs, size, done = None, [], 0, 0
    parts: list[list[Sums]] = []
    for step, inputs in enumerate(batches):
        if sample is None:
            sample = engine.try_out(inputs)
            outputs = _outputs(engine, sample, task)
            size = len(inputs[0])
        rows = len(inputs[0])
        draw = _Draw(engine, inputs, done, words, outputs, noise, keep_samples)
        # All batches at the size of the first, since each size is compiled.
        chosen = np.minimum(np.arange(max(size, rows)), rows - 1)
        if tolerance is None:
            sums = draw(chosen, 0, num_samples)
        else:
            sums = _until_sure(draw, chosen, num_samples, tolerance)
        parts.append([{name: a[:rows] for name, a in part.items()} for part in sums])
        done += rows
        bar.update(step + 1)
    if not parts:
        reject("x", x, "at least one row")
    results = []
    for (kind, _), of_output in zip(outputs, zip(*parts, strict=True), strict=True):
        joined = {
            name: np.concatenate([p[name] for p in of_output]) for name in of_output[0]
        }
        results.append(_prediction(kind, joined, tolerance is None))
    return keras.tree.pack_sequence_as(sample, results)


def _engine_of(model: Any) -> Engine:
    """The engine of the last call with this model, if it is still as it was."""
    if not isinstance(model, keras.Model):
        reject("model", type(model).__name__, "a keras.Model")
    if not _graph.is_graph(model):
        return Engine(model)
    # A Sequential model gets another one when a layer is added or taken away.
    graph = functional_part(model)
    if graph not in _engines or not _engines[graph].is_up_to_date():
        _engines[graph] = Engine(model)
    return _engines[graph]


def _batches(
    engine: Engine, x: Any, batch_size: int | None
) -> tuple[Iterator[list[np.ndarray]], int | None]:
    """Batches as lists of arrays, and how many there are, where that is known."""
    is_array = hasattr(x, "shape") or isinstance(x, (list, tuple, dict))
    if is_array:
        arrays = [np.asarray(a) for a in _flat(engine, x)]
        lengths = {len(a) for a in arrays}
        if len(lengths) != 1:
            reject("x", [a.shape for a in arrays], "arrays of as many rows")
        (rows,) = lengths
        if batch_size is None:
            batch_size = engine.batch_size()
        check_integer("batch_size", batch_size, minimum=1)
        number: int | None = -(-rows // batch_size)
        # Of nearly the same size, so that little is filled up.
        size = -(-rows // max(-(-rows // batch_size), 1))
        starts = range(0, rows, max(size, 1))
        return ([a[i : i + size] for a in arrays] for i in starts), number
    if batch_size is not None:
        reject("batch_size", batch_size, "None, since `x` makes its own batches")
    items: Iterable[Any]
    if isinstance(x, keras.utils.PyDataset):
        if x.num_batches is None:
            reject("x", x, "a PyDataset with a number of batches")
        items, number = (x[i] for i in range(x.num_batches)), x.num_batches
    elif isinstance(x, Iterable):
        items, number = x, None
    else:
        reject("x", type(x).__name__, "arrays, a dataset, or batches to iterate over")
    # As Keras does, which takes a list or tuple for `(x, y, sample_weight)`.
    inputs = (item[0] if isinstance(item, (list, tuple)) else item for item in items)
    return (
        [keras.ops.convert_to_numpy(a) for a in _flat(engine, item)] for item in inputs
    ), number


def _flat(engine, x):
    try:
        flat = engine.network.flatten(x)
    except KeyError:
        flat = None
    if flat is None or len(flat) != (engine.network.num_inputs or len(flat)):
        reject("x", keras.tree.map_structure(np.shape, x), "the model's inputs")
    return flat


class _Draw:
    """Draws samples of some rows of a batch."""

    def __init__(self, engine, inputs, start, seed, outputs, noise, keep):
        self._engine, self._inputs, self._start = engine, inputs, start
        self._seed, self._outputs = seed, outputs
        self._shared, self._keep = noise == "shared", keep

    def __call__(self, chosen: np.ndarray, first: int, count: int) -> list[Sums]:
        inputs = [a[chosen] for a in self._inputs]
        rows = (self._start + chosen).astype(np.int32)
        plan = self._engine.plan(inputs, self._outputs, count, self._shared, self._keep)
        all_sums = self._engine.draw(inputs, rows, self._seed, first, plan)
        return [{**sums, "count": np.full(len(rows), count)} for sums in all_sums]


def _until_sure(
    draw: _Draw, chosen: np.ndarray, most: int, tolerance: float
) -> list[Sums]:
    """Draw in rounds, each for the rows whose mean is not sure yet."""
    first = min(_ROUND, most)
    total = draw(chosen, 0, first)
    while first < most:
        errors = []
        for sums in total:
            n = _count(sums, sums["mean"])
            error = np.sqrt(sums["squares"] / (n - 1) / n)
            errors.append(error.reshape(len(error), -1).max(1))
        worst = np.max(errors, axis=0)
        unsure = np.flatnonzero(worst >= tolerance)
        if not len(unsure):
            break
        # Sizes of the batch halved and halved again, since each size is compiled.
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
    """Add what further samples of some rows say."""
    new = {name: a[: len(rows)] for name, a in new.items()}
    before = {name: a[rows] for name, a in sums.items()}
    count, number = (_count(part, part["mean"]) for part in (before, new))
    together = merged(before, count, new, number)
    for name in sums:
        sums[name] = sums[name].copy()
        sums[name][rows] = together[name]


def _outputs(
    engine: Engine, sample: Any, task: Any
) -> list[tuple[str, tuple[int, ...]]]:
    """The kind and the shape, for one row, of each output."""
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
        if array.ndim < 2:
            array = array[:, np.newaxis]
        if kind == "heteroscedastic" and array.shape[-1] % 2:
            reject("task", kind, f"another for an output of shape {array.shape}")
        outputs.append((kind, array.shape[1:]))
    return outputs


def _usual_task(sample: np.ndarray, layer: Any) -> str:
    sums_to_one = np.allclose(sample.sum(-1), 1, atol=0.01) and sample.min() >= 0
    if sample.ndim > 1 and sample.shape[-1] > 1 and sums_to_one:
        return "classification"
    if getattr(layer, "activation", None) is keras.activations.sigmoid:
        return "binary"
    return "regression"


def _prediction(kind: str, sums: Sums, same_count: bool) -> MCPrediction:
    mean = sums["mean"].astype(np.float64)
    predictive = information = ratio = aleatoric = None
    if "entropy" in sums:
        votes, entropy = sums["votes"], sums["entropy"]
        if kind == "binary":
            predictive = _surprise(mean) + _surprise(1 - mean)
            winners = np.maximum(votes, _count(sums, votes) - votes)
        else:
            predictive, winners = _surprise(mean).sum(-1), votes.max(-1)
        count = _count(sums, entropy)
        information = np.maximum(predictive - entropy / count, 0)
        ratio = 1 - winners / count
    if "variance" in sums:
        aleatoric = np.sqrt(sums["variance"] / _count(sums, mean))
    samples = sums.get("samples")
    return MCPrediction(
        mean=mean,
        std=np.sqrt(sums["squares"] / _count(sums, mean)),
        predictive_entropy=predictive,
        mutual_information=information,
        variation_ratio=ratio,
        num_samples=int(sums["count"][0]) if same_count else sums["count"],
        samples=None if samples is None else np.swapaxes(samples, 0, 1),
        aleatoric_std=aleatoric,
    )


def _surprise(p: np.ndarray) -> np.ndarray:
    return -p * np.log(np.maximum(p, np.finfo(np.float32).tiny))


def _count(sums: Sums, like: np.ndarray) -> np.ndarray:
    """The number of samples of each row, to go with an array."""
    return sums["count"].reshape(-1, *[1] * (like.ndim - 1)).astype(np.float64)
