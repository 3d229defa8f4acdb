"""Copies of models that people have are these models."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_trainkit as kt
from keras_trainkit._model.copy import remake
from keras_trainkit._model.graph import copy_model, rebuild

ROWS = np.random.default_rng(0).normal(3, 2, (6, 8)).astype("float32")
SEQUENCES = np.random.default_rng(1).normal(size=(2, 5, 3)).astype("float32")
IMAGES = np.random.default_rng(2).normal(size=(2, 8, 8, 3)).astype("float32")
NUMBERS = np.array([[10, 20], [30, 5]])


def sequential(shape, *parts):
    return keras.Sequential([keras.Input(shape), *parts])


class Scaled(layers.Layer):
    """Not registered, and without a config."""

    def __init__(self, units, function):
        super().__init__()
        self.dense = units if isinstance(units, layers.Layer) else layers.Dense(units)
        self.function = function

    def call(self, x):
        return self.function(self.dense(x))


class NoKeywords(layers.Layer):
    """As keras.io's TransformerBlock: a config that its constructor does not take."""

    def __init__(self, units):
        super().__init__()
        self.units = units
        self.parts = keras.Sequential(
            [layers.Dense(units), layers.BatchNormalization()]
        )

    def call(self, x):
        return self.parts(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Cell(layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.units = self.state_size = units

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units))

    def call(self, x, states):
        new = ops.tanh(ops.matmul(x, self.kernel) + states[0])
        return new, [new]


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.norm = adapted()
        self.parts = [Scaled(3, ops.relu), sequential((3,), layers.Dense(3))]
        self.tracker = keras.metrics.Mean()

    def call(self, x):
        x = self.norm(x)
        for part in self.parts:
            x = part(x)
        return x


class OwnCall(keras.Model):
    """A Functional model whose class computes something else than its graph."""

    def call(self, inputs, training=None, mask=None):
        return 3 * super().call(inputs, training=training)


def swish2(x):
    return x * ops.sigmoid(2 * x)


def adapted():
    norm = layers.Normalization()
    norm.adapt(ROWS)
    return norm


def lora():
    model = sequential((8,), layers.Dense(8), layers.Dense(2))
    model.layers[0].enable_lora(2)
    model.layers[0].lora_kernel_b.assign(np.ones((2, 8)))
    return model


def int8():
    model = sequential((8,), layers.Dense(8), layers.Dense(2))
    for layer in model.layers:
        layer.quantize("int8")
    return model


def shared():
    dense = layers.Dense(8)
    x = keras.Input((8,))
    inner = keras.Model(x, layers.ReLU()(dense(x)))
    y = keras.Input((8,))
    return keras.Model(y, dense(inner(y)) + inner(inputs=y) + ops.relu(y[:, :8] * 2))


def lookup(layer, values):
    layer.adapt(values)
    x = keras.Input((2,), dtype="int32")
    return keras.Model(x, layers.Embedding(9, 3)(layer(x)))


def attention():
    x = keras.Input((5, 3))
    return keras.Model(x, layers.MultiHeadAttention(2, 4)(x, x))


def batch_norm():
    model = sequential((8,), layers.Dense(4), layers.BatchNormalization())
    model.layers[1].moving_mean.assign([1, 2, 3, 4])
    return model


MODELS = {
    "Normalization": lambda: (sequential((8,), adapted(), layers.Dense(3)), ROWS),
    "BatchNormalization": lambda: (batch_norm(), ROWS),
    "IntegerLookup": lambda: (
        lookup(layers.IntegerLookup(), np.array([10, 20, 30])),
        NUMBERS,
    ),
    "Discretization": lambda: (
        lookup(layers.Discretization(num_bins=3), np.arange(40.0)),
        NUMBERS,
    ),
    "Lambda": lambda: (
        sequential((8,), layers.Lambda(lambda x: x * 2), layers.Dense(3)),
        ROWS,
    ),
    "functions": lambda: (
        sequential((8,), layers.Dense(3, swish2), layers.Dense(3, lambda x: 3 * x)),
        ROWS,
    ),
    "own cell": lambda: (sequential((5, 3), layers.RNN(Cell(4))), SEQUENCES),
    "no config": lambda: (sequential((8,), Scaled(3, lambda x: x + 1)), ROWS),
    "no keywords": lambda: (sequential((8,), NoKeywords(3)), ROWS),
    "LoRA": lambda: (lora(), ROWS),
    "int8": lambda: (int8(), ROWS),
    "augmentation": lambda: (
        sequential((8, 8, 3), layers.RandomFlip(), layers.Conv2D(2, 3)),
        IMAGES,
    ),
    "attention": lambda: (attention(), SEQUENCES),
    "wrappers": lambda: (
        sequential(
            (5, 3),
            layers.TimeDistributed(sequential((3,), Scaled(3, ops.relu))),
            layers.Bidirectional(layers.GRU(2)),
        ),
        SEQUENCES,
    ),
    "shared": lambda: (shared(), ROWS),
    "subclassed": lambda: (Subclassed(), ROWS),
}


def numpy(tensor):
    return np.array(ops.convert_to_numpy(tensor))


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_is_the_model(name):
    model, x = MODELS[name]()
    expected = numpy(model(x, training=False))
    weights = [numpy(variable) for variable in model.variables]
    history = [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    copy = copy_model(model)
    np.testing.assert_array_equal(numpy(copy(x, training=False)), expected)
    kinds = [type(layer) for layer in model._flatten_layers()]
    assert [type(layer) for layer in copy._flatten_layers()] == kinds
    paths = [variable.path for variable in model.variables]
    assert [variable.path for variable in copy.variables] == paths
    trainable = [variable.path for variable in model.trainable_variables]
    assert [variable.path for variable in copy.trainable_variables] == trainable
    for variable in copy.variables:
        variable.assign(numpy(variable) + 1)
    np.testing.assert_array_equal(numpy(model(x, training=False)), expected)
    for variable, value in zip(model.variables, weights, strict=True):
        np.testing.assert_array_equal(numpy(variable), value)
    assert [len(layer._inbound_nodes) for layer in model._flatten_layers()] == history


def test_a_copy_trains_apart():
    model = sequential((8,), NoKeywords(3), layers.Dropout(0.5), layers.Dense(1))
    expected = numpy(model(ROWS))
    copy = copy_model(model)
    copy.compile("sgd", "mse")
    copy.fit(ROWS, ROWS[:, :1], verbose=0)
    assert np.abs(numpy(copy(ROWS)) - expected).max() > 1e-3
    np.testing.assert_array_equal(numpy(model(ROWS)), expected)


def test_a_copy_is_built_and_quantized_itself():
    # Keras's `build` and `quantize` are closures over the layer.
    model = sequential((8,), layers.Dense(3))
    copy = copy_model(model)
    copy.layers[0].quantize("int8")
    assert copy.layers[0].quantization_mode == "int8"
    assert model.layers[0].quantization_mode is None


def test_dropouts_of_a_copy_draw_by_themselves():
    model = sequential((8,), layers.Dropout(0.5, seed=1))
    copy = copy_model(model)
    before = numpy(model.layers[0].seed_generator.state)
    copy(ROWS, training=True)
    np.testing.assert_array_equal(numpy(model.layers[0].seed_generator.state), before)


def test_a_model_that_was_frozen_and_compiled():
    model = sequential((8,), layers.Dense(3), layers.Dense(2))
    model.trainable = False
    model.layers[1].trainable = True
    model.compile("adam", "mse")
    copy = copy_model(model)
    assert not copy.compiled
    assert not copy.trainable_variables
    assert [layer.trainable for layer in copy.layers] == [False, True]


@pytest.mark.parametrize("name", ["Normalization", "IntegerLookup", "LoRA"])
def test_the_file_of_a_copy(name, tmp_path):
    model, x = MODELS[name]()
    copy_model(model).save(tmp_path / "copy.keras")
    loaded = keras.saving.load_model(tmp_path / "copy.keras")
    np.testing.assert_allclose(
        numpy(loaded(x)), numpy(model(x, training=False)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "surgery",
    [
        lambda model: kt.pruning.prune_once(model, 0.0),
        lambda model: kt.pruning.prune_channels(model, 0.0).model,
        kt.uncertainty.to_mc,
        lambda model: kt.transfer.replace_head(model, list(model.layers[-1:])),
        lambda model: kt.folding.fold_batch_norm(model).model,
        kt.export.optimize_for_inference,
    ],
    ids=["prune_once", "prune_channels", "to_mc", "head", "fold", "optimize"],
)
def test_surgery_that_changes_nothing(surgery):
    model = sequential(
        (8,),
        adapted(),
        layers.Dense(6),
        layers.Dense(5),
        layers.Lambda(lambda x: x * 2),
        Scaled(4, lambda x: x + 1),
        layers.Dropout(1e-9),
        layers.Activation(swish2),
        layers.Dense(3),
    )
    new = surgery(model)
    expected = numpy(model(ROWS))
    np.testing.assert_allclose(numpy(new(ROWS)), expected, rtol=1e-5, atol=1e-6)


def test_strings():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tensors of strings are TensorFlow's")
    layer = layers.TextVectorization(output_sequence_length=4)
    layer.adapt(["one two", "three"])
    x = keras.Input((), dtype="string")
    y = layers.Dense(2)(layers.Flatten()(layers.Embedding(9, 3)(layer(x))))
    model = keras.Model(x, y)
    rows = ops.convert_to_tensor(["two one", "three four"])
    copy = kt.pruning.prune_once(model, 0.0)
    np.testing.assert_array_equal(numpy(copy(rows)), numpy(model(rows)))


@pytest.mark.parametrize(
    "feature",
    [
        lambda model: kt.pruning.prune_channels(model, 0.5),
        lambda model: kt.transfer.replace_head(model, 2),
        kt.export.optimize_for_inference,
    ],
    ids=["prune_channels", "replace_head", "optimize_for_inference"],
)
def test_a_class_with_its_own_call_is_not_its_graph(feature):
    x = keras.Input((8,))
    model = OwnCall(x, layers.Dense(3)(x))
    with pytest.raises(ValueError, match="OwnCall has its own `call`"):
        feature(model)


def test_mc_predict_calls_what_the_class_computes():
    x = keras.Input((8,))
    model = OwnCall(x, layers.Dense(3)(layers.Dropout(1e-9)(x)))
    found = kt.uncertainty.mc_predict(model, ROWS, num_samples=2)
    np.testing.assert_allclose(found.mean, numpy(model(ROWS)), rtol=1e-5)


def test_a_copy_keeps_a_class_with_its_own_call():
    x = keras.Input((8,))
    model = OwnCall(x, layers.Dense(3)(x))
    copy = copy_model(model)
    assert type(copy) is OwnCall
    np.testing.assert_array_equal(numpy(copy(ROWS)), numpy(model(ROWS)))


def test_an_inner_model_called_by_keyword():
    inner = sequential((8,), layers.Dense(4), layers.BatchNormalization())
    x = keras.Input((8,))
    model = keras.Model(x, layers.Dense(2)(inner(inputs=x)))
    folded = kt.folding.fold_batch_norm(model)
    assert len(folded.folded) == 1
    kt.transfer.replace_head(model, 3)
    assert kt.pruning.prune_channels(model, 0.5).after.parameters < model.count_params()


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_a_layer_that_changes_needs_no_registration():
    dense = layers.Dense(3, swish2, kernel_regularizer=lambda w: ops.sum(w))
    dense.build((None, 8))
    new = remake(dense, units=5)
    assert new.units == 5
    assert new.activation is swish2
    assert new.kernel_regularizer is dense.kernel_regularizer


def test_an_exchanged_layer_is_exchanged_inside_others_too():
    dense = layers.Dense(8)
    x = keras.Input((8,))
    y = dense(x)
    block = Scaled(dense, ops.relu)
    model = keras.Model(x, block(y))
    new = layers.Dense(8)
    copy, _ = rebuild(model, lambda layer: new if layer is dense else None)
    assert copy.layers[1] is copy.layers[2].dense is new


def test_what_cannot_be_copied_is_shared():
    layer = Scaled(3, ops.relu)
    layer.generator = (x for x in [])
    model = sequential((8,), layer)
    copy = copy_model(model)
    assert copy.layers[0].generator is layer.generator
    assert copy.layers[0].dense is not layer.dense
    layer.parts = [layer.generator, layer.dense]
    copy = copy_model(model)
    assert copy.layers[0].parts[0] is layer.generator
    assert copy.layers[0].parts[1] is copy.layers[0].dense


class Transformer(layers.Layer):
    """As in keras.io's examples: not registered, dropouts inside."""

    def __init__(self, width):
        super().__init__()
        self.attention = layers.MultiHeadAttention(2, width)
        self.feed_forward = keras.Sequential([layers.Dense(8), layers.Dense(width)])
        self.norm = layers.LayerNormalization()
        self.drop = layers.Dropout(0.5)

    def build(self, input_shape):
        self.attention.build(input_shape, input_shape)
        self.feed_forward.build(input_shape)
        self.norm.build(input_shape)

    def call(self, x, training=None):
        x = self.norm(x + self.attention(x, x))
        return x + self.drop(self.feed_forward(x), training=training)


def test_dropouts_inside_a_block_of_ones_own_are_live(tmp_path):
    model = sequential((5, 3), Transformer(3), Transformer(3))
    live = kt.uncertainty.to_mc(model)
    kinds = [type(layer).__name__ for layer in live._flatten_layers()]
    assert kinds.count("MCDropout") == 2
    assert "Transformer" not in kinds
    samples = [numpy(live(SEQUENCES)) for _ in range(2)]
    assert np.abs(samples[0] - samples[1]).max() > 1e-3
    live.save(tmp_path / "live.keras")
    loaded = keras.saving.load_model(tmp_path / "live.keras")
    assert np.abs(loaded.predict(SEQUENCES, verbose=0) - samples[0]).max() > 1e-3
    for layer in live._flatten_layers():
        if isinstance(layer, kt.layers.MCDropout):
            layer.rate = 0.0
    expected = numpy(model(SEQUENCES))
    np.testing.assert_allclose(numpy(live(SEQUENCES)), expected, rtol=1e-4, atol=1e-5)


def test_an_inner_model_called_with_a_dict():
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b")}
    norm = layers.BatchNormalization()
    inner = keras.Model(inputs, norm(layers.Dense(3)(inputs["a"] - inputs["b"])))
    x, y = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([x, y], inner({"b": x, "a": y}))
    norm.moving_mean.assign([1, 2, 3])
    result = kt.folding.fold_batch_norm(model)
    assert len(result.folded) == 1
    rows = [ROWS[:, :4], ROWS[:, 4:]]
    expected = numpy(model(rows))
    np.testing.assert_allclose(numpy(result.model(rows)), expected, rtol=1e-4)


def test_the_copy_of_a_sequential_with_other_shapes_can_be_copied_again():
    """Keras goes on tracking the graphs that a Sequential had while it grew."""
    model = keras.Sequential([keras.Input((4,))])
    for units in (8, 6, 3):
        model.add(keras.layers.Dense(units))
    once = kt.pruning.prune_channels(model, 0.5).model
    twice = kt.pruning.prune_channels(once, 0.5).model
    assert [layer.units for layer in twice.layers] == [2, 2, 3]


class Counted:
    """A state of the user's that is another after a copy."""

    value = 1.0

    def __deepcopy__(self, memo):
        other = Counted()
        other.value = self.value + 1
        return other


class Scaling(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.counted = Counted()

    def call(self, x):
        return x * self.counted.value


@pytest.mark.parametrize(
    "surgery",
    [
        lambda m: kt.pruning.prune_once(m, 0.5),
        lambda m: kt.pruning.prune_channels(m, 0.0),
        lambda m: kt.transfer.replace_head(m, 2),
        kt.uncertainty.to_mc,
    ],
)
def test_a_copy_that_is_not_the_model_is_not_handed_out(surgery):
    keras.utils.set_random_seed(0)
    model = sequential(
        (8,), layers.Dense(6), layers.Dense(4), Scaling(), layers.Dropout(0.5),
        layers.Dense(3, activation="softmax"),
    )  # fmt: skip
    before = model.get_weights()
    with pytest.raises(RuntimeError, match=r"differ by .* the model was not changed"):
        surgery(model)
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_comparison_of_a_copy_moves_no_seed_and_wants_no_inputs_it_cannot_draw():
    class Strict(layers.Layer):
        def call(self, x):
            if numpy(x).min() < 0:
                raise RuntimeError("wants probabilities")
            return x

        def compute_output_shape(self, shape):
            return shape

    model = sequential((8,), Strict(), kt.layers.MCDropout(0.5, seed=1))
    copy = kt.uncertainty.to_mc(model)
    rows = np.abs(ROWS)
    np.testing.assert_array_equal(*(numpy(m(rows)) for m in (model, copy)))
    model = sequential((8,), layers.Dense(8), kt.layers.MCDropout(0.5, seed=1))
    np.testing.assert_array_equal(
        *(numpy(m(rows)) for m in (kt.pruning.prune_once(model, 0.0), model))
    )
