"""Quantization-aware training of models that nobody here designed."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_trainkit as kt

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"


class Block(layers.Layer):
    """Not registered, made of layers and functions."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(filters, 3, padding="same", name="conv")
        self.norm = layers.BatchNormalization()
        self.short = layers.Conv2D(filters, 1, name="short")

    def call(self, x, training=None):
        y = ops.relu(self.norm(self.conv(x), training=training))
        return y + self.short(x) * 0.5


class Noisy(Block):
    """Does something of its own in training."""

    def call(self, x, training=None):
        y = super().call(x, training=training)
        return y * 2.0 if training else y


class Penalized(Block):
    """Adds a loss."""

    def call(self, x, training=None):
        y = super().call(x, training=training)
        self.add_loss(ops.mean(ops.square(y)))
        return y


class Sine(layers.Layer):
    """Not registered, with no rule."""

    def call(self, x):
        return ops.sin(x)


def blocks():
    inputs = keras.Input((6, 6, 3))
    hidden = Block(4, name="one")(inputs)
    hidden = Block(4, name="two")(hidden)
    hidden = ops.mean(hidden, axis=(1, 2))
    return keras.Model(inputs, layers.Dense(3, name="head")(hidden))


def attention(**options):
    inputs = keras.Input((6, 8))
    hidden = layers.MultiHeadAttention(2, 4, name="attention")(
        inputs, inputs, **options
    )
    hidden = layers.EinsumDense("...x,xy->...y", 6, "gelu", bias_axes="y")(
        hidden + inputs
    )
    hidden = layers.Dense(4, activation="relu")(hidden)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(hidden)))


def causal():
    return attention(use_causal_mask=True)


def gates():
    inputs = keras.Input((6, 6, 3))
    hidden = layers.Conv2D(6, 3, padding="same", activation="silu")(inputs)
    gate = layers.Conv2D(6, 1, activation="sigmoid")(hidden)
    hidden = layers.Maximum()([layers.Multiply()([hidden, gate]), hidden])
    hidden = layers.Conv2D(4, 3, dilation_rate=2, activation="relu")(hidden)
    hidden = layers.DepthwiseConv2D(3, dilation_rate=2, padding="same")(hidden)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(hidden)))


def shared():
    image = keras.Input((6, 6, 3), name="image")
    number = keras.Input((4,), name="number")
    conv = layers.Conv2D(3, 3, padding="same", activation="relu")
    inner = keras.Sequential([keras.Input((6, 6, 3)), conv])
    hidden = layers.GlobalAveragePooling2D()(inner(inner(image)))
    hidden = ops.concatenate([hidden, layers.Dense(4, activation="tanh")(number)], -1)
    first, second = layers.Dense(3)(hidden), layers.Dense(2)(hidden)
    return keras.Model({"image": image, "number": number}, [first, second])


def classes(model, rows, seed=0):
    """Inputs of three classes that differ clearly."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % 3

    def draw(tensor):
        centers = np.random.default_rng(7).normal(size=(3, *tensor.shape[1:]))
        noise = rng.normal(size=(rows, *tensor.shape[1:]))
        return (centers[labels] + 0.2 * noise).astype("float32")

    inputs = model.inputs[0] if len(model.inputs) == 1 else model.input
    return keras.tree.map_structure(draw, inputs), labels


def trained(model, epochs=2, **options):
    quantized = kt.quantization.quantize_aware(model, **options)
    x, y = classes(model, 96)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    several = len(model.outputs) > 1
    quantized.compile(keras.optimizers.Adam(1e-2), [loss, loss] if several else loss)
    quantized.fit(x, [y, y % 2] if several else y, 16, epochs, verbose=0)
    return quantized


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


@pytest.mark.skipif(not ON_TENSORFLOW, reason="one converter")
@pytest.mark.parametrize("make", [blocks, attention, causal, gates, shared])
def test_file_agrees_with_the_model_and_is_int8(make, tmp_path):
    quantized = trained(make())
    assert kt.quantization.kept_float(quantized) == {}
    path = kt.export.to_litert(quantized, tmp_path / "model.tflite", "int8")
    x, _ = classes(quantized, 300, seed=1)
    expected = keras.tree.flatten(quantized.predict(x, verbose=0))
    got = keras.tree.flatten(kt.export.predict_litert(path, x))
    for a, b in zip(expected, got, strict=True):
        assert (a.argmax(1) == b.argmax(1)).mean() >= 0.995
        assert np.abs(a - b).mean() <= (a.max() - a.min()) / 255
    # The inputs and outputs alone.
    ends = len(keras.tree.flatten([x])) + len(expected)
    assert tensor_types(path).count("FLOAT32") == ends


@pytest.mark.skipif(not ON_TENSORFLOW, reason="one converter")
def test_weights_of_4_bits_are_stored_as_such(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.Conv2D(8, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3),
            layers.Flatten(),
            layers.Dense(3, name="head"),
        ]
    )
    quantized = trained(model, weight_bits=4)
    path = kt.export.to_litert(quantized, tmp_path / "model.tflite", "int8")
    assert tensor_types(path).count("INT4") == 3
    x, _ = classes(quantized, 300, seed=1)
    expected, got = quantized.predict(x, verbose=0), kt.export.predict_litert(path, x)
    assert (expected.argmax(1) == got.argmax(1)).mean() >= 0.995
    assert np.abs(expected - got).mean() <= (expected.max() - expected.min()) / 255


def tensor_types(path):
    """The type of each tensor in a file."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    (graph,) = model.subgraphs
    names = {number: name for name, number in vars(schema.TensorType).items()}
    return [names[tensor.type] for tensor in graph.tensors]


@pytest.mark.parametrize("make", [blocks, attention, shared])
def test_strip_computes_what_the_model_did(make):
    model = make()
    plain = kt.quantization.strip(kt.quantization.quantize_aware(model))
    x, _ = classes(model, 8)
    for a, b in zip(
        keras.tree.flatten(model.predict(x, verbose=0)),
        keras.tree.flatten(plain.predict(x, verbose=0)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_file_of_opened_layers_loads_without_custom_objects(tmp_path):
    quantized = trained(blocks(), epochs=1)
    quantized.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x, _ = classes(quantized, 8)
    np.testing.assert_allclose(
        again.predict(x, verbose=0), quantized.predict(x, verbose=0), atol=1e-5
    )


def test_masked_attention_loads_too(tmp_path):
    quantized = trained(causal(), epochs=1)
    quantized.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x, _ = classes(quantized, 8)
    np.testing.assert_allclose(
        again.predict(x, verbose=0), quantized.predict(x, verbose=0), atol=1e-5
    )


@pytest.mark.parametrize(
    ("kind", "reason"), [(Noisy, "own in training"), (Penalized, "cannot be traced")]
)
def test_layer_that_differs_in_training_stays_whole(kind, reason):
    inputs = keras.Input((6, 6, 3))
    hidden = layers.Flatten()(kind(4, name="own")(inputs))
    model = keras.Model(inputs, layers.Dense(3)(hidden))
    assert reason in kt.quantization.kept_float(model)["own"]
    quantized = kt.quantization.quantize_aware(model)
    assert type(quantized.get_layer("own")) is kind


def test_layers_without_a_rule_are_listed():
    inputs = keras.Input((6, 6, 3))
    hidden = layers.Conv2D(4, 3)(Sine(name="sine")(inputs))
    hidden = ops.tanh(ops.exp(hidden))
    hidden = hidden * np.arange(4, dtype="float32")
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(hidden)))
    kept = kt.quantization.kept_float(model)
    reasons = sorted(kept.values())
    assert len(kept) == 3
    assert "without a rule (Exp)" in reasons[0]
    assert "with an array" in reasons[1]
    assert reasons[2] == "there is no rule for Sine"


def test_selectors_reach_into_opened_layers():
    model = blocks()
    quantized = kt.quantization.quantize_aware(model, exclude=["one/conv", "two"])
    kept = kt.quantization.kept_float(quantized)
    assert set(kept) == {"one/conv", "two"}
    conv = model.get_layer("one").conv
    quantized = kt.quantization.quantize_aware(model, include=[conv])
    kept = kt.quantization.kept_float(quantized)
    assert "one/conv" not in kept
    assert {"one/short", "two", "head"} <= set(kept)


def test_mixed_precision_keeps_its_dtypes():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = blocks()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    quantized = kt.quantization.quantize_aware(model)
    assert quantized.output.dtype == model.output.dtype == "bfloat16"
    assert {w.dtype for w in quantized.trainable_weights} == {"float32"}


@pytest.mark.skipif(not ON_TENSORFLOW, reason="jit is the default elsewhere")
def test_jit_gives_the_same_weights():
    x, y = classes(blocks(), 64)
    weights = []
    for jit in (False, True):
        keras.utils.set_random_seed(0)
        quantized = kt.quantization.quantize_aware(blocks())
        quantized.compile("sgd", "sparse_categorical_crossentropy", jit_compile=jit)
        quantized.fit(x, y, 32, shuffle=False, verbose=0)
        weights.append(quantized.get_weights())
    for a, b in zip(*weights, strict=True):
        # A value halfway between two points of a grid may go to either.
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3)


def test_find_lr_leaves_ranges_alone():
    quantized = trained(blocks(), epochs=1)
    before = quantized.get_weights()
    x, y = classes(quantized, 96)
    kt.find_lr(quantized, x, y, num_steps=10, batch_size=16)
    for a, b in zip(before, quantized.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
