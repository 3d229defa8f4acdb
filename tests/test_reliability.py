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
        ({"x": np.ones((0, 6, 6, 1)), "y": np.ones(0)}, "x of shape (rows, 6, 6, 1)"),
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


# --- Arguments without sense, for whoever had no check of them

ARRAY = np.array([])


def learner():
    model = build(keras.layers.Flatten(), keras.layers.Dense(3, "softmax"))
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


X, Y = np.ones((20, 6, 6, 1), "float32"), np.zeros(20, "int32")
BAD_CALLS = {
    "fold, no rows": lambda: kt.folding.fold_batch_norm(learner(), X[:0]),
    "fold, a number": lambda: kt.folding.fold_batch_norm(learner(), 1.0),
    "fold, nothing": lambda: kt.folding.fold_batch_norm(learner(), []),
    "preset, 0": lambda: kt.models.PRESETS["default"].callbacks(0),
    "preset, False": lambda: kt.models.PRESETS["default"].callbacks(False),
    "preset, rate 0": lambda: kt.models.PRESETS["default"].make_optimizer(0),
    "mlp, no shape": lambda: kt.models.build_mlp(None, 3),
    "mlp, a number as shape": lambda: kt.models.build_mlp(6, 3),
    "mlp, text as units": lambda: kt.models.build_mlp((6,), 3, hidden_units="abc"),
    "mlp, a number as units": lambda: kt.models.build_mlp((6,), 3, hidden_units=8),
    "mlp, an array as preset": lambda: kt.models.build_mlp((6,), 3, ARRAY),
    "resnet, a number": lambda: kt.models.build_cifar_resnet(32, 10),
    "resnet, text": lambda: kt.models.build_cifar_resnet("abc", 10),
    "resnet, negative": lambda: kt.models.build_cifar_resnet((32, -1, 3), 10),
    "hypermodel, a number": lambda: kt.models.hypermodel(
        0.1, input_shape=(6,), num_classes=3
    ),
    "freeze, nothing": lambda: kt.transfer.freeze(learner(), until=[]),
    "freeze, an array": lambda: kt.transfer.freeze(learner(), until=ARRAY),
    "unfreeze, nothing": lambda: kt.transfer.unfreeze(learner(), since=()),
    "nll, a number": lambda: kt.uncertainty.nll(Y, 0.5),
    "aurc, text": lambda: kt.uncertainty.aurc([0, 1], np.eye(2), "abc"),
    "aurc, a dict": lambda: kt.uncertainty.aurc([0, 1], np.eye(2), {}),
    "sparsity, no model": lambda: kt.pruning.sparsity_report(None),
    "sparsity, pattern": lambda: kt.pruning.sparsity_report(learner(), 2.5),
    "sparsity, 0": lambda: kt.pruning.sparsity_report(learner(), 0),
    "signal, no model": lambda: kt.diagnostics.signal_report(None, X),
    "self-normalization": lambda: kt.diagnostics.self_normalization("m", X),
    "flops, no model": lambda: kt.flops(None),
    "find_lr, no data": lambda: kt.find_lr(learner(), None, Y),
    "find_lr, class_weight": lambda: kt.find_lr(learner(), X, Y, class_weight=[1]),
    "sweep, a number": lambda: kt.lr_sweep(learner, 0.1, X, Y),
    "sweep, text": lambda: kt.lr_sweep(learner, "abc", X, Y),
    "analyse, text": lambda: kt.lr_finder.analyse("abc", [1.0]),
    "multi-step, a number": lambda: kt.schedules.MultiStep(0.1, 5, 0.5),
    "multiplicative": lambda: kt.schedules.Multiplicative(0.1, None, 5),
    "reducible, too few": lambda: kt.schedules.Reducible(
        kt.schedules.Constant(0.1), (1.0,)
    ),
    "reducible, NaN": lambda: kt.schedules.Reducible(
        kt.schedules.Constant(0.1), (1.0, np.nan, 0, 0)
    ),
    "sequential, a number": lambda: kt.schedules.Sequential(3, [5]),
    "sequential, boundaries": lambda: kt.schedules.Sequential(
        [kt.schedules.Constant(0.1)], 5
    ),
    "warm-up, an array": lambda: kt.schedules.Warmup(np.ones(3), 5),
    "momentum, a number": lambda: kt.callbacks.OneCycle(0.1, momentum=0.9),
    "momentum, text": lambda: kt.callbacks.OneCycle(0.1, momentum=("a", "b")),
    "piecewise, a number": lambda: kt.callbacks.PiecewiseConstantSchedule(1, [0.1]),
    "piecewise, no values": lambda: kt.callbacks.PiecewiseConstantSchedule([1], 3),
    "prune once, no model": lambda: kt.pruning.prune_once(None, 0.5),
    "fold, rank": lambda: kt.folding.fold_batch_norm(learner(), X[0]),
    "fold, text": lambda: kt.folding.fold_batch_norm(learner(), np.array(["a"])),
    "signal, text": lambda: kt.diagnostics.signal_report(learner(), np.array(["a"])),
    "signal, targets": lambda: kt.diagnostics.signal_report(learner(), X, Y[:3]),
    "one cycle, an array": lambda: kt.schedules.OneCycle(0.1, 100, anneal=ARRAY),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_arguments_that_make_no_sense(name):
    with pytest.raises(ValueError, match="Received: "):
        BAD_CALLS[name]()


def test_what_a_preset_takes_as_it_was():
    preset = kt.models.PRESETS["default"]
    rate = keras.ops.convert_to_numpy(preset.make_optimizer().learning_rate)
    assert float(rate) == pytest.approx(preset.learning_rate)
    (cycle, _) = preset.callbacks()
    assert cycle.max_lr == preset.learning_rate
    (cycle, _) = preset.callbacks(0.5)
    assert cycle.max_lr == 0.5


# --- Selectors


def twins():
    """Two blocks with a layer of one name in each."""
    inputs = keras.Input((4,))
    blocks = [
        keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(4, name="same")], name=name
        )
        for name in ("left", "right")
    ]
    x = blocks[1](blocks[0](inputs))
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(x))


SELECTING = {
    "MagnitudePruning include": lambda m, s: kt.pruning.prune_once(m, 0.5, include=s),
    "MagnitudePruning exclude": lambda m, s: kt.pruning.prune_once(m, 0.5, exclude=s),
    "channels, ratio": lambda m, s: kt.pruning.prune_channels(m, {s: 0.5}),
    "sparsity": lambda m, s: kt.pruning.prune_once(m, {s: 0.5}),
    "quantize_aware": lambda m, s: kt.quantization.quantize_aware(m, exclude=s),
    "freeze": lambda m, s: kt.transfer.freeze(m, s),
    "freeze until": lambda m, s: kt.transfer.freeze(m, until=s),
    "unfreeze": lambda m, s: kt.transfer.unfreeze(m, s),
}


@pytest.mark.parametrize("name", SELECTING)
def test_selectors_that_mean_another_or_two(name):
    model, other = twins(), twins()
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"left/same, right/same.*Received: .*'same'"):
        SELECTING[name](model, "same")
    with pytest.raises(ValueError, match="matches a layer of the model"):
        SELECTING[name](model, other.layers[-1])
    for got, want in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(got, want)
    assert all(layer.trainable for layer in model.layers)
    # A path, an expression and the layer itself say which.
    for selector in ("left/same", ".*/same", model.layers[1].layers[0]):
        SELECTING[name](model, selector)


@pytest.mark.parametrize("where", [keras.layers.Dense, keras.layers.Dense(1), 3])
def test_where_is_an_expression_or_a_function(where):
    with pytest.raises(ValueError, match="Received: where="):
        kt.regularizers.apply(twins(), kernel="l2", where=where)


# --- Many devices


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch's wrapper")
def test_the_wrapper_of_pytorch_is_refused_with_the_remedy(tmp_path):
    import torch

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        wrapper = torch.nn.parallel.DistributedDataParallel(learner())
        calls = (
            lambda: kt.find_lr(wrapper, X, Y),
            lambda: kt.uncertainty.mc_predict(wrapper, X),
            lambda: kt.diagnostics.signal_report(wrapper, X),
            lambda: kt.pruning.sparsity_report(wrapper),
        )
        for call in calls:
            with pytest.raises(ValueError, match=r"`model\.module`\. Received: model="):
                call()
    finally:
        torch.distributed.destroy_process_group()
