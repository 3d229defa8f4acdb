import keras
import numpy as np
import pytest
from helpers import save_and_load
from keras import layers

import keras_trainkit as kt


def randomize(model):
    """Statistics and gammas that are not trivial, of both signs."""
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            for variable in layer.weights:
                spread = rng.normal(size=variable.shape)
                positive = "variance" in variable.name
                variable.assign(np.abs(spread) + 0.5 if positive else spread)
    return model


CASES = {
    "Dense, BN": ([layers.Dense(5), layers.BatchNormalization()], (4,)),
    "without bias": (
        [layers.Dense(5, use_bias=False), layers.BatchNormalization()],
        (4,),
    ),
    "without gamma and beta": (
        [layers.Dense(5), layers.BatchNormalization(scale=False, center=False)],
        (4,),
    ),
    "another epsilon": (
        [layers.Dense(5), layers.BatchNormalization(epsilon=0.1)],
        (4,),
    ),
    "Conv1D": ([layers.Conv1D(5, 3), layers.BatchNormalization()], (9, 2)),
    "Conv2D, groups": (
        [layers.Conv2D(6, 3, groups=2, padding="same"), layers.BatchNormalization()],
        (7, 7, 4),
    ),
    "Conv3D": ([layers.Conv3D(3, 2), layers.BatchNormalization()], (4, 4, 4, 2)),
    "activation, BN, Dense": (
        [
            layers.Dense(5, activation="elu"),
            layers.BatchNormalization(),
            layers.Dense(3),
        ],
        (4,),
    ),
    "BN, Dropout, Dense without bias": (
        [
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(3, use_bias=False),
        ],
        (4,),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_batch_norm_folds(name, tmp_path):
    stack, shape = CASES[name]
    copies = [type(layer).from_config(layer.get_config()) for layer in stack]
    model = randomize(keras.Sequential([keras.Input(shape), *copies]))
    before = [w.copy() for w in model.get_weights()]
    result = kt.folding.fold_batch_norm(model)
    assert len(result.folded) == 1
    assert result.kept == {}
    assert not any(
        isinstance(layer, layers.BatchNormalization) for layer in result.model.layers
    )
    x = np.random.default_rng(2).normal(size=(6, *shape)).astype("float32")
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(
        result.model.predict(x, verbose=0),
        expected,
        atol=1e-5 * np.abs(expected).max(),
    )
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    loaded = save_and_load(result.model, tmp_path)
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), result.model.predict(x, verbose=0), atol=1e-6
    )
    assert kt.folding.fold_batch_norm(result.model).folded == ()


def test_what_cannot_be_folded_stays_and_says_why():
    model = randomize(
        keras.Sequential(
            [
                keras.Input((6, 6, 2)),
                layers.Conv2D(4, 3, activation="relu"),
                layers.BatchNormalization(name="between"),
                layers.Conv2D(4, 3, padding="same"),
            ]
        )
    )
    result = kt.folding.fold_batch_norm(model)
    assert result.folded == ()
    assert result.kept == {"between": "no linear layer stands beside it"}
    assert "kept between: no linear layer" in result.summary()


def test_a_chain_of_batch_norms_folds_into_one_layer():
    model = randomize(
        keras.Sequential(
            [
                keras.Input((4,)),
                layers.BatchNormalization(),
                layers.Dense(5),
                layers.BatchNormalization(),
                layers.BatchNormalization(),
            ]
        )
    )
    result = kt.folding.fold_batch_norm(model)
    assert len(result.folded) == 3
    assert [type(layer) for layer in result.model.layers] == [layers.Dense]
    assert result.max_error <= 1e-5


def test_the_preset_folds_and_trains_on():
    model = randomize(
        kt.models.build_mlp(
            (3, 3), 4, hidden_units=(8, 6), normalization="batch", dropout="dropout"
        )
    )
    folded = kt.folding.fold_batch_norm(model).model
    folded.compile("sgd", "sparse_categorical_crossentropy")
    folded.train_on_batch(np.ones((2, 3, 3)), np.array([0, 1]))


def test_a_wrong_fold_raises(monkeypatch):
    model = randomize(
        keras.Sequential(
            [keras.Input((4,)), layers.Dense(5), layers.BatchNormalization()]
        )
    )
    from keras_trainkit import folding

    scale_and_shift = folding._scale_and_shift
    monkeypatch.setattr(
        folding,
        "_scale_and_shift",
        lambda norm, weights: (1.01 * scale_and_shift(norm, weights)[0], 0.0),
    )
    with pytest.raises(RuntimeError, match="outputs differ by"):
        kt.folding.fold_batch_norm(model)


def test_other_models_are_refused():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    with pytest.raises(ValueError, match=r"`model` must be a built keras.Sequential"):
        kt.folding.fold_batch_norm(model)
