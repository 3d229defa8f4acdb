"""Pruning beside callbacks that exchange the weights at the end of a fit."""

import keras
import numpy as np
import pytest

import keras_trainkit as kt

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = X[:, :1] - X[:, 1:2]
KEPT = 6


def make_model(**options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.Adam(0.01, **options), "mse")
    return model


class FirstEpoch(keras.callbacks.Callback):
    """Keeps the weights after the first epoch."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            self.weights = self.model.get_weights()


def fit(model, pruning, other, is_first, *more):
    both = [pruning, other] if is_first else [other, pruning]
    model.fit(X, Y, 16, epochs=3, callbacks=[*both, *more], verbose=0)
    return model.get_weights()


def best_first(**options):
    """Takes the weights of the first epoch, which are less pruned, for the best."""
    return keras.callbacks.EarlyStopping(
        "loss", mode="max", patience=9, restore_best_weights=True, **options
    )


def pruning(**options):
    return kt.pruning.MagnitudePruning(0.75, end_step=8, frequency=2, **options)


@pytest.mark.parametrize("is_first", [True, False])
def test_weights_of_before_are_pruned_again(is_first):
    model, kept = make_model(), FirstEpoch()
    with pytest.warns(UserWarning, match="not those that were pruned.*start_from_epoc"):
        kernel = fit(model, pruning(), best_first(), is_first, kept)[0]
    before = kept.weights[0]
    assert np.sum(before != 0) > KEPT
    least = np.sort(np.abs(before), axis=None)[-KEPT]
    np.testing.assert_array_equal(kernel, np.where(np.abs(before) >= least, before, 0))


@pytest.mark.parametrize("is_first", [True, False])
def test_weights_of_after_are_left_alone(is_first):
    model = make_model()
    stopping = best_first(start_from_epoch=2)
    assert np.sum(fit(model, pruning(), stopping, is_first)[0] != 0) == KEPT


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("on_epoch", [True, False])
def test_averages_are_as_sparse(is_first, on_epoch):
    model = make_model(use_ema=True, ema_momentum=0.9)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=on_epoch)
    assert np.sum(fit(model, pruning(), swap, is_first)[0] != 0) == KEPT


@pytest.mark.parametrize("is_first", [True, False])
def test_a_ticket_is_not_undone(is_first):
    model = make_model()
    ticket = model.get_weights()
    weights = fit(model, pruning(rewind_to=0), best_first(start_from_epoch=2), is_first)
    assert np.sum(weights[0] != 0) == KEPT
    for a, b in zip(weights, ticket, strict=True):
        np.testing.assert_array_equal(a, np.where(a == 0, 0, b))


def test_callbacks_of_one_list_can_be_used_again():
    model = make_model()
    callbacks = keras.callbacks.CallbackList(
        [pruning()], model=model, epochs=3, steps=4
    )
    count = len(callbacks.callbacks)
    for _ in range(2):
        callbacks.on_train_begin()
    assert len(callbacks.callbacks) == count + 1
