"""BatchNorm statistics measured again, snapshots and ensembles."""

import keras
import numpy as np
import pytest
from helpers import randomize_norms

import keras_trainkit as kt

RNG = np.random.default_rng(0)
X = RNG.normal(2, 3, size=(96, 6, 6, 2)).astype("float32")


class Block(keras.layers.Layer):
    """An unregistered layer with a BatchNorm inside."""

    def __init__(self):
        super().__init__()
        self.norm = keras.layers.BatchNormalization()
        self.drop = keras.layers.Dropout(0.5)

    def call(self, x, training=None):
        return self.drop(self.norm(x, training=training), training=training)


def model_with(block):
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.RandomFlip(),
            keras.layers.Conv2D(3, 3),
            block,
            keras.layers.Dropout(0.5),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
        ]
    )


@pytest.mark.parametrize("trainable", [True, False])
def test_statistics_are_those_of_the_data(trainable):
    """One batch: means and variances in NumPy, layer by layer; dropout is off."""
    model = randomize_norms(model_with(Block()))
    model.trainable = trainable
    weights = [np.array(w) for w in model.trainable_variables]
    paths = kt.recalibrate_batch_norm(model, X, batch_size=96)
    assert len(paths) == 2
    _, first, block, _, second, last = model.layers
    taken = keras.ops.convert_to_numpy(first(X))
    np.testing.assert_allclose(block.norm.moving_mean, taken.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(
        block.norm.moving_variance, taken.var((0, 1, 2)), rtol=1e-3
    )
    taken = keras.ops.convert_to_numpy(second(block(first(X))))
    np.testing.assert_allclose(last.moving_mean, taken.mean((0, 1, 2)), atol=1e-3)
    assert block.norm.momentum == 0.99
    assert block.norm.trainable is trainable
    for a, b in zip(weights, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)
    # At inference the outputs now have mean beta and the spread gamma.
    y = model.predict(X, verbose=0)
    np.testing.assert_allclose(y.mean((0, 1, 2)), last.beta, atol=1e-3)
    np.testing.assert_allclose(y.std((0, 1, 2)), np.abs(last.gamma), rtol=5e-3)


def test_many_batches_are_like_one_where_the_first_layer_is_a_norm():
    norm = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((6, 6, 2)), norm])
    kt.recalibrate_batch_norm(model, X, batch_size=16)
    np.testing.assert_allclose(norm.moving_mean, X.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, X.var((0, 1, 2)), rtol=1e-5)
    pairs = [(X[i : i + 16], np.zeros(16)) for i in range(0, 96, 16)]
    kt.recalibrate_batch_norm(model, iter(pairs))
    np.testing.assert_allclose(norm.moving_variance, X.var((0, 1, 2)), rtol=1e-5)


def test_what_cannot_be_measured_is_refused_and_nothing_changes():
    model = randomize_norms(model_with(Block()))
    before = model.get_weights()
    for x in (X[:0], []):
        with pytest.raises(ValueError, match="`x` must be"):
            kt.recalibrate_batch_norm(model, x)
    with pytest.raises(ValueError, match="batch_size=0"):
        kt.recalibrate_batch_norm(model, X, batch_size=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="a model with a BatchNormalization layer"):
        kt.recalibrate_batch_norm(plain, X)


def fit(snapshots):
    x, y = X.reshape(96, -1), RNG.integers(0, 3, 96)
    model = keras.Sequential([keras.Input((72,)), keras.layers.Dense(3, "softmax")])
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: seen.append(model.predict(x, verbose=0))
    )
    model.fit(x, y, epochs=4, verbose=0, callbacks=[look, snapshots])
    return model, x, seen


@pytest.mark.parametrize("in_files", [False, True])
def test_snapshots_are_the_models_at_the_end_of_each_cycle(in_files, tmp_path):
    path = tmp_path / "{cycle}.keras" if in_files else None
    snapshots = kt.callbacks.Snapshots(2, path)
    model, x, seen = fit(snapshots)
    weights = [np.array(w) for w in model.get_weights()]
    found = snapshots.predict(x)
    np.testing.assert_allclose(found.mean, (seen[1] + seen[3]) / 2, rtol=1e-5)
    np.testing.assert_allclose(found.samples[1], seen[3], rtol=1e-5)
    for a, b in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(snapshots.paths) == 2 * in_files


def test_bad_snapshots():
    with pytest.raises(ValueError, match="cycle_epochs=0"):
        kt.callbacks.Snapshots(0)
    with pytest.raises(ValueError, match=r"a path with \{cycle\} in it"):
        kt.callbacks.Snapshots(2, "model.keras")
    with pytest.raises(ValueError, match="at least one: end a cycle"):
        kt.callbacks.Snapshots(2).predict(X)


def test_ensemble_by_hand():
    p = RNG.dirichlet(np.ones(3), (5, 7))
    found = kt.uncertainty.ensemble_prediction(p)
    entropy = -(p * np.log(p)).sum(-1)
    mean = p.mean(0)
    total = -(mean * np.log(mean)).sum(-1)
    np.testing.assert_allclose(found.predictive_entropy, total)
    np.testing.assert_allclose(found.mutual_information, total - entropy.mean(0))
    votes = [np.bincount(column, minlength=3).max() for column in p.argmax(-1).T]
    np.testing.assert_allclose(found.variation_ratio, 1 - np.array(votes) / 5)
    np.testing.assert_allclose(found.std, p.std(0))
    ones = RNG.random((5, 7, 1))
    binary = kt.uncertainty.ensemble_prediction(ones, "binary")
    both = np.concatenate([1 - ones, ones], -1)
    two = kt.uncertainty.ensemble_prediction(both)
    for name in ("predictive_entropy", "mutual_information", "variation_ratio"):
        a, b = getattr(binary, name)[:, 0], getattr(two, name)
        np.testing.assert_allclose(a, b, atol=1e-12)
    assert kt.uncertainty.ensemble_prediction(p * 9).predictive_entropy is None
    for bad in (np.ones((2, 3)), np.ones((0, 2, 2)), [[["a"]]]):
        with pytest.raises(ValueError, match="`samples` must be of shape"):
            kt.uncertainty.ensemble_prediction(bad)
