"""The data of a range test, in the form that the model's `fit` accepts."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import keras
import numpy as np

from keras_trainkit._checks import check_integer, reject
from keras_trainkit._training.batches import (
    again,
    as_array,
    batches_of,
    columns,
    is_arrays,
    num_rows,
    shuffled_rows,
    take,
    text_as_tensor,
)


class FitData:
    """The data that a user passes to `fit`.

    Arrays stay arrays and datasets stay datasets, so that a custom `fit`, such as one
    that preprocesses, gets what it expects. Other iterables become a generator, which
    starts over at the end of each pass.
    """

    def __init__(self, x, y, sample_weight, class_weight, own_fit):
        if x is None:
            reject("x", x, "arrays or a dataset")
        if class_weight is not None and not isinstance(class_weight, dict):
            reject("class_weight", class_weight, "a dict from class to weight")
        self._own_fit = own_fit
        self.error: BaseException | None = None
        self._class_weight = class_weight
        if y is not None or is_arrays(x):
            data = {"x": x, "y": y, "sample_weight": sample_weight}
            self._arrays = {
                name: columns(value)
                for name, value in data.items()
                if value is not None
            }
            if not keras.tree.flatten(self._arrays["x"]):
                reject("x", x, "at least one array")
            self._rows = num_rows(
                self._arrays,
                expected="arrays of as many rows as `y` and `sample_weight` have",
            )
            if not self._rows:
                reject("x", keras.tree.map_structure(np.shape, x), "at least one row")
            return
        self._arrays = {}
        if sample_weight is not None:
            reject("sample_weight", sample_weight, "None where x yields batches")
        self._x = x
        self._first: tuple = ()
        # A custom `fit` usually accepts only arrays or datasets.
        self._as_it_is = _is_dataset(x) or own_fit
        self._batches, self._length = batches_of(x)
        if self._length == 0:
            reject("x", x, "at least one batch")
        if not self._as_it_is:
            self._batches = self._watched(again(self._batches))
            first = next(iter(self._batches), None)
            if first is None:
                reject("x", x, "at least one batch")
            self._first = first

    def length(self, batch_size: int | None) -> int | None:
        """Return the number of batches per epoch, if it is known."""
        if not self._arrays:
            if batch_size is not None:
                reject("batch_size", batch_size, "None where x yields batches")
            return self._length
        return -(-self._rows // _checked(batch_size))

    def build(self, model: keras.Model) -> None:
        """Build a model, because an unbuilt one cannot be restored."""
        if model.built:
            return
        if self._arrays:
            inputs = take(self._arrays["x"], slice(0, 1))
        else:
            (inputs, *_) = next(iter(self._batches)) if self._as_it_is else self._first
        try:
            model(keras.tree.map_structure(as_array, inputs))
        except NotImplementedError:
            # A model without `call`, such as a GAN whose parts are built.
            return

    def options(self, num_steps: int, batch_size: Any, seed: int) -> dict:
        """Return the arguments of `fit` for a number of steps."""
        # Arrays are ordered by `seed`, and Keras warns if it cannot shuffle.
        options: dict[str, Any] = {"shuffle": False}
        if self._arrays:
            order = shuffled_rows(self._rows, _checked(batch_size), num_steps, seed)
            options |= {
                "batch_size": order.shape[1],
                **{name: take(a, order.ravel()) for name, a in self._arrays.items()},
            }
        elif self._as_it_is:
            # More epochs than needed; the test ends the fit.
            epochs = -(-num_steps // self._length) if self._length else num_steps
            options |= {"x": self._x, "epochs": epochs}
        else:
            return options | {"x": self._generator(num_steps)}
        if not self._own_fit:
            options = keras.tree.map_structure(text_as_tensor, options)
        if self._class_weight is not None:
            options["class_weight"] = self._class_weight
        return options

    def lacks_targets(self, model: keras.Model) -> bool:
        """Whether missing targets may explain the error of the first step."""
        own = any(
            getattr(type(model), name) is not getattr(keras.Model, name)
            for name in ("train_step", "compute_loss")
        )
        return bool(self._arrays) and "y" not in self._arrays and not own

    def _generator(self, num_steps: int) -> Iterator[tuple]:
        yield self._first
        yield from islice(self._batches, num_steps - 1)

    def _watched(self, batches: Iterable[tuple]) -> Iterator[tuple]:
        """Yield the batches as NumPy arrays; keep the error that ended them."""
        try:
            for batch in batches:
                batch = keras.tree.map_structure(as_array, batch)
                batch = keras.tree.map_structure(text_as_tensor, batch)
                if self._class_weight is not None:
                    batch = _weighted(batch, self._class_weight)
                # TensorFlow would read a list as one tensor.
                yield keras.tree.lists_to_tuples(batch)
        except GeneratorExit:
            raise
        except BaseException as error:
            self.error = error
            raise


def _checked(batch_size: int | None) -> int:
    return (
        32 if batch_size is None else check_integer("batch_size", batch_size, minimum=1)
    )


def _is_dataset(x: Any) -> bool:
    """Whether `x` is a `tf.data.Dataset` or one of Grain's."""
    return hasattr(x, "element_spec") or type(x).__module__.startswith("grain")


def _weighted(batch: tuple, class_weight: dict[int, float]) -> tuple:
    """Add the weight of each row's class, as `fit` accepts it only with arrays."""
    x, y, *more = batch
    if more:
        reject("class_weight", class_weight, "None where there is `sample_weight`")
    if not isinstance(y, np.ndarray):
        reject("class_weight", class_weight, "None where there are several outputs")
    classes = y.argmax(-1) if y.ndim > 1 and y.shape[-1] > 1 else y.reshape(len(y))
    return x, y, np.array([class_weight.get(int(c), 1.0) for c in classes], "float32")
