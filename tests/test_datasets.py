import gzip
import struct

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

import keras_trainkit as kt
from keras_trainkit import datasets


def test_digits_are_scikit_learns():
    data = kt.datasets.load("digits", standardize=False)
    assert data.x_train.shape == (1294, 8, 8, 1)
    assert data.x_val.shape == (144, 8, 8, 1)
    assert data.x_test.shape == (359, 8, 8, 1)
    assert data.input_shape == (8, 8, 1)
    assert data.num_classes == 10
    for x, y in (data.train, data.validation, data.test):
        assert x.dtype == np.float32
        assert y.dtype == np.int32
        assert x.min() == 0
        assert x.max() == 1
    # Every image of the source is in exactly one part.
    ours = np.concatenate([data.x_train, data.x_val, data.x_test]).reshape(-1, 64)
    theirs = load_digits().data / 16
    np.testing.assert_allclose(
        ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)], atol=1e-6
    )


def test_the_split_is_stratified_and_seeded():
    def labels(**kwargs):
        return kt.datasets.load("digits", **kwargs)

    data = labels(validation=0.25)
    assert len(data.y_val) == round(0.25 * 1438)
    pool = np.bincount(data.y_train) + np.bincount(data.y_val)
    assert np.abs(np.bincount(data.y_val) - pool * 0.25).max() < 1
    np.testing.assert_array_equal(data.x_val, labels(validation=0.25).x_val)
    other = labels(validation=0.25, seed=1)
    assert not np.array_equal(data.x_val, other.x_val)
    np.testing.assert_array_equal(data.y_test, other.y_test)
    assert len(labels(validation=200).y_val) == 200
    assert len(labels(validation=0).y_val) == 0


@pytest.mark.parametrize("standardize", [True, "feature", "channel"])
def test_standardize_uses_the_training_part_alone(standardize):
    plain = kt.datasets.load("digits", standardize=False)
    data = kt.datasets.load("digits", standardize=standardize)
    axes = (0, 1, 2) if standardize == "channel" else 0
    mean, std = plain.x_train.mean(axes), plain.x_train.std(axes)
    varies = std > 1e-6
    train = data.x_train.reshape(-1, *np.shape(mean)) if axes != 0 else data.x_train
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(train.std(0)[varies], 1, atol=1e-3)
    expected = (plain.x_test - mean) / np.where(varies, std, 1)
    np.testing.assert_allclose(data.x_test, expected, atol=1e-4)
    np.testing.assert_allclose(data.images(data.x_val), plain.x_val, atol=1e-6)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_TRAINKIT_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", tmp_path / "debian")

    def no_network():
        raise OSError("no network")

    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", no_network)
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", no_network)
    return tmp_path


def fashion_arrays(rng):
    return {
        "x_train": rng.integers(0, 256, (60_000, 28, 28), dtype=np.uint8),
        "y_train": (np.arange(60_000) % 10).astype(np.uint8),
        "x_test": rng.integers(0, 256, (10_000, 28, 28), dtype=np.uint8),
        "y_test": (np.arange(10_000) % 10).astype(np.uint8),
    }


def test_the_folder_comes_first(folder, rng):
    arrays = fashion_arrays(rng)
    np.savez(folder / "fashion_mnist.npz", **arrays)
    data = kt.datasets.load("fashion_mnist", validation=5000, standardize=False)
    assert data.x_train.shape == (55_000, 28, 28, 1)
    assert np.bincount(data.y_val).tolist() == [500] * 10
    np.testing.assert_allclose(data.x_test[..., 0], arrays["x_test"] / 255, atol=1e-6)
    assert data.class_names[9] == "Ankle boot"


def test_debians_folder_comes_second(folder, monkeypatch):
    images = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    (folder / "debian").mkdir()
    for part in ("train", "t10k"):
        for kind, header, body in (
            ("images-idx3", struct.pack(">4i", 2051, 3, 28, 28), images.tobytes()),
            ("labels-idx1", struct.pack(">2i", 2049, 3), bytes([1, 2, 3])),
        ):
            with gzip.open(folder / f"debian/{part}-{kind}-ubyte.gz", "wb") as file:
                file.write(header + body)
    data = kt.datasets.load("fashion_mnist", validation=0, standardize=False)
    assert data.y_train.tolist() == [1, 2, 3]
    np.testing.assert_allclose(data.x_train[..., 0], images / 255, atol=1e-6)


def test_kerass_own_comes_last(folder, monkeypatch, rng):
    x = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    y = (np.arange(40) % 10)[:, np.newaxis]
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: ((x, y), (x, y)))
    data = kt.datasets.load("cifar10", validation=10)
    assert data.x_train.shape == (30, 32, 32, 3)
    assert data.y_train.shape == (30,)


def test_missing_data_names_every_remedy(folder):
    with pytest.raises(FileNotFoundError) as error:
        kt.datasets.load("fashion_mnist")
    for remedy in (
        "KERAS_TRAINKIT_DATA",
        "dataset-fashion-mnist",
        "keras.datasets.fashion_mnist.load_data()",
    ):
        assert remedy in str(error.value)


def test_damaged_files_are_named(folder, rng):
    path = folder / "fashion_mnist.npz"
    np.savez(path, **fashion_arrays(rng))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"fashion_mnist.npz is damaged"):
        kt.datasets.load("fashion_mnist")
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"fashion_mnist.npz is damaged"):
        kt.datasets.load("fashion_mnist")
    np.savez(path, x_train=np.zeros(3))
    with pytest.raises(ValueError, match=r"fashion_mnist.npz has no array"):
        kt.datasets.load("fashion_mnist")
    arrays = fashion_arrays(rng)
    arrays["x_test"] = arrays["x_test"][:, :27]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r"npz must hold x_test of shape .*28, 28"):
        kt.datasets.load("fashion_mnist")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "mnist"}, "`name` must be one of 'digits'"),
        ({"validation": -0.1}, "`validation` must be a fraction"),
        ({"validation": 1438}, "`validation` must be a fraction"),
        ({"validation": 10.5}, "`validation` must be a fraction"),
        ({"validation": "half"}, "`validation` must be a fraction"),
        ({"standardize": "pixel"}, "`standardize` must be one of"),
        ({"seed": -1}, "`seed` must be an integer"),
    ],
)
def test_bad_arguments(kwargs, message):
    arguments = {"name": "digits", **kwargs}
    with pytest.raises(ValueError, match=message):
        kt.datasets.load(**arguments)
