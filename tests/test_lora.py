"""LoRA and tied embeddings: what is shared or frozen inside a layer stays so."""

import keras
import numpy as np
import pytest
from helpers import to_numpy
from keras import layers

import keras_trainkit as kt


@pytest.fixture
def lora():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, name="base"),
            layers.EinsumDense("ab,bc->ac", 4, name="einsum"),
            layers.Dense(2, name="head"),
        ]
    )
    model.layers[0].enable_lora(2)
    model.layers[1].enable_lora(2)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def names(model):
    return {v.path.split("/", 1)[1] for v in model.trainable_variables}


def test_unfreezing_leaves_the_base_of_lora_frozen(lora):
    before = names(lora)
    kt.transfer.freeze(lora)
    assert names(lora) == set()
    kt.transfer.unfreeze(lora)
    assert names(lora) == before
    assert not before & {"base/kernel", "einsum/kernel"}


def test_gradual_unfreezing_with_lora(lora, rng):
    x, y = rng.normal(size=(16, 6)), rng.normal(size=(16, 2))
    base = to_numpy(lora.layers[0]._kernel)
    b = to_numpy(lora.layers[0].lora_kernel_b)
    gradual = kt.callbacks.GradualUnfreezing({0: -1, 1: 0})
    history = lora.fit(x, y, epochs=2, callbacks=[gradual], verbose=0).history
    assert history["trainable_layers"] == [1, 3]
    np.testing.assert_array_equal(to_numpy(lora.layers[0]._kernel), base)
    assert np.any(to_numpy(lora.layers[0].lora_kernel_b) != b)


class Tied(layers.Layer):
    """Projects on the items of an embedding that is elsewhere."""

    def __init__(self, embedding):
        super().__init__(name="tied")
        self.embedding = embedding

    def call(self, x):
        return x @ keras.ops.transpose(self.embedding.embeddings)


@pytest.fixture
def tied():
    x, embedding = keras.Input((5,)), layers.Embedding(9, 4, name="embedding")
    model = keras.Model(x, Tied(embedding)(layers.Dense(4, name="dense")(embedding(x))))
    model.compile("sgd", "mse")
    return model


def test_a_tied_embedding_trains_as_long_as_the_head_does(tied, rng):
    assert kt.transfer.freeze(tied, until=-1) == ["dense"]
    assert [v.name for v in tied.trainable_variables] == ["embeddings"]
    kt.transfer.unfreeze(tied)
    x, y = rng.integers(0, 9, (8, 5)), rng.normal(size=(8, 5, 9))
    dense = to_numpy(tied.get_layer("dense").kernel)
    gradual = kt.callbacks.GradualUnfreezing({0: -1})
    tied.fit(x, y, callbacks=[gradual], verbose=0)
    np.testing.assert_array_equal(to_numpy(tied.get_layer("dense").kernel), dense)


def test_freezing_until_a_layer_that_is_frozen_already_is_refused(lora):
    kt.transfer.freeze(lora, "head")
    before = names(lora)
    with pytest.raises(ValueError, match="unfreeze first what is frozen in 'head'"):
        kt.transfer.freeze(lora, until=-1)
    assert names(lora) == before


def test_layers_that_were_never_finished_do_not_matter(rng):
    """Their constructor raised, or is running."""
    half = layers.Dense.__new__(layers.Dense)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="one")])
    optimizer = kt.optimizers.layerwise(keras.optimizers.SGD(0.1), {"one": 0.0})
    model.compile(optimizer, "mse")
    before = to_numpy(model.layers[0].kernel)
    model.fit(rng.normal(size=(4, 3)), rng.normal(size=(4, 2)), verbose=0)
    np.testing.assert_array_equal(to_numpy(model.layers[0].kernel), before)
    assert not vars(half).get("name")
