"""Files of plain models made of models whose configs are their constructors'."""

import keras
import numpy as np
import pytest
from helpers import randomize_norms, save_and_load, to_numpy
from keras import layers

import keras_trainkit as kt

register = keras.saving.register_keras_serializable(package="tests")


@register
class Tied(layers.Layer):
    """An embedding whose transpose is the output layer."""

    def __init__(self, size, width, **kwargs):
        super().__init__(**kwargs)
        self.size, self.width = size, width

    def build(self, shape):
        self.table = self.add_weight(shape=(self.size, self.width))

    def call(self, x, reverse=False):
        if reverse:
            return keras.ops.matmul(x, keras.ops.transpose(self.table))
        return keras.ops.take(self.table, x, axis=0)

    def get_config(self):
        return {**super().get_config(), "size": self.size, "width": self.width}


@register
class Scale(layers.Layer):
    """Its config has an entry that it does not take."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor, self.square = factor, factor**2
        self.dense = layers.Dense(4)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x) * self.factor

    def get_config(self):
        config = super().get_config()
        return {**config, "factor": self.factor, "square": self.square}


@register
class Hidden(layers.Layer):
    """Its config fails, and only a layer inside it has its argument."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.inner = Scale(factor)

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


class Backbone(keras.Model):
    """Made of arguments, as KerasHub's are."""

    def __init__(self, width, layer, **kwargs):
        embedding = Tied(10, width, name="embedding")
        x = keras.Input((None,), dtype="int32")
        y = layers.Dense(4)(layer(embedding(x)))
        super().__init__(x, layers.BatchNormalization()(y), **kwargs)
        self.embedding, self.width = embedding, width

    def get_config(self):
        return {"width": self.width}


class LanguageModel(keras.Model):
    def __init__(self, backbone, **kwargs):
        x = backbone.input
        y = backbone(x)
        super().__init__(x, backbone.embedding(y, reverse=True), **kwargs)
        self.backbone = backbone

    def get_config(self):
        return {"backbone": "arguments"}


def language_model(layer):
    return randomize_norms(LanguageModel(Backbone(4, layer, name="backbone")))


def same(a, b):
    x = np.array([[1, 2, 9], [0, 3, 4]])
    np.testing.assert_allclose(to_numpy(a(x)), to_numpy(b(x)), rtol=1e-4, atol=1e-5)


def test_a_layer_shared_with_the_model_inside(tmp_path):
    model = language_model(layers.Dense(4))
    new = kt.transfer.replace_head(model, 3)
    same(new, save_and_load(new, tmp_path))
    shared = [layer for layer in new.layers if isinstance(layer, Tied)]
    assert len(shared) == 1
    new.get_layer("head").kernel.assign(np.eye(10, 3))
    new.get_layer("head").bias.assign(np.zeros(3))
    x = np.array([[1, 2, 9], [0, 3, 4]])
    expected = to_numpy(model(x)).mean(1)[:, :3]
    np.testing.assert_allclose(to_numpy(new(x)), expected, rtol=1e-4, atol=1e-5)
    # It trains apart from the model, as the whole that it is.
    assert not {id(v) for v in new.variables} & {id(v) for v in model.variables}
    folded = kt.folding.fold_batch_norm(model).model
    same(model, folded)
    same(model, save_and_load(folded, tmp_path))


def test_a_layer_shared_with_a_sequential_inside(tmp_path, rng):
    shared = layers.Dense(6, name="shared")
    inner = keras.Sequential([keras.Input((6,)), shared, layers.Dropout(0.5)])
    x = keras.Input((6,))
    model = keras.Model(x, layers.Dense(2)(shared(inner(x))))
    small = kt.export.optimize_for_inference(model)
    x = rng.normal(size=(3, 6)).astype("float32")
    for copy in (small, save_and_load(small, tmp_path)):
        np.testing.assert_allclose(
            to_numpy(copy(x)), to_numpy(model(x)), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("kind", [Scale, Hidden])
def test_configs_that_do_not_make_their_layers(kind, tmp_path):
    model = language_model(kind(3.0))
    layer = model.backbone.layers[2]
    with pytest.raises((TypeError, AttributeError), match=r"square|factor"):
        kind.from_config(layer.get_config())
    folded = kt.folding.fold_batch_norm(model).model
    same(model, folded)
    same(model, save_and_load(folded, tmp_path))
    # A copy of the copy describes itself.
    again = kt.pruning.prune_once(folded, 0.0)
    same(model, save_and_load(again, tmp_path))
