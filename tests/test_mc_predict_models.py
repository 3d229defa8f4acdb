"""`mc_predict` on the models that people have, against `predict` and plain loops."""

import keras
import numpy as np
import pytest
from helpers import to_numpy
from keras import layers, ops

from keras_trainkit.uncertainty import _predict as module
from keras_trainkit.uncertainty import mc_predict

# Drops nothing that can be seen, so that the mean is what `predict` says.
HARDLY = 1e-4


class AddsInTraining(layers.Layer):
    """A layer whose `call` has `training=True` as its default."""

    def call(self, x, training=True):
        return x + 1000.0 if training else x


class Holder(layers.Layer):
    """A layer without a `training` argument around one."""

    def __init__(self):
        super().__init__()
        self.inner = AddsInTraining()

    def call(self, x):
        return self.inner(x)


def classifier(*before, units=16, rate=HARDLY, shape=(8,)):
    inputs = keras.Input(shape)
    x = inputs
    for layer in before:
        x = layer(x)
    x = layers.Flatten()(x)
    x = layers.Dropout(rate)(layers.Dense(units, activation="relu", name="hidden")(x))
    return keras.Model(inputs, layers.Dense(2)(x))


def check_predicts(model, x, **options):
    """The mean without dropout to speak of is what `predict` gives."""
    mc = mc_predict(model, x, 20, seed=0, **options)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(mc.mean, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.RandomFlip, (4, 4, 3)),
        (lambda: layers.GaussianNoise(0.9), (8,)),
        (AddsInTraining, (8,)),
        (Holder, (8,)),
    ],
)
def test_only_dropout_is_live(layer, shape, rng):
    model = classifier(layer(), shape=shape)
    x = rng.normal(size=(6, *shape)).astype("float32")
    before = [to_numpy(v) for v in model.variables]
    check_predicts(model, x)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, to_numpy(variable))


def test_a_layer_called_in_training_is_at_inference_as_in_predict(rng):
    inputs = keras.Input((8,))
    x = AddsInTraining()(inputs, training=True)
    model = keras.Model(inputs, layers.Dense(2)(layers.Dropout(HARDLY)(x)))
    check_predicts(model, rng.normal(size=(6, 8)).astype("float32"))


class Hundredfold(keras.Model):
    """A Functional model whose class has its own `call`."""

    def __init__(self):
        inputs = keras.Input((8,))
        super().__init__(inputs, layers.Dense(2)(layers.Dropout(HARDLY)(inputs)))

    def call(self, x, training=None, mask=None):
        return 100.0 * super().call(x, training=training)


def test_a_class_with_its_own_call_is_run_through_it(rng):
    check_predicts(Hundredfold(), rng.normal(size=(6, 8)).astype("float32"))


def low_rank(model):
    layer = model.get_layer("hidden")
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))


def adapted(model):
    model.get_layer("norm").adapt(np.arange(800.0).reshape(100, 8))


CHANGES = {
    "quantize": lambda model: model.get_layer("hidden").quantize("int8"),
    "activation": lambda model: setattr(
        model.get_layer("hidden"), "activation", keras.activations.tanh
    ),
    "lora": low_rank,
    "adapt": adapted,
    "an attribute": lambda model: setattr(model.get_layer("scale"), "factor", -3.0),
    "an array": lambda model: np.copyto(model.get_layer("scale").shift, 5.0),
}


class Scale(layers.Layer):
    """A layer that no config describes."""

    def __init__(self):
        super().__init__(name="scale")
        self.factor, self.shift = 2.0, np.zeros(8, "float32")

    def call(self, x):
        return x * self.factor + ops.convert_to_tensor(self.shift)


@pytest.mark.parametrize("change", CHANGES)
def test_compiled_functions_are_made_anew_where_the_model_changed(change, rng):
    norm = layers.Normalization(mean=0.0, variance=1.0, name="norm")
    if change == "adapt":
        norm = layers.Normalization(name="norm")
        norm.adapt(np.ones((3, 8)) * np.arange(3)[:, None])
    model = classifier(norm, Scale())
    x = rng.normal(size=(6, 8)).astype("float32")
    check_predicts(model, x)
    before = model.predict(x, verbose=0)
    CHANGES[change](model)
    model.compile()
    assert np.abs(model.predict(x, verbose=0) - before).max() > 0.02 * (
        change != "quantize"
    )
    check_predicts(model, x)


def test_compiled_functions_are_kept_while_only_values_change(rng):
    hidden = layers.Dense(4, activity_regularizer="l2")
    model = classifier(layers.BatchNormalization(), hidden, rate=0.5)
    model.compile("adam", "mse")
    x = rng.normal(size=(6, 8)).astype("float32")
    mc_predict(model, x, 2)
    engine = module._engine_of(model)
    model.fit(x, x[:, :2], verbose=0)
    model.predict(x, verbose=0)
    hidden.trainable = False
    mc_predict(model, x, 2)
    model.set_weights(model.get_weights())
    assert module._engine_of(model) is engine
    hidden.use_bias = False
    assert module._engine_of(model) is not engine


def graph_convolution(rng, nodes=10):
    """A network over a whole graph, the nodes as rows, and its inputs."""
    features, edges = keras.Input((4,)), keras.Input((nodes,))
    hidden = layers.Dropout(0.5)(layers.Dense(8)(features))
    model = keras.Model([features, edges], layers.Dense(2)(ops.matmul(edges, hidden)))
    x = [rng.normal(size=(nodes, 4)), rng.random((nodes, nodes))]
    return model, [a.astype("float32") for a in x]


def check_moments(mc, loop, count):
    error = loop.std(0) / np.sqrt(count)
    assert mc.mean.shape == loop.shape[1:]
    assert (np.abs(mc.mean - loop.mean(0)) < 6 * error).all()
    np.testing.assert_allclose(mc.std, loop.std(0), rtol=0.35)


def test_rows_that_depend_on_each_other_go_through_as_a_whole(rng):
    model, x = graph_convolution(rng)
    loop = np.array([to_numpy(model(x, training=True)) for _ in range(300)])
    mc = mc_predict(model, x, 300, seed=0)
    check_moments(mc, loop, 150)
    # Each node drops for itself.
    one = mc_predict(model, x, 300, seed=0, noise="shared", keep_samples=True)
    np.testing.assert_allclose(one.mean, mc.mean, atol=1e-5)
    with pytest.raises(ValueError, match="`tolerance` must be None where rows depend"):
        mc_predict(model, x, 50, tolerance=0.1)


class Nodes(keras.Model):
    """keras.io's graph network: the graph inside, indices of nodes in."""

    def __init__(self, rng):
        super().__init__()
        self.features = ops.convert_to_tensor(rng.normal(size=(12, 4)), "float32")
        self.edges = ops.convert_to_tensor(rng.random((12, 12)), "float32")
        self.hidden, self.drop = layers.Dense(8), layers.Dropout(0.5)
        self.head = layers.Dense(2)

    def call(self, indices, training=None):
        x = self.drop(self.hidden(self.features), training=training)
        return self.head(ops.take(ops.matmul(self.edges, x), indices, axis=0))


def test_a_graph_inside_the_model(rng):
    model, indices = Nodes(rng), np.arange(6)
    loop = np.array([to_numpy(model(indices, training=True)) for _ in range(300)])
    check_moments(mc_predict(model, indices, 300, seed=0), loop, 150)


def test_inputs_of_different_lengths(rng):
    """Nodes and edges, which `predict` does not take."""

    class Messages(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden, self.drop = layers.Dense(8), layers.Dropout(0.5)

        def call(self, inputs, training=None):
            nodes, edges = inputs
            x = self.drop(self.hidden(nodes), training=training)
            messages = ops.take(x, edges[:, 0], axis=0)
            return ops.segment_sum(messages, edges[:, 1], num_segments=5)

    model = Messages()
    x = [rng.normal(size=(5, 4)).astype("float32"), rng.integers(0, 5, (9, 2))]
    mc = mc_predict(model, x, 20, seed=0)
    assert mc.mean.shape == (5, 8)
    sources = np.unique(x[1][:, 1])
    assert (mc.std[sources].max(1) > 0).all()


def test_rows_that_become_several_and_one_again(rng):
    inputs = keras.Input((6, 4))
    x = layers.Dense(3)(ops.reshape(inputs, (-1, 4)))
    x = ops.reshape(layers.Dropout(0.5)(x), (-1, 18))
    model = keras.Model(inputs, layers.Dense(2)(x))
    x = rng.normal(size=(7, 6, 4)).astype("float32")
    mc = mc_predict(model, x, 300, seed=0)
    loop = np.array([to_numpy(model(x, training=True)) for _ in range(300)])
    check_moments(mc, loop, 150)
    # The rows are still rows: a batch of any size has their masks.
    np.testing.assert_allclose(
        mc_predict(model, x, 300, batch_size=3, seed=0).mean, mc.mean, atol=1e-5
    )


def test_open_sizes(rng):
    inputs = keras.Input((None, 4))
    x = layers.Dropout(0.5)(layers.Conv1D(8, 3)(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling1D()(x)))
    batches = [rng.normal(size=(5, n, 4)).astype("float32") for n in (7, 9, 7)]
    mc = mc_predict(model, iter([(x,) for x in batches]), 20, seed=0)
    assert mc.mean.shape == (15, 2)
    alone = mc_predict(model, batches[0], 20, seed=0)
    np.testing.assert_allclose(mc.mean[:5], alone.mean, atol=1e-5)
    steps = keras.Model(model.input, x)
    with pytest.raises(ValueError, match="one shape for each row"):
        mc_predict(steps, iter([(x,) for x in batches]), 2)


on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="strings are TensorFlow's"
)


@on_tensorflow
@pytest.mark.parametrize("length", [5, None])
def test_strings(length):
    text = layers.TextVectorization(output_sequence_length=length)
    text.adapt(["a b c", "d e f"])
    inputs = keras.Input((1,), dtype="string")
    x = layers.Dropout(HARDLY)(layers.Embedding(20, 4)(text(inputs)))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    import tensorflow as tf

    x = [["a b"], ["b c"], ["f"]]
    expected = to_numpy(model(tf.constant(x)))
    for same in (np.array(x), np.array(x, object), tf.constant(x)):
        mc = mc_predict(model, same, 20, seed=0)
        np.testing.assert_allclose(mc.mean, expected, atol=1e-3)


def test_a_task_preprocesses_as_in_predict():
    """As KerasHub's tasks do; theirs is tried in tests/zoo."""

    class Task(keras.Model):
        def __init__(self):
            inputs = keras.Input((3,))
            x = layers.Dropout(HARDLY)(inputs)
            super().__init__(inputs, layers.Dense(2)(x))
            self.preprocessor = len

        def preprocess_samples(self, x, y=None, sample_weight=None):
            x = np.array([[len(text), 1, 2] for text in x], "float32")
            return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)

    model, texts = Task(), ["a", "bcd"]
    mc = mc_predict(model, texts, 20, seed=0)
    expected = model.predict(np.array([[1, 1, 2], [3, 1, 2]], "float32"), verbose=0)
    np.testing.assert_allclose(mc.mean, expected, atol=0.01 * np.abs(expected).max())
