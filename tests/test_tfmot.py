"""The bridge to tf_keras, and masks beside those of the real TF-MOT."""

import keras
import numpy as np
import pytest

import keras_trainkit as kt

pytestmark = pytest.mark.filterwarnings("ignore")
tf_keras = pytest.importorskip("tf_keras")
tfmot = pytest.importorskip("tensorflow_model_optimization")

rng = np.random.default_rng(0)
layers = keras.layers


def images():
    inputs = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 2, offset=0.1)(inputs)
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(x)
    x = layers.ZeroPadding2D(1)(x)
    x = layers.Conv2D(4, 3, use_bias=False, kernel_regularizer="l2")(x)
    x = layers.BatchNormalization()(x)
    x = short = layers.LeakyReLU(0.1)(x)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.SeparableConv2D(4, 3, padding="same", activation="relu6")(x)
    x = layers.Add()([x, short])
    x = layers.Concatenate()([x, short])
    x = layers.Conv2DTranspose(5, 2, strides=2, activation="elu")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2)(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def texts():
    tokens = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 4)(tokens)
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(x)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.LayerNormalization()(x)
    x = layers.GRU(3)(x)
    return keras.Model(tokens, [layers.Dense(2)(x), layers.Dense(1)(x)])


def nested():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, activation="gelu")])
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(2)(inner(inner(inputs))))


def sequential():
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="selu"),
            layers.AlphaDropout(0.1),
            layers.PReLU(),
            layers.Dense(3, activation="softmax"),
        ]
    )


def shake(model):
    """Give the biases and the statistics values of their own."""
    model.set_weights([w + rng.uniform(0, 0.3, w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("make", [images, texts, nested, sequential])
def test_there_and_back(make):
    model = shake(make())
    converted = kt.tfmot.to_tf_keras(model)
    back = kt.tfmot.from_tf_keras(converted)
    shape = (4, *model.input_shape[1:])
    x = rng.normal(size=shape).astype("f")
    if make is texts:
        x = rng.integers(0, 7, shape)
    expected = model.predict_on_batch(x)
    for other in (converted, back):
        for a, b in zip(
            keras.tree.flatten(expected),
            keras.tree.flatten(other.predict_on_batch(x)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert isinstance(converted, tf_keras.Model)
    assert isinstance(converted, tf_keras.Sequential) == (make is sequential)
    assert isinstance(back, keras.Sequential) == (make is sequential)


def test_adapted_normalization():
    x = rng.normal(2, 3, size=(50, 4)).astype("f")
    normalization = layers.Normalization()
    normalization.adapt(x)
    model = keras.Sequential([keras.Input((4,)), normalization, layers.Dense(2)])
    converted = kt.tfmot.to_tf_keras(model)
    np.testing.assert_allclose(
        converted.predict_on_batch(x), model.predict_on_batch(x), atol=1e-5
    )


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (kt.layers.MCDropout(0.1, name="mine"), "MCDropout 'mine'"),
        (layers.RMSNormalization(name="rms"), "RMSNormalization 'rms'"),
    ],
)
def test_what_has_no_counterpart_is_named(layer, match):
    model = keras.Sequential([keras.Input((4,)), layer])
    with pytest.raises(ValueError, match=match):
        kt.tfmot.to_tf_keras(model)


def test_what_computes_something_else_is_noticed():
    # tf_keras has another line between the same bounds.
    layer = layers.Dense(2, activation="hard_sigmoid")
    model = keras.Sequential([keras.Input((4,)), layer])
    with pytest.raises(RuntimeError, match="The converted model's outputs differ by"):
        kt.tfmot.to_tf_keras(model)


def test_not_a_graph():
    class Own(keras.Model):
        pass

    with pytest.raises(ValueError, match="a Functional or a built Sequential"):
        kt.tfmot.to_tf_keras(Own())
    with pytest.raises(ValueError, match="a Functional or a built Sequential tf_keras"):
        kt.tfmot.from_tf_keras(sequential())


# --- TF-MOT's own tools on a converted model, and back


def data():
    x = rng.normal(size=(64, 6)).astype("f")
    return x, (x.sum(1) > 0).astype("int32")


def compile_and_fit(model, callbacks=()):
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(*data(), batch_size=16, callbacks=list(callbacks), verbose=0)


def plain():
    # What quantization-aware training supports.
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, "relu"), layers.Dense(3, "softmax")]
    )


def test_prune_low_magnitude():
    sparsity = tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
    pruned = tfmot.sparsity.keras.prune_low_magnitude(
        kt.tfmot.to_tf_keras(plain()), sparsity
    )
    compile_and_fit(pruned, [tfmot.sparsity.keras.UpdatePruningStep()])
    with pytest.raises(ValueError, match="strip_pruning"):
        kt.tfmot.from_tf_keras(pruned)
    stripped = tfmot.sparsity.keras.strip_pruning(pruned)
    back = kt.tfmot.from_tf_keras(stripped)
    assert kt.pruning.sparsity_report(back).layers[0].sparsity == 0.5


def test_cluster_weights():
    centroids = tfmot.clustering.keras.CentroidInitialization.LINEAR
    clustered = tfmot.clustering.keras.cluster_weights(
        kt.tfmot.to_tf_keras(plain()),
        number_of_clusters=4,
        cluster_centroids_init=centroids,
    )
    compile_and_fit(clustered)
    stripped = tfmot.clustering.keras.strip_clustering(clustered)
    back = kt.tfmot.from_tf_keras(stripped)
    assert len(np.unique(back.get_weights()[0])) <= 4


def test_quantization_aware_training():
    trained = tfmot.quantization.keras.quantize_model(kt.tfmot.to_tf_keras(plain()))
    compile_and_fit(trained)
    back = kt.tfmot.from_tf_keras(trained)
    assert [layer.activation.__name__ for layer in back.layers] == ["relu", "softmax"]
    x, _ = data()
    # The simulated int8 is coarse; the weights are those that it was trained with.
    difference = np.abs(back.predict_on_batch(x) - trained.predict_on_batch(x))
    assert 0 < difference.max() < 0.05


# --- our masks are TF-MOT's, bit for bit


def tfmot_masks(model, schedule, x, y, epochs, **options):
    """The zeros of each kernel after training with TF-MOT."""
    pruned = tfmot.sparsity.keras.prune_low_magnitude(
        kt.tfmot.to_tf_keras(model), schedule, **options
    )
    pruned.compile(tf_keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
    step = tfmot.sparsity.keras.UpdatePruningStep()
    pruned.fit(x, y, 16, epochs, verbose=0, shuffle=False, callbacks=[step])
    stripped = tfmot.sparsity.keras.strip_pruning(pruned)
    return [w == 0 for w in stripped.get_weights() if w.ndim > 1]


def convolutional():
    return keras.Sequential(
        [
            keras.Input((5, 5, 6)),
            layers.Conv2D(7, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(9, activation="relu"),
            layers.Dense(3, activation="softmax"),
        ]
    )


@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_masks_are_tfmots(pattern):
    model = convolutional()
    x = rng.normal(size=(64, 5, 5, 6)).astype("f")
    y = rng.integers(0, 3, 64)
    if pattern:
        # TF-MOT finds these masks once, for the first batch.
        options = {"sparsity_m_by_n": (2, 4)}
        theirs_schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1)
        pruning = kt.pruning.MagnitudePruning(
            0.5, begin_step=1, schedule="constant", pattern=pattern
        )
    else:
        options = {}
        theirs_schedule = tfmot.sparsity.keras.PolynomialDecay(
            0.0, 0.7, 0, 6, frequency=2
        )
        pruning = kt.pruning.MagnitudePruning(0.7, end_step=6, frequency=2)
    theirs = tfmot_masks(model, theirs_schedule, x, y, 2, **options)
    model.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
    model.fit(x, y, 16, 2, verbose=0, shuffle=False, callbacks=[pruning])
    ours = [w == 0 for w in model.get_weights() if w.ndim > 1]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
        assert 0 < a.sum() < a.size
