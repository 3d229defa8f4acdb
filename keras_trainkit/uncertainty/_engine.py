"""Run many passes of a model with active dropout in one compiled function."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit._checks import reject
from keras_trainkit._keras import functional_part, run_node, sublayers
from keras_trainkit._model import graph as _graph
from keras_trainkit.uncertainty._fingerprint import fingerprint
from keras_trainkit.uncertainty._noise import Noise, drops, live
from keras_trainkit.uncertainty._shared_work import (
    distribution_of,
    divided,
    num_devices,
    on_each,
)
from keras_trainkit.uncertainty._sums import Sums, add, read, zeros

# Numbers in the largest tensor of a pass: enough to keep the cores busy, but not much
# more than fits their caches.
_BUDGET = 2**22
# Assumed numbers per row for a subclassed model, whose tensors are not known.
_USUAL_WIDTH = 4096


@dataclass(frozen=True)
class Plan:
    """What a compiled function computes; one function is compiled per plan.

    Attributes:
        shapes: Shapes of the inputs.
        outputs: The kind of each output, as in `mc_predict`, and its shape.
        count: Number of samples.
        chunk: Number of samples that go through the model together.
        shared: Whether all rows have the same masks.
        keep: Whether the samples are returned.
        whole: Whether a batch is one object, such as a graph, not independent rows.
        distribution: The `keras.distribution` whose devices share the work, or None.
        by_samples: Whether each device gets some of the samples rather than of the
            rows.
    """

    shapes: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    count: int
    chunk: int
    shared: bool
    keep: bool
    whole: bool = False
    distribution: Any = None
    by_samples: bool = False


@dataclass(frozen=True)
class Trial:
    """The result of one trial pass through a model.

    Attributes:
        sample: The outputs of the pass, in the structure of the model's.
        whole: Whether the output for a row depends on the other rows, as for the nodes
            of a graph.
    """

    sample: Any
    whole: bool


class Engine:
    """Draw samples of a model's outputs.

    Args:
        model: The model. For a Functional model, references are kept to its layers, not
            to the model.
    """

    def __init__(self, model: keras.Model):
        self._parts = sublayers(model)[1:]
        self.dropping = tuple(layer for layer in self._parts if drops(layer))
        if not self.dropping:
            reject("model", model.name, "a model with at least one dropout layer")
        network = SplitGraph if _graph.is_graph(model) else _Whole
        self.network: Any = network(model, self.dropping)
        self._compiled: dict[Plan, keras.Model] = {}
        self._tried: dict[tuple, Trial] = {}
        self.settle()

    def batch_size(self) -> int:
        """Return a good number of rows per batch."""
        of_a_device = min(max(_BUDGET // max(self.network.widths), 8), 4096)
        return of_a_device * num_devices(distribution_of(self._parts))

    def filled(self, rows: np.ndarray) -> np.ndarray:
        """Rows with the last one repeated until each device gets as many."""
        devices = num_devices(distribution_of(self._parts))
        missing = -len(rows) % devices if len(rows) >= devices else 0
        return np.pad(rows, (0, missing), mode="edge")

    def plan(self, inputs, outputs, count, shared, keep, whole) -> Plan:
        """Return the plan for drawing `count` samples of a batch."""
        shapes = tuple(x.shape for x in inputs)
        distribution = None if whole else distribution_of(self._parts)
        devices, rows = num_devices(distribution), shapes[0][0]
        most = max(_BUDGET // (rows * self.network.widths[1]), 1)
        # Several samples of a row go through together, so a device takes some of them,
        # unless there are enough rows for each, or too few samples.
        by_samples = devices > 1 and (rows < devices or (most > 1 and count >= devices))
        if by_samples:
            of_all = -(-count // devices)
            chunk = devices * -(-of_all // -(-of_all // most))
        elif whole or devices > 1:
            chunk = 1
        else:
            chunk = -(-count // -(-count // most))
        plan = (shapes, tuple(outputs), count, chunk, shared, keep, whole)
        return Plan(*plan, distribution, by_samples)

    def settle(self) -> None:
        """Record the current state of the model as the one that was compiled."""
        self._made_of = fingerprint(self._parts)

    def is_up_to_date(self) -> bool:
        """Whether only values of variables have changed since the last `settle`."""
        return self._made_of == fingerprint(self._parts)

    def try_out(self, inputs: list[np.ndarray], whole: bool = False) -> Trial:
        """Run one pass without compiling; cached for each shape of the inputs.

        Two rows are enough if rows are independent. To test that, the first row alone
        must have the same output as together with its neighbour, in two samples.

        Args:
            inputs: A batch.
            whole: Whether the rows are known to depend on each other.
        """
        rows = tuple(x.shape[1:] for x in inputs)
        shapes = tuple(x.shape for x in inputs)
        if rows in self._tried and not whole:
            return self._tried[rows]
        if not whole:
            sample = self._independent([x[:2] for x in inputs])
            if sample is not None:
                self._tried[rows] = Trial(sample, False)
                return self._tried[rows]
        if shapes not in self._tried:
            self._tried[shapes] = Trial(self._sample(inputs, 1, whole=True), True)
        return self._tried[shapes]

    def _independent(self, inputs):
        """Return a sample of two rows; None if they depend on each other."""
        rows = len(inputs[0])
        half = any(layer.compute_dtype != "float32" for layer in self._parts)
        tolerance = 0.05 if half else 1e-3
        first = [x[:1] for x in inputs]
        try:
            both, alone = self._sample(inputs, 2), self._sample(first, 1)
            if not _begins_like(both, alone, 2 * rows, tolerance):
                # A model with its own random numbers makes the comparison meaningless.
                again = self._sample(first, 1)
                if _begins_like(again, alone, 1, tolerance):
                    return None
        except Exception:
            # A model whose inputs are not rows may raise anything, often for a shape.
            return None
        return keras.tree.map_structure(lambda x: x[:rows], both)

    def _sample(self, inputs, count, whole=False):
        """Repeat each row for `count` samples."""
        batch = None if whole else len(inputs[0])
        rows = np.arange(batch or 1, dtype="int32")
        words, samples = np.zeros(2, "int32"), np.arange(count, dtype="int32")
        noise = Noise(*map(ops.convert_to_tensor, (words, samples, rows)))

        def run(tensors):
            fixed = self.network.first_part(tensors)
            with live(self.dropping, noise):
                return self.network.rest(fixed, lambda x: _spread(x, count, batch))

        outputs = _AtInference(run)([ops.convert_to_tensor(x) for x in inputs])
        return keras.tree.map_structure(ops.convert_to_numpy, outputs)

    def draw(
        self,
        inputs: list[np.ndarray],
        rows: np.ndarray,
        seed: np.ndarray,
        first: int,
        plan: Plan,
    ) -> list[Sums]:
        """Draw samples of a batch and accumulate their statistics.

        Args:
            inputs: The batch, in the order of the model's inputs.
            rows: The number of each row, `(rows,)`.
            seed: Two words, `(2,)`.
            first: The number of the first sample.
            plan: From `plan`.

        Returns:
            For each output the `mean`, the sum of the `squares` about it, the sums that
            its kind needs, and the `samples`, if they are kept.
        """
        if plan not in self._compiled:
            self._compiled[plan] = _Compiled(self, plan)
        data = {"x": inputs, "rows": rows}
        others = {"seed": seed, "first": np.array([first], np.int32)}
        distribution = plan.distribution
        if distribution is not None:
            # The layers that no dropout reaches share the rows in any case.
            parted = len(rows) % num_devices(distribution) == 0
            put = divided if parted else on_each
            data = keras.tree.map_structure(lambda x: put(x, distribution), data)
            others = {name: on_each(x, distribution) for name, x in others.items()}
        return self._compiled[plan].predict_on_batch({**data, **others})


def _begins_like(outputs: Any, alone: Any, rows: int, tolerance: float) -> bool:
    """Whether the first row of the outputs equals its output when run alone."""
    for x, y in zip(*map(keras.tree.flatten, (outputs, alone)), strict=True):
        if not x.ndim or len(x) != rows or x.shape[1:] != y.shape[1:] or len(y) != 1:
            return False
        x, y = x[:1].astype(np.float64), y.astype(np.float64)
        size = np.abs(y).max(initial=1e-6)
        if not np.allclose(x, y, rtol=0, atol=tolerance * size, equal_nan=True):
            return False
    return True


def _spread(x: Any, count: int, batch: int | None) -> Any:
    """Repeat a tensor of rows for each sample.

    `batch` is the number of rows, None for a whole that has none.
    """
    if batch is None:
        return x
    rows, *shape = ops.shape(x)
    if x.shape[0] is None:
        # A TensorFlow graph may not know the shape after operations on strings.
        rows = batch
    elif count == 1:
        return x
    copies = ops.broadcast_to(ops.reshape(x, (1, rows, *shape)), (count, rows, *shape))
    return ops.reshape(copies, (count * rows, *shape))


class _AtInference(keras.layers.Layer):
    """Run a function in inference mode for all layers inside.

    Otherwise a layer whose `call` has `training=True` as its default would train.
    """

    def __init__(self, function: Callable):
        super().__init__(dtype="float32", autocast=False)
        self._function = function
        self.built = True

    def call(self, inputs, training=False):
        return self._function(inputs)

    def __call__(self, inputs):
        return super().__call__(inputs, training=False)


class _Compiled(keras.Model):
    """The layer that Keras compiles: from a batch to the sums over its samples."""

    def __init__(self, engine, plan):
        super().__init__(name="mc_predict", dtype="float32", autocast=False)
        self.parts = engine.network.layers
        self._engine, self._plan = engine, plan
        self.built = True
        if keras.backend.backend() == "tensorflow" and all(
            layer.supports_jit for layer in sublayers(self)
        ):
            # Keras uses XLA on GPUs only. XLA fuses a mask into one loop, but it
            # is slow with masks that the rows share.
            self.jit_compile = not plan.shared

    def call(self, data, training=False):
        plan, network = self._plan, self._engine.network
        batch = None if plan.whole else plan.shapes[0][0]
        chunk, rows = plan.chunk, data["rows"]
        if plan.whole:
            # A different mask for each batch, but the same for all rows in it.
            rows = rows[:1]
        elif plan.shared:
            rows = ops.zeros((1,), "int32")
        fixed = network.first_part(data["x"])

        def shared_out(x):
            return divided(x, plan.distribution) if plan.by_samples else x

        def add_chunk(step, sums):
            numbers = step * chunk + ops.arange(chunk, dtype="int32")
            samples = shared_out(data["first"] + numbers)
            noise = Noise(data["seed"], samples, rows, batch)
            with live(self._engine.dropping, noise):
                outputs = network.rest(
                    fixed, lambda x: shared_out(_spread(x, chunk, batch))
                )
            # The last chunk may extend beyond `count`; the surplus is not counted.
            counted = None
            if plan.count % chunk:
                counted = ops.cast(numbers < plan.count, "float32")
            before = ops.cast(step * chunk, "float32")
            new = []
            for (kind, shape), output, part in zip(
                plan.outputs, keras.tree.flatten(outputs), sums, strict=True
            ):
                x = ops.reshape(ops.cast(output, "float32"), (chunk, *shape))
                readings = read(kind, x)
                new.append(add(part, readings, counted, before))
                if plan.keep:
                    place = (step * chunk, *([0] * len(shape)))
                    value = readings["value"]
                    new[-1]["samples"] = ops.slice_update(part["samples"], place, value)
            return new

        sums = [zeros(kind, shape) for kind, shape in plan.outputs]
        steps = -(-plan.count // chunk)
        if plan.keep:
            for part in sums:
                shape = (steps * chunk, *part["mean"].shape)
                part["samples"] = ops.zeros(shape)
        sums = (
            add_chunk(0, sums)
            if steps == 1
            else ops.fori_loop(0, steps, add_chunk, sums)
        )
        if plan.keep:
            for part in sums:
                # Rows first, because `predict` concatenates along the first axis.
                part["samples"] = ops.swapaxes(part["samples"][: plan.count], 0, 1)
        return sums


def run(call: _graph.Call, tensors: list) -> list:
    """Apply a call at inference, even if its node says `training=True`."""
    return keras.tree.flatten(run_node(call.node, tensors, training=False))


class SplitGraph:
    """A graph, split into the calls that no dropout affects and the others."""

    def __init__(self, model, dropping):
        graph, functional = _graph.read(model), functional_part(model)
        self._graph = graph
        self._input, self._output = functional.input, functional.output
        self.num_inputs = len(graph.inputs)
        self.layers = [
            call.layer
            for call in graph.calls
            if isinstance(call.layer, keras.layers.Layer)
        ]
        self._fixed: list[_graph.Call] = []
        self.random: list[_graph.Call] = []
        known: set[_graph.Edge] = set(graph.inputs)
        random: set[_graph.Edge] = set()
        widths = [1, 1]
        for call in graph.calls:
            # Excludes what a TimeDistributed calls inside.
            if not known.issuperset(call.inputs):
                continue
            known.update(call.outputs)
            is_layer = isinstance(call.layer, keras.layers.Layer)
            parts = sublayers(call.layer) if is_layer else []
            drops_here = not set(dropping).isdisjoint(parts)
            is_random = drops_here or not random.isdisjoint(call.inputs)
            if is_random:
                random.update(call.outputs)
            (self.random if is_random else self._fixed).append(call)
            for edge in (*call.inputs, *call.outputs):
                size = math.prod(size or 1 for size in edge.shape[1:])
                widths[is_random] = max(widths[is_random], size)
        self.widths = tuple(widths)

    def flatten(self, x: Any) -> list:
        """Return the arrays of `predict`'s `x` in the order of the inputs."""
        if isinstance(x, dict) and not isinstance(self._input, dict):
            return [x[tensor.name] for tensor in keras.tree.flatten(self._input)]
        return keras.tree.flatten(x)

    def first_part(self, inputs: list) -> dict:
        """Compute the tensors that no dropout affects."""
        values = {}
        symbolic = keras.tree.flatten(self._input)
        for x, edge, tensor in zip(inputs, self._graph.inputs, symbolic, strict=True):
            # A Functional model does the same.
            if len(x.shape) == len(edge.shape) - 1:
                x = ops.expand_dims(x, -1)
            elif len(x.shape) == len(edge.shape) + 1 and x.shape[-1] == 1:
                x = ops.squeeze(x, -1)
            values[edge] = ops.cast(x, tensor.dtype)
        for call in self._fixed:
            tensors = run(call, [values[edge] for edge in call.inputs])
            values.update(zip(call.outputs, tensors, strict=True))
        return values

    def rest(self, fixed: dict, spread: Callable) -> Any:
        """Compute the outputs of one pass through the remaining calls."""
        values: dict = {}

        def get(edge):
            if edge not in values:
                values[edge] = spread(fixed[edge])
            return values[edge]

        for call in self.random:
            tensors = run(call, [get(edge) for edge in call.inputs])
            values.update(zip(call.outputs, tensors, strict=True))
        outputs = [get(edge) for edge in self._graph.outputs]
        return keras.tree.pack_sequence_as(self._output, outputs)

    @property
    def outputs(self) -> list:
        """Return the edges of the outputs."""
        return self._graph.outputs

    def last_layers(self) -> list:
        """Return the layer that computes each output."""
        return [edge.producer and edge.producer.layer for edge in self._graph.outputs]


class _Whole:
    """A subclassed model, whose graph is not known: every pass runs all of it."""

    widths = (_USUAL_WIDTH, _USUAL_WIDTH)
    num_inputs = None

    def __init__(self, model, dropping):
        self.layers = [model]

    def flatten(self, x: Any) -> list:
        self._structure = x
        return keras.tree.flatten(x)

    def first_part(self, inputs: list) -> list:
        return inputs

    def rest(self, fixed: list, spread: Callable) -> Any:
        inputs = [spread(x) for x in fixed]
        x = keras.tree.pack_sequence_as(self._structure, inputs)
        return self.layers[0](x, training=False)

    def last_layers(self) -> list:
        return []
