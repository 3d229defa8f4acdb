import keras
import numpy as np
import pytest
from helpers import JIT_OPTIONS, check_config, save_and_load, to_numpy
from keras import layers

import keras_trainkit as kt
from keras_trainkit._model.kernels import kernels

LIMIT = kt.constraints.MaxNorm(0.1)
ALL = {"kernel_constraint": LIMIT}
# Each with the axes of a unit's incoming weights, by the definition of the layer.
LAYERS = {
    "Dense": (lambda: layers.Dense(3, **ALL), (5,), [(0,)]),
    "Conv1D": (lambda: layers.Conv1D(3, 2, **ALL), (5, 4), [(0, 1)]),
    "Conv2D": (lambda: layers.Conv2D(3, 2, **ALL), (5, 5, 4), [(0, 1, 2)]),
    "Conv3D": (lambda: layers.Conv3D(3, 2, **ALL), (4, 4, 4, 2), [(0, 1, 2, 3)]),
    "grouped": (lambda: layers.Conv2D(4, 2, groups=2, **ALL), (5, 5, 4), [(0, 1, 2)]),
    "Conv2DTranspose": (
        lambda: layers.Conv2DTranspose(3, 2, name="any_name", **ALL),
        (5, 5, 4),
        [(0, 1, 3)],
    ),
    "DepthwiseConv2D": (
        lambda: layers.DepthwiseConv2D(
            2, depth_multiplier=2, depthwise_constraint=LIMIT, name="conv"
        ),
        (5, 5, 3),
        [(0, 1)],
    ),
    "SeparableConv2D": (
        lambda: layers.SeparableConv2D(
            3, 2, depthwise_constraint=LIMIT, pointwise_constraint=LIMIT
        ),
        (5, 5, 3),
        [(0, 1), (0, 1, 2)],
    ),
    "EinsumDense": (
        lambda: layers.EinsumDense("abc,dbc->ad", output_shape=(6,), **ALL),
        (3, 4),
        [(1, 2)],
    ),
    "LSTM": (
        lambda: layers.LSTM(3, recurrent_constraint=LIMIT, **ALL),
        (4, 5),
        [(0,), (0,)],
    ),
    "Bidirectional": (
        lambda: layers.Bidirectional(layers.GRU(3, recurrent_constraint=LIMIT, **ALL)),
        (4, 5),
        [(0,)] * 4,
    ),
}


def norms(model, axes):
    found = [k.variable for k in kernels(model)]
    assert len(found) == len(axes)
    for variable, axis in zip(found, axes, strict=True):
        yield np.sqrt(np.square(to_numpy(variable).astype(float)).sum(axis))


@pytest.mark.parametrize("name", LAYERS)
def test_norms_of_units_after_a_step(name, rng):
    make, shape, axes = LAYERS[name]
    x = rng.normal(size=(8, *shape)).astype("float32")
    for jit in JIT_OPTIONS:
        model = keras.Sequential([keras.Input(shape), make(), layers.Flatten()])
        before = [norm.max() for norm in norms(model, axes)]
        assert min(before) > 0.1
        model.compile("sgd", "mse", jit_compile=jit)
        model.fit(x, np.ones(model(x).shape), verbose=0)
        for norm in norms(model, axes):
            assert norm.max() <= 0.1 + 1e-6
            # The bound is that of each unit and of no larger group.
            assert norm.max() > 0.1 - 1e-6


def test_embedding_bounds_each_vector():
    limit = kt.constraints.MaxNorm(0.02)
    model = keras.Sequential([keras.Input((3,), dtype="int32"), layers.Embedding(7, 4)])
    assert kt.regularizers.apply(model, constraint=limit)
    model.compile("sgd", "mse")
    model.fit(np.array([[1, 2, 3]]), np.ones((1, 3, 4)), verbose=0)
    vectors = to_numpy(model.layers[0].embeddings)
    assert np.linalg.norm(vectors, axis=1).max() == pytest.approx(0.02, abs=1e-6)


def test_multi_step_execution(rng):
    if keras.backend.backend() == "torch":
        pytest.skip("PyTorch's trainer accepts one step only")
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3, **ALL)])
    model.compile(keras.optimizers.SGD(1.0), "mse", steps_per_execution=4)
    model.fit(rng.normal(size=(64, 5)), np.ones((64, 3)), batch_size=8, verbose=0)
    (norm,) = norms(model, [(0,)])
    assert norm.max() <= 0.1 + 1e-6


def test_small_weights_stay(rng):
    small = rng.normal(size=(5, 3)).astype("float32") * 1e-3
    np.testing.assert_array_equal(to_numpy(LIMIT(small)), small)
    zeros = np.zeros((5, 3), "float32")
    np.testing.assert_array_equal(to_numpy(LIMIT(zeros)), zeros)


def test_an_axis_of_the_users_own(rng):
    w = rng.normal(size=(4, 5, 6)).astype("float32")
    for axis in (1, [0, 2]):
        bounded = to_numpy(kt.constraints.MaxNorm(0.5, axis)(w))
        expected = keras.constraints.MaxNorm(0.5, axis)(w)
        np.testing.assert_allclose(bounded, to_numpy(expected), rtol=1e-5)


def test_half_precision_does_not_overflow():
    w = np.full((4, 1), 1000, "float16")
    np.testing.assert_allclose(to_numpy(LIMIT(w)), 0.05, rtol=1e-3)


def test_config_and_file(tmp_path):
    for constraint in (LIMIT, kt.constraints.MaxNorm(2, [0, 1])):
        check_config(constraint)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3, **ALL)])
    loaded = save_and_load(model, tmp_path)
    assert loaded.layers[0].kernel_constraint.get_config() == LIMIT.get_config()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((0,), r"max_value=0"),
        ((-1,), r"max_value=-1"),
        ((1, "rows"), r"axis='rows'"),
        ((1, 0.5), r"axis=0.5"),
    ],
)
def test_bad_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        kt.constraints.MaxNorm(*args)
