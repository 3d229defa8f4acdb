"""What is damaged or makes no sense is refused in one line."""

import zipfile

import keras
import numpy as np
import pytest
from corruption import corruptions

import keras_trainkit as kt
from keras_trainkit import cli

NEEDS_LITERT = pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="deploy writes LiteRT files"
)


def build(*layers):
    return keras.Sequential([keras.Input((6, 6, 1)), *layers])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model and its data, each in a whole file."""
    folder = tmp_path_factory.mktemp("files")
    keras.utils.set_random_seed(0)
    model = build(
        keras.layers.Conv2D(8, 3, use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.Flatten(),
        keras.layers.Dense(3, activation="softmax"),
    )
    model.save(folder / "m.keras")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6, 6, 1)).astype("float32")
    y = rng.integers(0, 3, 40)
    np.savez(folder / "stored.npz", x=x, y=y)
    np.savez_compressed(folder / "compressed.npz", x=x, y=y)
    return folder


@pytest.fixture
def fails_in_one_line(capsys):
    def run(*arguments):
        assert cli.main([str(argument) for argument in arguments]) == 1
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("keras-trainkit: error: ")
        assert error.count("\n") == 1
        return error

    return run


def test_the_whole_files_are_taken(files, tmp_path, capsys):
    """Without this, a command that always fails would pass the tests below."""
    assert cli.main(["inspect", str(files / "m.keras")]) == 0
    assert "4 layers" in capsys.readouterr().out


def test_inspect_damaged_models(files, tmp_path, fails_in_one_line):
    path = tmp_path / "damaged.keras"
    for kind, content in corruptions((files / "m.keras").read_bytes(), 20):
        path.write_bytes(content)
        assert str(path) in fails_in_one_line("inspect", path), kind


@pytest.mark.parametrize("name", ["stored", "compressed"])
def test_deploy_damaged_data(files, tmp_path, fails_in_one_line, name):
    path = tmp_path / "damaged.npz"
    command = ["deploy", files / "m.keras", "--data", path, "-o", tmp_path / "out"]
    for _, content in corruptions((files / f"{name}.npz").read_bytes(), 20):
        path.write_bytes(content)
        assert f"{path} is not an .npz file with" in fails_in_one_line(*command)
    assert not (tmp_path / "out").exists()


def test_check_damaged_data(files, tmp_path, fails_in_one_line):
    model = keras.saving.load_model(files / "m.keras")
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.save(tmp_path / "m.keras")
    path = tmp_path / "damaged.npz"
    for _, content in corruptions((files / "compressed.npz").read_bytes(), 20):
        path.write_bytes(content)
        # NumPy leaves a file that is no archive open, which is a warning here.
        if zipfile.is_zipfile(path):
            fails_in_one_line("check", tmp_path / "m.keras", "--data", path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"x": np.full((40, 6, 6, 1), np.nan)}, "finite real numbers in x"),
        ({"y": np.full(40, np.inf)}, "finite real numbers in y"),
        ({"y": np.full(40, "1")}, "finite real numbers in y"),
        ({"x": np.ones((40, 6, 6, 1), complex)}, "finite real numbers in x"),
        ({"y": np.int64(1)}, "as many y"),
        ({"x": np.float32(1)}, "x of shape (rows, 6, 6, 1)"),
        ({"x": np.ones((0, 6, 6, 1)), "y": np.ones(0)}, "as many y"),
    ],
)
def test_deploy_data_that_makes_no_sense(
    files, tmp_path, fails_in_one_line, change, expected
):
    path = tmp_path / "data.npz"
    np.savez(path, **{**np.load(files / "stored.npz"), **change})
    out = tmp_path / "out"
    error = fails_in_one_line("deploy", files / "m.keras", "--data", path, "-o", out)
    assert expected in error
    assert not out.exists()


def test_inspect_models_that_cannot_be_inspected(tmp_path, fails_in_one_line):
    dense = build(keras.layers.Flatten(), keras.layers.Dense(3, name="head"))
    dense.set_weights([np.full_like(w, np.nan) for w in dense.get_weights()])
    path = tmp_path / "m.keras"
    dense.save(path)
    assert "holds NaN or infinity in head/kernel" in fails_in_one_line("inspect", path)
    build(keras.layers.ReLU()).save(path)
    assert "holds no weights" in fails_in_one_line("inspect", path)
    with pytest.warns(UserWarning, match="not yet been built"):
        keras.Sequential([keras.layers.Dense(3)]).save(path)
    assert "is not built" in fails_in_one_line("inspect", path)


@NEEDS_LITERT
def test_a_litert_file_is_no_model(files, tmp_path, fails_in_one_line):
    model = keras.saving.load_model(files / "m.keras")
    path = tmp_path / "m.tflite"
    kt.export.to_litert(model, path)
    for content in (path.read_bytes(), path.read_bytes()[:100]):
        path.write_bytes(content)
        assert "is not a .keras file" in fails_in_one_line("inspect", path)


def test_sparsity_of_a_model_without_weights():
    report = kt.pruning.sparsity_report(build(keras.layers.ReLU()))
    assert report.parameters == 0
    assert "0.0%" in report.summary()
