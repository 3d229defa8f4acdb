"""Monte Carlo dropout as a deterministic graph, for export."""

import copy
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_trainkit._checks import check_integer, reject
from keras_trainkit._keras import functional_part, sublayers
from keras_trainkit._model import graph as _graph
from keras_trainkit._model.compare import distance, tolerance_of
from keras_trainkit._model.dropout import PURE_DROPOUTS
from keras_trainkit._model.inputs import random_inputs
from keras_trainkit._model.opening import open_up
from keras_trainkit.uncertainty._engine import SplitGraph, run
from keras_trainkit.uncertainty._noise import Noise, drops, mask_shape
from keras_trainkit.uncertainty._predict import mc_predict, seed_words
from keras_trainkit.uncertainty._prediction import MCPrediction

_TINY = float(np.finfo(np.float32).tiny)


@keras.saving.register_keras_serializable(package="keras_trainkit")
class FixedMasks(layers.Layer):
    """Multiply each sample by its mask and add its offset.

    Args:
        shape: `(samples, *mask)`; a size of 1 is broadcast.
        spread: Whether the inputs are rows, of which each sample gets a copy.
        **kwargs: Passed to `keras.layers.Layer`.

    Call arguments:
        inputs: `(samples * rows, ...)`, the rows of each sample together; `(rows, ...)`
            with `spread`.
    """

    def __init__(self, shape, spread=False, **kwargs):
        super().__init__(**kwargs)
        self.shape, self.spread = tuple(shape), spread
        samples, *mask = self.shape
        self.scale, self.offset = (
            self.add_weight(
                shape=(samples, 1, *mask), initializer="zeros", trainable=False, name=n
            )
            for n in ("scale", "offset")
        )
        self.built = True

    def call(self, inputs):
        copies, rest = 1 if self.spread else self.shape[0], tuple(inputs.shape[1:])
        scale, offset = (ops.cast(w, inputs.dtype) for w in (self.scale, self.offset))
        # Broadcast, for a copy of a wide input takes as long as its product.
        x = ops.reshape(inputs, (copies, -1, *rest)) * scale + offset
        return ops.reshape(x, (-1, *rest))

    def compute_output_shape(self, input_shape):
        rows, *rest = input_shape
        if self.spread and rows is not None:
            rows *= self.shape[0]
        return (rows, *rest)

    def get_config(self):
        config = {"shape": self.shape, "spread": self.spread}
        return {**super().get_config(), **config}


def mc_graph(
    model: keras.Model,
    num_samples: int = 100,
    *,
    seed: int = 0,
    task: str | None = None,
) -> keras.Model:
    """A Functional model that outputs what `mc_predict` estimates.

    For what takes a model rather than a function: serving, `model.export`, a converter.
    It has no randomness: the masks are those of `mc_predict(..., noise="shared",
    seed=seed)`, as weights of the model. The layers that no dropout reaches run once.

    Args:
        model: A Sequential or Functional model with one output. It is not changed.
        num_samples: Number of samples.
        seed: Integer seed of the masks.
        task: As in `mc_predict`.

    Returns:
        A model that outputs a dict: `"mean"`, `"predictive_entropy"` and
        `"mutual_information"`; for regression `"mean"`, `"std"` and, if the head is
        heteroscedastic, `"aleatoric_std"`.

    Raises:
        ValueError: If a dropout is inside a recurrent or attention layer or the like,
            or a shape is not known.

    Examples:
        >>> import keras, numpy as np, keras_trainkit as kt
        >>> model = keras.Sequential([
        ...     keras.Input((4,)), keras.layers.Dropout(0.5),
        ...     keras.layers.Dense(3, activation="softmax"),
        ... ])
        >>> served = kt.uncertainty.mc_graph(model, num_samples=20, seed=0)
        >>> outputs = served.predict(np.ones((5, 4), "float32"), verbose=0)
        >>> sorted(outputs), outputs["predictive_entropy"].shape
        (['mean', 'mutual_information', 'predictive_entropy'], (5,))

    Reference:
        Y. Gal and Z. Ghahramani, Dropout as a Bayesian Approximation (2016),
        arXiv:1506.02142.
    """
    check_integer("num_samples", num_samples, minimum=1)
    check_integer("seed", seed, minimum=0)
    _graph.check_graph(model)
    if len(model.outputs) != 1:
        reject("model", f"{len(model.outputs)} outputs", "a model with one output")
    x = random_inputs(model, 3)
    expected = mc_predict(model, x, num_samples, noise="shared", seed=seed, task=task)
    opened, _ = open_up(model, _drops_inside)
    found = _Built(opened, num_samples, seed).model(expected, task)
    names = [name for name in ("mean", "std") if name in found.output]
    # In the order of the outputs; the entropies come from the same samples.
    outputs = found(x, training=False)
    before = [getattr(expected, name) for name in names]
    after = [ops.convert_to_numpy(ops.cast(outputs[n], "float32")) for n in names]
    # The sums are over samples in another order.
    if not distance(before, after) < 10 * max(tolerance_of(model), 1e-4):
        expected = "one whose dropouts see the rows of the batch as rows"
        reject("model", model.name, expected)
    return found


class _Built:
    """Return the samples of a copy of a model as tensors of a graph."""

    def __init__(self, model, num_samples: int, seed: int):
        model, _ = _graph.rebuild(model)
        dropping = [layer for layer in sublayers(model) if drops(layer)]
        network = SplitGraph(model, dropping)
        samples, words = np.arange(num_samples, dtype="int32"), seed_words(seed)
        arrays = words, samples, np.zeros(1, "int32")
        self._noise = Noise(*map(ops.convert_to_tensor, arrays))
        self._num_samples, self._count = num_samples, 0
        self.inputs = keras.tree.map_structure(_like, functional_part(model).input)
        values = network.first_part(keras.tree.flatten(self.inputs))
        random: set[_graph.Edge] = set()

        def get(edge):
            if edge not in random:
                random.add(edge)
                ones = [1] * (len(values[edge].shape) - 1)
                values[edge] = ops.tile(values[edge], (num_samples, *ones))
            return values[edge]

        for call in network.random:
            if call.layer in dropping and isinstance(call.layer, PURE_DROPOUTS):
                (edge,) = call.inputs
                outputs = [self._masked(call.layer, values[edge], edge not in random)]
            elif not set(dropping).isdisjoint(_parts(call.layer)):
                kind = type(call.layer).__name__
                expected = "one whose dropouts are layers of their own"
                reject("model", f"{call.layer.name}, a {kind}", expected)
            else:
                outputs = run(call, [get(edge) for edge in call.inputs])
            values.update(zip(call.outputs, outputs, strict=True))
            random.update(call.outputs)
        (edge,) = network.outputs
        self.samples = get(edge)

    def _masked(self, layer, x, spread):
        shape = tuple(x.shape[1:])
        if not isinstance(layer, (layers.AlphaDropout, layers.GaussianDropout)):
            shape = mask_shape(layer, shape)
        if None in shape:
            expected = "one whose dropouts get known shapes, such as a fixed length"
            reject("model", f"{layer.name} with {shape}", expected)
        whole = (self._num_samples, *shape)
        # The outputs of a dropout for ones and for zeros are its mask and its offset.
        twin = copy.copy(self._noise)
        first = ops.convert_to_numpy(self._noise.drop(layer, ops.ones(whole)))
        second = np.zeros_like(first)
        if isinstance(layer, layers.AlphaDropout):
            second = ops.convert_to_numpy(twin.drop(layer, ops.zeros(whole)))
        self._count += 1
        masks = FixedMasks(whole, spread, name=f"masks_{self._count}_{layer.name}")
        masks.set_weights([(first - second)[:, None], second[:, None]])
        return masks(x)

    def model(self, found: MCPrediction, task: str | None) -> keras.Model:
        """Return the model that outputs the statistics of the samples."""
        shape = tuple(self.samples.shape[1:]) or (1,)
        x = ops.cast(self.samples, "float32")
        x = ops.reshape(x, (self._num_samples, -1, *shape))
        outputs: dict[str, Any]
        if found.mutual_information is None:
            outputs = _regression(x, found)
        else:
            outputs = _classification(x, found, task)
        return keras.Model(self.inputs, outputs)


def _like(x):
    return keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name)


def _parts(layer):
    return sublayers(layer) if isinstance(layer, layers.Layer) else []


def _drops_inside(layer: Any) -> bool:
    """Whether a layer is a custom one that contains dropout."""
    known = type(layer).__module__.split(".")[0] in ("keras", "keras_trainkit")
    return not known and any(map(drops, _parts(layer)))


def _regression(x, found):
    outputs = {}
    if found.aleatoric_std is not None:
        x, log_variance = ops.split(x, 2, axis=-1)
        outputs["aleatoric_std"] = ops.sqrt(ops.mean(ops.exp(log_variance), axis=0))
    mean = ops.mean(x, axis=0)
    std = ops.sqrt(ops.mean(ops.square(x - mean), axis=0))
    return {"mean": mean, "std": std, **outputs}


def _classification(x, found, task):
    binary = found.mutual_information.ndim == found.mean.ndim
    if task == "logits":
        x = ops.softmax(x, axis=-1)

    def entropy(p):
        surprise = -p * ops.log(ops.maximum(p, _TINY))
        if not binary:
            return ops.sum(surprise, axis=-1)
        other = 1 - p
        return surprise - other * ops.log(ops.maximum(other, _TINY))

    mean = ops.mean(x, axis=0)
    predictive = entropy(mean)
    information = ops.relu(predictive - ops.mean(entropy(x), axis=0))
    return {
        "mean": mean,
        "predictive_entropy": predictive,
        "mutual_information": information,
    }
