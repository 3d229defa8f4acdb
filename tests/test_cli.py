import os
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import once

import keras_trainkit as kt
from keras_trainkit import cli
from keras_trainkit.cli import _command, _demo
from keras_trainkit.cli._output import CommandError, whole_folder

# The other backends start a process with TensorFlow for each file.
_tensorflow_only = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="seconds for each file"
)

FILES = {
    "report.md",
    "learning_rate.png",
    "one_cycle.png",
    "learning_curves.png",
    "certainty.png",
    "front.png",
    "variants.png",
    "model.keras",
    "model_folded.keras",
    "model_compressed.keras",
    "trained.tflite",
    "folded_int8.tflite",
    "compressed.tflite",
}


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("half a minute, with a process for each file")
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    assert cli.main(["demo", "--out", str(out), "--epochs", "4"]) == 0
    return out


def test_demo_writes_what_its_report_shows(demo_folder):
    assert {path.name for path in demo_folder.iterdir()} == FILES
    report = (demo_folder / "report.md").read_text()
    linked = set(re.findall(r"\]\(([^)]+)\)", report))
    assert linked == FILES - {"report.md"}
    for name in linked:
        assert (demo_folder / name).stat().st_size > 1000


def test_demo_tells_the_truth_about_its_files(demo_folder):
    report = (demo_folder / "report.md").read_text()
    data = kt.datasets.load("digits")
    for name in ("trained", "folded, int8", "compressed"):
        told = re.search(rf"\| {name} \| LiteRT .* ([\d.]+)% \|", report).group(1)
        file = demo_folder / f"{name.replace(', ', '_')}.tflite"
        outputs = kt.export.predict_litert(file, data.x_test)
        accuracy = np.mean(outputs.argmax(-1) == data.y_test)
        assert float(told) == round(100 * accuracy, 2)
        assert accuracy > 0.8
    model = keras.saving.load_model(demo_folder / "model.keras")
    folded = keras.saving.load_model(demo_folder / "model_folded.keras")
    np.testing.assert_allclose(
        model.predict(data.x_test, verbose=0),
        folded.predict(data.x_test, verbose=0),
        atol=1e-5,
    )
    compressed = keras.saving.load_model(demo_folder / "model_compressed.keras")
    assert compressed.count_params() < model.count_params()
    sizes = [
        (demo_folder / name).stat().st_size
        for name in ("trained.tflite", "compressed.tflite")
    ]
    assert 4 * sizes[1] <= sizes[0]
    assert f"bytes <= {sizes[0] // 4}: reached" in report


def test_a_folder_with_files_needs_force(demo_folder, capsys):
    before = {path: path.read_bytes() for path in demo_folder.iterdir()}
    assert cli.main(["demo", "--out", str(demo_folder)]) == 1
    assert "is not empty; --force" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in demo_folder.iterdir()} == before


@once
@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError("disk full")])
def test_a_demo_that_stops_leaves_nothing(tmp_path, monkeypatch, capsys, failure):
    def stop(*_):
        raise failure

    monkeypatch.setattr(_demo, "_judge", stop)
    out = tmp_path / "a" / "b"
    status = cli.main(["demo", "--out", str(out), "--epochs", "1"])
    error = capsys.readouterr().err
    if failure is KeyboardInterrupt:
        assert status == 130
        assert "interrupted; nothing was written" in error
    else:
        assert status == 1
        assert "error: disk full" in error
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_one_clear_line(tmp_path, monkeypatch, capsys):
    def missing(name):
        raise FileNotFoundError(f"{name} was not found")

    monkeypatch.setattr(kt.datasets, "load", missing)
    out = tmp_path / "out"
    assert cli.main(["demo", "--data", "cifar10", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert error == "keras-trainkit: error: cifar10 was not found\n"
    assert not out.exists()


def test_missing_packages_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_demo, "_NEEDS", {"no_such_module": "no-such-package"})
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 1
    assert "needs no-such-package: pip install" in capsys.readouterr().err


def test_a_file_in_the_way(tmp_path, capsys):
    path = tmp_path / "file"
    path.write_text("mine")
    assert cli.main(["demo", "--out", str(path)]) == 1
    assert "is not a folder" in capsys.readouterr().err
    assert cli.main(["demo", "--out", str(path / "below")]) == 1
    assert "cannot write to" in capsys.readouterr().err
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["demo", "--epochs", "0"], "must be an integer >= 1. Received: 0"),
        (["demo", "--epochs", "many"], "must be an integer >= 1. Received: many"),
        (["demo", "--data", "mnist"], "invalid choice: 'mnist'"),
        (["demo", "--backend", "mxnet"], "invalid choice: 'mxnet'"),
    ],
)
def test_bad_arguments(argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(argv)
    assert message in capsys.readouterr().err


def test_a_backend_that_is_not_installed(monkeypatch, capsys):
    names = (*_command._BACKENDS, "no_such_backend")
    monkeypatch.setattr(_command, "_BACKENDS", names)
    assert cli.main(["demo", "--backend", "no_such_backend"]) == 1
    error = capsys.readouterr().err
    assert "no_such_backend is not installed: pip install keras-trainkit[" in error


def test_another_backend_starts_again(tmp_path):
    other = "torch" if keras.backend.backend() != "torch" else "jax"
    (tmp_path / "file").touch()
    command = "import sys; from keras_trainkit.cli import main; sys.exit(main())"
    argv = ["demo", "--backend", other, "--out", str(tmp_path / "file")]
    run = subprocess.run(
        [sys.executable, "-c", command, *argv],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "is not a folder" in run.stderr


def test_help_imports_nothing_heavy():
    """The installed command runs this file as a module of its own."""
    code = (
        "import runpy, sys\n"
        f"main = runpy.run_path({_command.__file__!r})['main']\n"
        "try:\n"
        "    main(['--help'])\n"
        "finally:\n"
        "    heavy = {'keras', 'keras_trainkit', 'numpy'} & set(sys.modules)\n"
        "    print('loaded:', *heavy)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "inspect" in run.stdout
    assert run.stdout.rstrip().endswith("loaded:")
    assert run.stderr == ""


def test_what_is_logged_during_the_import_shows_only_if_it_fails(capfd):
    with _command._quiet_import():
        os.write(2, b"a log line")
    assert capfd.readouterr().err == ""

    def fail():
        with _command._quiet_import():
            os.write(2, b"a log line")
            raise ImportError("broken")

    with pytest.raises(ImportError, match="broken"):
        fail()
    assert capfd.readouterr().err == "a log line"


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == kt.__version__


def test_whole_folder_replaces_files_of_its_own_names_only(tmp_path):
    (tmp_path / "report.md").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CommandError, match="not empty"), whole_folder(tmp_path, False):
        pass
    with whole_folder(tmp_path, True) as scratch:
        (scratch / "report.md").write_text("new")
        assert (tmp_path / "report.md").read_text() == "old"
    assert (tmp_path / "report.md").read_text() == "new"
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


# --- deploy and inspect


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small model with BatchNorms in a file, and data for it."""
    folder = tmp_path_factory.mktemp("trained")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(8, 3, use_bias=False),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3, name="drop"),
            keras.layers.Dense(3, activation="softmax", name="head"),
        ]
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6, 6, 1)).astype("float32")
    # The brightest of three parts.
    y = x.reshape(300, 3, 12).mean(-1).argmax(-1)
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(x[:260], y[:260], 26, 10, verbose=0)
    model.save(folder / "m.keras")
    np.savez(folder / "train.npz", x=x[:260], y=y[:260])
    np.savez(folder / "val.npz", x=x[260:], y=y[260:])
    return folder


def deploy(folder, out, *more, model="m.keras", data="val.npz"):
    arguments = ["deploy", str(folder / model), "--data", str(folder / data)]
    return cli.main([*arguments, "-o", str(out), "--repetitions", "2", *more])


@once
def test_deploy(trained, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--fold", "--prune-channels", "0.5", "--quantize", "int8"]
    assert deploy(trained, out, *options) == 0
    told = capsys.readouterr().out
    assert "| folded, fewer channels, int8 | LiteRT |" in told
    # What the cut cost, and that the uncut model is there in int8.
    data = np.load(trained / "val.npz")
    accuracy = [
        np.mean(kt.export.predict_litert(out / name, data["x"]).argmax(-1) == data["y"])
        for name in ("folded.tflite", "folded_fewer_channels.tflite")
    ]
    lost = 100 * (accuracy[0] - accuracy[1])
    assert f"Cutting 50% of the channels cost {lost:.2f} points of accuracy" in told
    assert "(folded_int8.tflite)" in told
    assert {path.name for path in out.iterdir()} == {
        "trained.tflite",
        "folded.keras",
        "folded.tflite",
        "folded_int8.tflite",
        "folded_fewer_channels.keras",
        "folded_fewer_channels.tflite",
        "folded_fewer_channels_int8.tflite",
        "report.md",
        "report.json",
        "report.png",
    }
    smaller = keras.saving.load_model(out / "folded_fewer_channels.keras")
    assert smaller.layers[0].filters == 4
    assert "has not been trained since" in (out / "report.md").read_text()


def bytes_of_header(header, folder):
    """What a C compiler, or without one a reader of C, finds in a header."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        body = header.read_text().split("{")[1].split("}")[0]
        return bytes(int(number, 16) for number in body.split(","))
    name = header.stem
    code = (
        f'#include "{header}"\n#include <stdio.h>\n#include <stdint.h>\n'
        f"int main(void) {{ fwrite({name}, 1, {name}_len, stdout);\n"
        f"return sizeof {name} != {name}_len || (uintptr_t){name} % 16; }}\n"
    )
    (folder / "main.c").write_text(code)
    program = folder / "main"
    subprocess.run([compiler, "-Wall", "-Werror", folder / "main.c", "-o", program],
                   check=True)  # fmt: skip
    return subprocess.run([program], check=True, capture_output=True).stdout


@_tensorflow_only
def test_deploy_trains_with_rounding_and_writes_c(trained, tmp_path, capsys):
    out = tmp_path / "out"
    train = ["--train", str(trained / "train.npz"), "--epochs", "1"]
    options = [*train, "--quantize-aware", "--prune-channels", "0.25", "--c-array"]
    assert deploy(trained, out, *options) == 0
    told = capsys.readouterr().out
    assert "channels and training on cost" in told
    name = "trained_fewer_channels_trained_quantization_aware_int8"
    assert (out / f"{name}.tflite").exists()
    file = out / f"{name}_int8_inputs.tflite"
    for details in (
        *kt.export.load_litert(file).get_input_details(),
        *kt.export.load_litert(file).get_output_details(),
    ):
        assert details["dtype"] is np.int8
    assert bytes_of_header(out / "model.h", tmp_path) == file.read_bytes()
    # The input, and what the convolution makes of it, are there at the same time.
    told = (out / "model.h").read_text().splitlines()[0]
    assert int(re.sub(r"\D", "", told)) >= 6 * 6 + 4 * 4 * 6


@_tensorflow_only
def test_deploy_takes_several_inputs_and_outputs(tmp_path, capsys):
    a, b = keras.Input((3,), name="a"), keras.Input((2,), dtype="int32", name="b")
    words = keras.layers.Flatten()(keras.layers.Embedding(9, 2)(b))
    both = keras.layers.Concatenate()([a, words])
    outputs = [
        keras.layers.Dense(n, name=name)(both) for n, name in ((3, "p"), (1, "q"))
    ]
    keras.Model([a, b], outputs).save(tmp_path / "m.keras")
    rng = np.random.default_rng(0)
    arrays = {
        "x_a": rng.normal(size=(20, 3)),
        "x_b": rng.integers(0, 9, (20, 2)),
        "y_p": rng.integers(0, 3, 20),
        "y_q": rng.normal(size=(20, 1)),
    }
    np.savez(tmp_path / "val.npz", **arrays)
    assert deploy(tmp_path, tmp_path / "out", "--quantize", "int8") == 0
    assert "| trained, int8 | LiteRT |" in capsys.readouterr().out
    del arrays["y_q"]
    np.savez(tmp_path / "val.npz", **arrays)
    assert deploy(tmp_path, tmp_path / "out", "--force") == 1
    assert "not an .npz file with arrays y_q" in capsys.readouterr().err


# --- compress


def compress(folder, out, *more, data="train.npz"):
    files = ["--data", str(folder / data), "--validation", str(folder / "val.npz")]
    arguments = ["compress", str(folder / "m.keras"), *files, "-o", str(out)]
    return cli.main([*arguments, "--epochs", "1", *more])


@_tensorflow_only
def test_compress_reaches_a_size(trained, tmp_path, capsys):
    out = tmp_path / "small.tflite"
    assert compress(trained, out, "--max-kb", "5", "--c-array") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    data = np.load(trained / "val.npz")
    outputs = kt.export.predict_litert(out, data["x"])
    right = np.mean(outputs.argmax(-1) == data["y"])
    size = out.stat().st_size
    assert last.startswith(f"reached: {out}, {size / 1e3:,.1f} kB, {right:.2%} on")
    assert size <= 5000
    assert bytes_of_header(tmp_path / "small.h", tmp_path) == out.read_bytes()
    assert kt.export.load_litert(out).get_input_details()[0]["dtype"] is np.int8


@_tensorflow_only
def test_compress_says_what_it_did_not_reach(trained, tmp_path, capsys):
    out = tmp_path / "small.tflite"
    limits = ["--max-kb", "0.1", "--time-limit", "0.001"]
    assert compress(trained, out, *limits) == 3
    assert capsys.readouterr().out.splitlines()[-1].startswith("not reached, the near")
    assert out.stat().st_size > 100
    assert compress(trained, out, *limits) == 1
    assert "is there already; --force replaces it" in capsys.readouterr().err


def test_compress_errors_are_one_line(trained, tmp_path, capsys):
    whole = (trained / "train.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "nan.npz", x=np.full((60, 6, 6, 1), np.nan), y=np.zeros(60))
    np.savez(tmp_path / "few.npz", x=np.ones((9, 6, 6, 1)), y=np.zeros(9, int))
    np.savez(tmp_path / "words.npz", x=np.full((60, 6, 6, 1), "a"), y=np.zeros(60))
    for data, expected in (
        ("cut.npz", "is not an .npz file with arrays x and y"),
        ("nan.npz", "must have finite real numbers in x"),
        ("words.npz", "must have finite real numbers in x"),
        ("few.npz", "`x` must be at least 50 rows"),
        ("none.npz", "there is no file"),
    ):
        out = tmp_path / "small.tflite"
        assert compress(trained, out, data=str(tmp_path / data)) == 1
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1
        assert not out.exists()
    assert compress(trained, tmp_path / "no" / "small.tflite") == 1
    assert "must end in .tflite, in a folder that is there" in capsys.readouterr().err


def test_deploy_options_that_contradict_each_other(trained, tmp_path, capsys):
    train = ["--train", str(trained / "train.npz")]
    for options, expected in (
        (["--quantize-aware"], "needs training data: --train NPZ"),
        (train, "--train needs --quantize-aware or --prune-channels"),
        ([*train, "--quantize-aware", "--quantize", "dynamic"], "leave --quantize out"),
        (["--c-array"], "--c-array needs --quantize int8"),
    ):
        assert deploy(trained, tmp_path / "out", *options) == 1
        assert expected in capsys.readouterr().err


def test_inspect(trained, capsys):
    assert cli.main(["inspect", str(trained / "m.keras")]) == 0
    text = capsys.readouterr().out
    assert "without norm, re_lu, drop" in text
    assert "kept head: goes through the activation" in text


def test_deploy_errors_are_one_line(trained, tmp_path, capsys):
    (tmp_path / "text.keras").write_text("not a model")
    np.savez(tmp_path / "other.npz", x=np.zeros((4, 5)), y=np.zeros(4))
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "pickle.npz").write_bytes((tmp_path / "pickle.npy").read_bytes())
    unsafe = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x)])
    unsafe.save(tmp_path / "lambda.keras")
    out = tmp_path / "out"
    for folder, model, data, expected in (
        (trained, "none.keras", "val.npz", "there is no file"),
        (tmp_path, "text.keras", "other.npz", "is not a .keras file"),
        (tmp_path, "lambda.keras", "other.npz", "cannot be loaded"),
    ):
        assert deploy(folder, out, model=model, data=data) == 1
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1
    for name, expected in (
        ("other.npz", "must have x of shape (rows, 6, 6, 1)"),
        ("pickle.npz", "is not an .npz file with arrays x and y"),
        ("none.npz", "there is no file"),
    ):
        model = str(trained / "m.keras")
        data = str(tmp_path / name)
        assert cli.main(["deploy", model, "--data", data, "-o", str(out)]) == 1
        assert expected in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(SystemExit):
        deploy(trained, out, "--prune-channels", "1.5")
