"""Real data sets as NumPy arrays, from local files if possible.

| name | images | train + validation / test | classes |
|---|---|---|---|
| `"digits"` | (8, 8, 1), scikit-learn's handwritten digits | 1,438 / 359 | 10 |
| `"fashion_mnist"` | (28, 28, 1), articles of clothing | 60,000 / 10,000 | 10 |
| `"cifar10"` | (32, 32, 3), photographs of objects and animals | 50,000 / 10,000 | 10 |
"""

import gzip
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from keras_trainkit._checks import check_choice, check_integer, reject

__all__ = ["Dataset", "load"]


def __dir__() -> list[str]:
    return __all__


DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, repr=False)
class Dataset:
    """Images and labels, split into training, validation and test parts.

    Attributes:
        name: The data set's name.
        x_train: Training images, float32, `(rows, height, width, channels)`.
        y_train: Training labels, int32, `(rows,)`, in `[0, num_classes)`.
        x_val: Validation images; zero rows if no validation part was requested.
        y_val: Validation labels.
        x_test: Test images.
        y_test: Test labels.
        class_names: The name of each class, in the order of the labels.
        mean: The mean that `standardize` subtracted, for pixels in `[0, 1]`; 0 if it
            was off.
        std: The standard deviation that `standardize` divided by; 1 if it was off.

    Examples:
        >>> import keras_trainkit as kt
        >>> digits = kt.datasets.load("digits")
        >>> digits.x_train.shape[1:], len(digits.class_names)
        ((8, 8, 1), 10)
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray

    @property
    def train(self) -> tuple[np.ndarray, np.ndarray]:
        """`(x_train, y_train)`, for `model.fit(*data.train)`."""
        return self.x_train, self.y_train

    @property
    def validation(self) -> tuple[np.ndarray, np.ndarray]:
        """`(x_val, y_val)`, for `validation_data`."""
        return self.x_val, self.y_val

    @property
    def test(self) -> tuple[np.ndarray, np.ndarray]:
        """`(x_test, y_test)`."""
        return self.x_test, self.y_test

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image: `(height, width, channels)`."""
        return self.x_train.shape[1:]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def images(self, x: np.ndarray) -> np.ndarray:
        """Undo the standardization and return pixels in `[0, 1]`, for display."""
        return np.clip(x * self.std + self.mean, 0.0, 1.0)

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}: {len(self.x_train)} train, {len(self.x_val)} "
            f"validation, {len(self.x_test)} test images of shape {self.input_shape}, "
            f"{self.num_classes} classes)"
        )


def load(
    name: str,
    validation: float = 0.1,
    standardize: bool | str = True,
    seed: int = 0,
) -> Dataset:
    """Load a data set, split off a validation part and standardize the images.

    Fashion-MNIST and CIFAR-10 are searched for in these places, in this order:

    1. The folder in the environment variable `KERAS_TRAINKIT_DATA`, as
       `fashion_mnist.npz` or `cifar10.npz` with the arrays `x_train`, `y_train`,
       `x_test` and `y_test` in the format of `keras.datasets`.
    2. For Fashion-MNIST, the folder of the Debian package `dataset-fashion-mnist`.
    3. `keras.datasets`, which downloads the data once and caches it.

    Args:
        name: `"digits"` (in scikit-learn, nothing to download), `"fashion_mnist"` or
            `"cifar10"`.
        validation: Size of the validation part: a fraction in `[0, 1)` or a number of
            rows >= 1; 0 for none. It is a stratified split of the training part.
        standardize: `True` or `"feature"` scales each pixel to mean 0 and standard
            deviation 1 (a constant pixel is only shifted to mean 0). `"channel"` does
            so for each colour channel. `False` leaves the pixels in `[0, 1]`. The
            statistics come from the training part only.
        seed: Seed of the validation split. The test part is always the same.

    Returns:
        A `Dataset`.

    Raises:
        ValueError: If an argument is wrong or a file is damaged.
        FileNotFoundError: If the data cannot be found; the message says what to do.

    Examples:
        >>> import keras_trainkit as kt
        >>> kt.datasets.load("digits", validation=0.2)
        Dataset('digits': 1150 train, 288 validation, 359 test images of shape
        (8, 8, 1), 10 classes)
    """
    check_choice("name", name, _SOURCES)
    check_choice("standardize", standardize, (True, False, "feature", "channel"))
    read, class_names = _SOURCES[name]
    arrays = read()
    x = _as_images(arrays["x_train"])
    y = arrays["y_train"].ravel().astype(np.int32)
    rows_val = _stratified(y, _num_rows("validation", validation, len(y)), seed)
    rows_train = np.setdiff1d(np.arange(len(y)), rows_val)

    x_train, x_val, x_test = x[rows_train], x[rows_val], _as_images(arrays["x_test"])
    mean, std = _statistics(x_train, standardize)
    return Dataset(
        name=name,
        x_train=(x_train - mean) / std,
        y_train=y[rows_train],
        x_val=(x_val - mean) / std,
        y_val=y[rows_val],
        x_test=(x_test - mean) / std,
        y_test=arrays["y_test"].ravel().astype(np.int32),
        class_names=class_names,
        mean=mean,
        std=std,
    )


def _as_images(pixels: np.ndarray) -> np.ndarray:
    images = pixels.astype(np.float32) / np.float32(255)
    return images[..., np.newaxis] if images.ndim == 3 else images


def _statistics(x: np.ndarray, standardize: bool | str) -> tuple:
    if standardize is False:
        return np.float32(0), np.float32(1)
    axes: tuple[int, ...] = (0, 1, 2) if standardize == "channel" else (0,)
    # Use float64: a float32 sum over 50,000 rows is wrong in the fourth digit.
    mean = x.mean(axis=axes, dtype=np.float64)
    std = x.std(axis=axes, dtype=np.float64)
    return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)


def _num_rows(name: str, size: float, total: int) -> int:
    """Convert a fraction or a count to a count that leaves rows for training."""
    expected = f"a fraction in [0, 1) or a number of rows in [1, {total})"
    if isinstance(size, bool) or not isinstance(size, int | float | np.number):
        reject(name, size, expected)
    if not (0 <= size < 1 or (1 <= size < total and size == int(size))):
        reject(name, size, expected)
    return round(size * total) if size < 1 else int(size)


def _stratified(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return sorted indices of a stratified random sample of `size` rows."""
    rng = np.random.default_rng(check_integer("seed", seed, minimum=0))
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * size / len(labels)
    share = np.floor(exact).astype(int)
    # Round by largest remainder, so that the counts add up to `size`.
    share[np.argsort(share - exact, kind="stable")[: size - share.sum()]] += 1
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:n]
        for label, n in zip(classes, share, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _digits() -> Arrays:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ModuleNotFoundError(
            "The digits come with scikit-learn, which is not installed: "
            "pip install scikit-learn"
        ) from None
    digits = load_digits()
    # Scale 0..16 to 0..255, the range of the other two data sets.
    images = (digits.images * (255 / 16)).astype(np.float32)
    test = _stratified(digits.target, 359, seed=0)
    train = np.setdiff1d(np.arange(len(images)), test)
    return {
        "x_train": images[train],
        "y_train": digits.target[train],
        "x_test": images[test],
        "y_test": digits.target[test],
    }


def _fashion_mnist() -> Arrays:
    return _find(
        "fashion_mnist",
        image_shape=(28, 28),
        sizes=(60_000, 10_000),
        fallbacks=[_debian_fashion_mnist, keras.datasets.fashion_mnist.load_data],
        remedy="install Debian's package dataset-fashion-mnist; ",
    )


def _cifar10() -> Arrays:
    return _find(
        "cifar10",
        image_shape=(32, 32, 3),
        sizes=(50_000, 10_000),
        fallbacks=[keras.datasets.cifar10.load_data],
    )


def _find(
    name: str,
    image_shape: tuple[int, ...],
    sizes: tuple[int, int],
    fallbacks: list[Callable],
    remedy: str = "",
) -> Arrays:
    folder = os.environ.get("KERAS_TRAINKIT_DATA")
    path = Path(folder, f"{name}.npz") if folder else None
    if path and path.is_file():
        return _read_npz(path, image_shape, sizes)
    failure: Exception | None = None
    for fallback in fallbacks:
        try:
            (x_train, y_train), (x_test, y_test) = fallback()
        except Exception as error:  # keras.utils.get_file raises a bare Exception
            failure = error
        else:
            return dict(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    raise FileNotFoundError(
        f"{name} was not found and could not be downloaded. Either put {name}.npz "
        "(x_train, y_train, x_test, y_test) into a folder and name the folder in the "
        f"environment variable KERAS_TRAINKIT_DATA; {remedy}or run "
        f"`keras.datasets.{name}.load_data()` once where there is a network. "
        f"Received: KERAS_TRAINKIT_DATA={folder!r}"
    ) from failure


def _read_npz(
    path: Path, image_shape: tuple[int, ...], sizes: tuple[int, int]
) -> Arrays:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {k: archive[k] for k in ("x_train", "y_train", "x_test", "y_test")}
    except KeyError as error:
        raise ValueError(f"{path} has no array {error}") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged or no .npz file: {error}") from None
    for part, rows in zip(("train", "test"), sizes, strict=True):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.shape != (rows, *image_shape) or y.size != rows or x.dtype != np.uint8:
            raise ValueError(
                f"{path} must hold x_{part} of shape {(rows, *image_shape)} and dtype "
                f"uint8 and as many labels. Received: x_{part} of shape {x.shape} and "
                f"dtype {x.dtype}, y_{part} of shape {y.shape}"
            )
    return arrays


def _debian_fashion_mnist() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if not DEBIAN_FASHION_MNIST.is_dir():
        raise FileNotFoundError(DEBIAN_FASHION_MNIST)

    def read(name: str, header: int) -> np.ndarray:
        path = DEBIAN_FASHION_MNIST / f"{name}-ubyte.gz"
        with gzip.open(path) as file:
            return np.frombuffer(file.read(), np.uint8, offset=header)

    return (
        (
            read(f"{part}-images-idx3", 16).reshape(-1, 28, 28),
            read(f"{part}-labels-idx1", 8),
        )
        for part in ("train", "t10k")
    )


_SOURCES: dict[str, tuple[Callable[[], Arrays], tuple[str, ...]]] = {
    "digits": (_digits, tuple("0123456789")),
    "fashion_mnist": (_fashion_mnist, _FASHION_CLASSES),
    "cifar10": (_cifar10, _CIFAR_CLASSES),
}
