"""Weight clustering during `fit`: kernels with few distinct values."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainkit._checks import (
    check_choice,
    check_flag,
    check_integer,
    reject,
)
from keras_trainkit._keras import moving_averages
from keras_trainkit._model.kernels import Kernel, without_kernels
from keras_trainkit._model.select import (
    chains,
    check_all_used,
    check_selectors,
    kernels_in,
    selected,
)
from keras_trainkit._training import fit_scope
from keras_trainkit._training.optimizer import (
    core_optimizer,
    start_averages,
)
from keras_trainkit.pruning import MagnitudePruning
from keras_trainkit.quantization._centroids import INITIALIZATIONS, cluster

# Rounding lets the entries of a cluster differ, in units of the largest entry.
_SPREAD = 1e-3
_EXPECTED = "a built model with trainable kernels to cluster"


class Clustering(keras.callbacks.Callback):
    """Weight clustering: train kernels with at most `num_clusters` distinct values.

    Before the first step the entries of each kernel are clustered by k-means and set
    to the means of their clusters. In the fit each centroid moves by the mean of the
    updates of its members, in the compiled step; which entry belongs to which cluster
    stays the same for the fit. A kernel that has few enough distinct values already
    keeps its clusters, so a second or resumed fit continues with those of the first.

    The layers are not wrapped, and the saved file is a plain model;
    `kt.pruning.sparsity_report(model).gzip_bytes` is the size of its weights after
    gzip. Biases and normalization are not clustered. It works with models from
    `quantize_aware` too.

    Args:
        num_clusters: The largest number of distinct values in a kernel, 2 or more; with
            `per_channel`, in the incoming weights of a unit.
        initialization: Where k-means begins: `"k-means++"`; `"linear"`, evenly between
            the smallest and the largest entry; or `"density"`, at evenly spaced
            quantiles of the entries.
        per_channel: Whether each unit has its own clusters.
        preserve_sparsity: Whether entries that are zero when the fit begins stay zero.
            They count as one of the clusters.
        include: What to cluster: a layer, a type of layers, a regular expression that
            matches the whole of a layer's name or path, a function of a layer, or a
            list of these. By default everything.
        exclude: What not to cluster, in the same ways.
        seed: Random seed for `"k-means++"`.

    Raises:
        ValueError: If an argument is wrong; in `fit`, before the first step, if there
            is no trainable kernel to cluster, `MagnitudePruning` is in the same fit, or
            another callback freezes layers.
        RuntimeError: At the end of `fit`, if a kernel has lost its clusters or zeros.

    Examples:
        >>> import numpy as np, keras_trainkit as kt
        >>> model = kt.models.build_mlp((20,), 3)
        >>> model.compile("adam", "sparse_categorical_crossentropy")
        >>> clustering = kt.quantization.Clustering(8)
        >>> x, y = np.ones((32, 20), "float32"), np.zeros(32)
        >>> _ = model.fit(x, y, epochs=1, callbacks=[clustering], verbose=0)
        >>> len(np.unique(model.get_weights()[0])) <= 8
        True

    Reference:
        S. Han, H. Mao and W. J. Dally, Deep Compression (2016), arXiv:1510.00149,
        section 3.
    """

    def __init__(
        self,
        num_clusters: int,
        *,
        initialization: str = "k-means++",
        per_channel: bool = False,
        preserve_sparsity: bool = False,
        include: Any = None,
        exclude: Any = None,
        seed: int = 0,
    ):
        super().__init__()
        self._num_clusters = check_integer("num_clusters", num_clusters, minimum=2)
        self._initialization = check_choice(
            "initialization", initialization, INITIALIZATIONS
        )
        self._per_channel = check_flag("per_channel", per_channel)
        self._preserve_sparsity = check_flag("preserve_sparsity", preserve_sparsity)
        self._include = check_selectors("include", include)
        self._exclude = check_selectors("exclude", exclude)
        self._seed = check_integer("seed", seed, minimum=0)
        self._labels: list[tuple[Kernel, np.ndarray, np.ndarray]] = []

    def set_params(self, params: dict[str, Any] | None) -> None:
        """Prepare to replace the optimizer's update for this fit."""
        super().set_params(params)
        # Pruning would set members of other clusters to zero.
        fit_scope.make_room(self.model, self, "kernels", (MagnitudePruning,))
        self._labels = []
        if self.model.built:
            self._find_kernels()
        # All weights that the callbacks will train at some point of this fit.
        self._trained = self.model.trainable_variables
        self._changed: list[keras.optimizers.Optimizer] = [core_optimizer(self.model)]
        fit_scope.enter(self.model, self, self._undo, key=(id(self),), what="kernels")

    def _undo(self) -> None:
        for optimizer in self._changed:
            vars(optimizer).pop("apply", None)

    def on_train_batch_begin(self, batch, logs=None):
        # Not earlier: `BackupAndRestore` loads weights at the start of training, and
        # other callbacks replace the optimizer or freeze layers when an epoch starts.
        if batch == 0:
            fit_scope.check_trained(self.model, self._trained, "cluster")
            if "apply" not in vars(core_optimizer(self.model)):
                self._begin()

    def on_train_end(self, logs=None):
        fit_scope.close(self.model)
        self._check_kept()
        # The optimizer may have overwritten the weights with its averages.
        self._set_to_means()

    def _check_kept(self) -> None:
        """Raise unless each kernel has its clusters and, if asked for, its zeros."""
        for kernel, labels, moves in self._labels:
            values = _array(kernel.variable).ravel()
            ends = np.full((2, len(moves)), np.inf)
            np.minimum.at(ends[0], labels, values)
            np.minimum.at(ends[1], labels, -values)
            # The cluster that does not move is the one of zeros.
            spread = np.where(moves > 0, -ends[1] - ends[0], np.maximum(*-ends))
            if spread.max() > _SPREAD * np.abs(values).max():
                raise RuntimeError(
                    f"{kernel.variable.path} lost its clusters in the fit: something "
                    "other than the optimizer changed it"
                )

    def _begin(self) -> None:
        optimizer = core_optimizer(self.model)
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        self._labels = [(k, *self._label(k)) for k in self._find_kernels()]
        self._set_to_means()
        variables = [kernel.variable for kernel, _, _ in self._labels]
        start_averages(optimizer, variables)
        apply = _shared_updates(optimizer, variables, [x[1:] for x in self._labels])
        # Not by `setattr`, which Keras and PyTorch watch.
        vars(optimizer)["apply"] = apply
        self._changed.append(optimizer)
        fit_scope.scope_of(self.model).renew_step(self, (apply,))

    def _find_kernels(self) -> list[Kernel]:
        every = list(chains(self.model))
        check_all_used("include", every, self._include)
        check_all_used("exclude", every, self._exclude)
        trained = {id(variable) for variable in self.model.trainable_variables}
        for chain in every:
            if (reason := without_kernels(chain[-1])) and self._wants(chain):
                name = chain[-1].name
                expected = (
                    f"such that its kernels can be clustered, or exclude {name!r}"
                )
                reject("model", self.model.name, f"{expected}, which {reason}")
        found = [
            kernel
            for chain, kernel in kernels_in(self.model)
            if self._wants(chain) and id(kernel.variable) in trained
        ]
        if not found:
            reject("model", self.model.name, _EXPECTED)
        return found

    def _wants(self, chain: tuple) -> bool:
        wanted = not self._include or selected(chain, self._include)
        return wanted and not selected(chain, self._exclude)

    def _label(self, kernel: Kernel) -> tuple[np.ndarray, np.ndarray]:
        """Return the cluster of each entry, and whether each cluster may move."""
        values = _array(kernel.variable)
        groups = np.zeros(values.shape, "int64")
        if self._per_channel:
            shape = [1 if a in kernel.inputs else n for a, n in enumerate(values.shape)]
            units = np.arange(kernel.units).reshape(shape)
            groups = np.broadcast_to(units, values.shape)
        values = values.ravel()
        labels = np.empty(values.size, "int32")
        moves = np.ones((groups.max() + 1, self._num_clusters), "float32")
        in_order = np.argsort(groups.ravel(), kind="stable")
        for group, members in enumerate(np.split(in_order, len(moves))):
            first = group * self._num_clusters
            zero = (values[members] == 0) & self._preserve_sparsity
            # The last cluster holds the zeros, if there are any.
            free = self._num_clusters - bool(zero.any())
            moves[group, free:] = 0
            labels[members[zero]] = first + free
            rest = members[~zero]
            labels[rest] = first + cluster(
                values[rest], free, self._initialization, self._seed
            )
        return labels, moves.ravel()

    def _set_to_means(self) -> None:
        for kernel, labels, moves in self._labels:
            values = _array(kernel.variable)
            counts = np.maximum(np.bincount(labels, minlength=len(moves)), 1)
            sums = np.bincount(labels, values.ravel(), len(moves))
            means = (sums / counts * moves).astype(values.dtype)
            kernel.variable.assign(means[labels].reshape(values.shape))


def _shared_updates(
    optimizer: keras.optimizers.Optimizer,
    variables: list[keras.Variable],
    labels: list[tuple[np.ndarray, np.ndarray]],
) -> Callable:
    """Return an `apply` that moves all members of a cluster by their mean update."""
    inner = vars(optimizer).get("apply")
    constants = []
    for index, moves in labels:
        counts = np.maximum(np.bincount(index, minlength=len(moves)), 1)
        weights = (moves / counts).astype("float32")
        constants.append((ops.convert_to_tensor(index), ops.convert_to_tensor(weights)))
    # The optimizer averages what it updated, before the members share their updates.
    averages = moving_averages(optimizer)
    pairs = list(zip(variables, constants, strict=True))
    pairs += [(averages[id(v)], c) for v, c in pairs if averages.get(id(v)) is not None]

    def apply_and_share(grads, trainable_variables=None):
        # A sum, since TensorFlow reads a variable itself only where it is used.
        before = [ops.add(variable, 0.0) for variable, _ in pairs]
        # The optimizer's class may have changed since the fit began.
        apply = inner or functools.partial(type(optimizer).apply, optimizer)
        apply(grads, trainable_variables)
        for (variable, (index, weights)), old in zip(pairs, before, strict=True):
            # Means of updates, not of values: rounding would let values drift.
            update = ops.cast(ops.convert_to_tensor(variable) - old, "float32")
            sums = ops.segment_sum(
                ops.reshape(update, (-1,)), index, num_segments=len(weights)
            )
            shared = ops.reshape(ops.take(sums * weights, index), variable.shape)
            variable.assign(old + ops.cast(shared, old.dtype))

    return apply_and_share


def _array(variable: Any) -> np.ndarray:
    array = ops.convert_to_numpy(variable)
    # NumPy has no bfloat16.
    return array if array.dtype.kind == "f" else array.astype("float32")
