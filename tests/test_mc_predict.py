"""`mc_predict`: its masks, its statistics, and every model and input it takes."""

import gc
import weakref

import keras
import numpy as np
import pytest
from helpers import to_numpy
from keras import layers
from scipy import stats

import keras_trainkit as kt
from keras_trainkit.uncertainty import MCPrediction, mc_predict
from keras_trainkit.uncertainty._noise import Noise


def noise(seed=0, samples=100, rows=100):
    words = np.random.SeedSequence(seed).generate_state(2).view(np.int32)
    arrays = (words, np.arange(samples, dtype="int32"), np.arange(rows, dtype="int32"))
    return Noise(*map(keras.ops.convert_to_tensor, arrays))


def murmur(h, key=0):
    """MurmurHash3's finalizer on Python's integers."""
    h ^= h >> 16
    h ^= key
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


def test_words_are_those_of_the_documented_hash():
    golden, seed = 0x9E3779B9, (5, 2**32 - 7)
    words = np.array(seed, "uint32").view("int32")
    samples, rows = np.array([0, 3], "int32"), np.array([1, 4096], "int32")
    made = Noise(*map(keras.ops.convert_to_tensor, (words, samples, rows)))
    made._words(2)
    second = to_numpy(made._words(3)).view("uint32")
    for s, sample in enumerate(samples.tolist()):
        for r, row in enumerate(rows.tolist()):
            a, b = (
                murmur((murmur((sample * golden + word) % 2**32) + 2 * golden) % 2**32)
                ^ murmur((murmur(row * golden % 2**32) + word) % 2**32)
                for word in seed
            )
            expected = [murmur((a + j * golden) % 2**32, b) for j in range(3)]
            assert second[s, r].tolist() == expected


def test_words_are_uniform_and_independent():
    words = to_numpy(noise()._words(100)).view("uint32")
    n = words.size
    # Every bit is set half the time, and so are two bits, rows, samples or elements.
    bits = np.unpackbits(words.view("uint8").reshape(n, 4), axis=1).astype(float) - 0.5
    assert np.abs(bits.mean(0) * 2 * np.sqrt(n)).max() < 4.5
    assert np.abs(np.corrcoef(bits.T) - np.eye(32)).max() * np.sqrt(n) < 5
    counts = np.bincount((words >> 16).ravel(), minlength=2**16)
    assert stats.chisquare(counts).pvalue > 1e-3
    u = words / 2**32 - 0.5
    for axis in range(3):
        for lag in (1, 2, 7):
            a, b = np.split(np.moveaxis(u, axis, 0), [lag])[1], np.moveaxis(u, axis, 0)
            z = (a * b[:-lag]).sum() * 12 / np.sqrt(a.size)
            assert abs(z) < 4.5, (axis, lag)
    # Two calls, two seeds.
    twice = noise()
    twice._words(100)
    for other in (twice._words(100), noise(seed=1)._words(100)):
        z = (u * (to_numpy(other).view("uint32") / 2**32 - 0.5)).sum() * 12
        assert abs(z) / np.sqrt(n) < 4.5


@pytest.mark.parametrize("rate", [0.001, 0.2, 0.5, 0.999])
def test_masks_keep_the_rate(rate):
    kept = to_numpy(noise()._kept(101, rate))
    assert kept.shape == (100, 100, 101)
    z = (kept.mean() - (1 - rate)) / np.sqrt(rate * (1 - rate) / kept.size)
    assert abs(z) < 4.5


def test_normal_numbers_are_normal():
    numbers = to_numpy(noise()._normal(50)).ravel()
    assert stats.kstest(numbers, "norm").pvalue > 1e-3


def sampled(layer, shape, count=4000):
    """Samples of a layer's output behind a sum, by `mc_predict` and by the copy."""
    inputs = keras.Input(shape)
    x = layer(inputs)
    model = keras.Model(inputs, layers.Flatten()(x))
    rows = np.random.default_rng(1).normal(size=(2, *shape)).astype("float32")
    mc = mc_predict(model, rows, count, seed=0, keep_samples=True)
    copy = kt.uncertainty.to_mc(model, seed=0)
    repeated = np.repeat(rows, count, axis=0)
    plain = copy.predict(repeated, batch_size=2 * count, verbose=0)
    return mc.samples, plain.reshape(2, count, -1).swapaxes(0, 1)


FAMILY = {
    "Dropout": (lambda: layers.Dropout(0.3), (5,)),
    "noise_shape": (lambda: layers.Dropout(0.3, noise_shape=(None, 1, 2)), (3, 2)),
    "AlphaDropout": (lambda: layers.AlphaDropout(0.3), (5,)),
    "GaussianDropout": (lambda: layers.GaussianDropout(0.3), (5,)),
    "SpatialDropout1D": (lambda: layers.SpatialDropout1D(0.3), (3, 2)),
    "SpatialDropout2D": (lambda: layers.SpatialDropout2D(0.3), (2, 2, 2)),
    "SpatialDropout2D, channels first": (
        lambda: layers.SpatialDropout2D(0.3, data_format="channels_first"),
        (2, 2, 2),
    ),
    "SpatialDropout3D": (lambda: layers.SpatialDropout3D(0.3), (2, 1, 2, 2)),
    "TimeDistributed": (lambda: layers.TimeDistributed(layers.Dropout(0.3)), (3, 2)),
    "SimpleRNN": (
        lambda: layers.SimpleRNN(3, dropout=0.3, recurrent_dropout=0.2),
        (3, 2),
    ),
    "LSTM": (lambda: layers.LSTM(2, dropout=0.3, recurrent_dropout=0.2), (3, 2)),
    "LSTM, no recurrent": (lambda: layers.LSTM(2, dropout=0.3), (3, 2)),
    "GRU": (lambda: layers.GRU(2, dropout=0.3), (3, 2)),
    "Bidirectional": (
        lambda: layers.Bidirectional(layers.LSTM(2, dropout=0.3)),
        (3, 2),
    ),
    "kt.layers.MCDropout": (lambda: kt.layers.MCDropout(0.3), (5,)),
}


@pytest.mark.parametrize("name", FAMILY)
def test_every_dropout_has_the_moments_of_the_plain_copy(name):
    build, shape = FAMILY[name]
    ours, plain = sampled(build(), shape)
    n = len(ours)
    spread = plain.std(0)
    assert (spread > 0).all()
    z = (ours.mean(0) - plain.mean(0)) / (spread * np.sqrt(2 / n))
    assert np.abs(z).max() < 4.5
    fourth = ((plain - plain.mean(0)) ** 4).mean(0) - spread**4
    z = (ours.var(0) - spread**2) / np.sqrt(2 * fourth / n)
    assert np.abs(z).max() < 4.5
    # What stands or falls together does so in both.
    ours, plain = (np.corrcoef(a[:, 0].T) for a in (ours, plain))
    assert np.abs(ours - plain).max() < 5 * np.sqrt(2 / n)


def test_attention_has_the_moments_of_the_plain_copy():
    inputs = keras.Input((3, 4))
    x = layers.MultiHeadAttention(2, 2, dropout=0.4)(inputs, inputs)
    model = keras.Model(inputs, layers.Flatten()(x))
    x = np.random.default_rng(0).normal(size=(1, 3, 4)).astype("float32")
    n = 3000
    ours = mc_predict(model, x, n, seed=0)
    copy = kt.uncertainty.to_mc(model, seed=0)
    assert type(copy.layers[-2]) is kt.layers.MCMultiHeadAttention
    plain = copy.predict(np.repeat(x, n, axis=0), batch_size=n, verbose=0)
    assert (plain.std(0) > 0).all()
    z = (ours.mean[0] - plain.mean(0)) / (plain.std(0) * np.sqrt(2 / n))
    assert np.abs(z).max() < 4.5
    np.testing.assert_allclose(ours.std[0], plain.std(0), rtol=0.1)


@pytest.mark.parametrize("kind", [layers.Attention, layers.AdditiveAttention])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_has_the_moments_of_its_formula(kind, masked):
    """Weights `w` are dropped behind the softmax: `sum(w v m) / (1 - rate)`."""
    rng = np.random.default_rng(0)
    query, value = (rng.normal(size=(2, n, 4)).astype("float32") for n in (3, 5))
    inputs = keras.Input((3, 4)), keras.Input((5, 4))
    given = inputs[1]
    if masked:
        value[0, 3:] = 0
        given = layers.Masking()(given)
    attention = kind(dropout=0.4, name="attention")
    model = keras.Model(
        inputs, layers.Activation("linear")(attention([inputs[0], given]))
    )
    mask = None if not masked else [None, keras.ops.any(value != 0, axis=-1)]
    _, w = attention([query, value], mask=mask, return_attention_scores=True)
    w, n = to_numpy(w), 4000
    std = np.sqrt(0.4 / 0.6 * w**2 @ value**2)
    found = mc_predict(model, [query, value], n, seed=0)
    z = (found.mean - w @ value) / (std * np.sqrt(1 / n))
    assert np.abs(z).max() < 4.5
    np.testing.assert_allclose(found.std, std, rtol=0.1)
    if not masked:
        copy = kt.uncertainty.to_mc(model, seed=0)
        assert type(copy.get_layer("attention")).__name__ == f"MC{kind.__name__}"
        one, two = (copy.predict([query, value], verbose=0) for _ in range(2))
        assert not np.allclose(one, two)
        assert kt.uncertainty.mc_predict(copy, [query, value], 2).std.max() > 0


@pytest.fixture(scope="module")
def model():
    """What dropout does not reach in front, a nested model, BatchNorm, two uses."""
    keras.utils.set_random_seed(2)
    inner = keras.Sequential(
        [keras.Input((8,)), layers.Dense(8, "relu"), layers.Dropout(0.2)], name="inner"
    )
    inputs = keras.Input((6,))
    x = layers.BatchNormalization()(layers.Dense(8, "tanh")(inputs))
    x = layers.Add()([inner(x), inner(layers.Activation("tanh")(x))])
    x = layers.Dropout(0.4)(x)
    return keras.Model(inputs, layers.Dense(3, "softmax")(x))


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(50, 6)).astype("float32")


def test_moments_agree_with_the_plain_loop(model, x):
    # `training=True` would move the BatchNorm; so the copy is looped over.
    n = 10_000
    ours = mc_predict(model, x[:4], n, seed=1)
    copy = kt.uncertainty.to_mc(model)
    plain = copy.predict(np.repeat(x[:4], n, axis=0), batch_size=n, verbose=0)
    plain = plain.reshape(4, n, 3)
    z = (ours.mean - plain.mean(1)) / (plain.std(1) * np.sqrt(2 / n))
    assert np.abs(z).max() < 4
    fourth = ((plain - plain.mean(1, keepdims=True)) ** 4).mean(1)
    z = (ours.std**2 - plain.var(1)) / np.sqrt(2 * (fourth - plain.var(1) ** 2) / n)
    assert np.abs(z).max() < 4


def test_moments_are_those_of_the_samples(model, x):
    # 7 samples, so that the last chunk of a batch may be filled up.
    mc = mc_predict(model, x, 7, batch_size=16, seed=0, keep_samples=True)
    assert mc.samples.shape == (7, 50, 3)
    samples = mc.samples.astype(float)
    np.testing.assert_allclose(mc.mean, samples.mean(0), atol=1e-6)
    np.testing.assert_allclose(mc.std, samples.std(0), atol=1e-6)
    entropy = stats.entropy(samples, axis=-1)
    np.testing.assert_allclose(
        mc.predictive_entropy, stats.entropy(samples.mean(0), axis=-1), atol=1e-5
    )
    np.testing.assert_allclose(
        mc.mutual_information,
        stats.entropy(samples.mean(0), axis=-1) - entropy.mean(0),
        atol=1e-5,
    )
    votes = np.apply_along_axis(np.bincount, 0, samples.argmax(-1), minlength=3)
    np.testing.assert_allclose(mc.variation_ratio, 1 - votes.max(0) / 7, atol=1e-6)
    low, high = mc.interval(0.5)
    np.testing.assert_allclose(low, np.quantile(samples, 0.25, axis=0), rtol=1e-5)
    np.testing.assert_allclose(high, np.quantile(samples, 0.75, axis=0), rtol=1e-5)


@pytest.mark.parametrize("count", [1, 7, 40])
def test_chunks_of_samples_do_not_matter(model, x, count, monkeypatch):
    from keras_trainkit.uncertainty import _engine

    whole = mc_predict(model, x, count, seed=0, keep_samples=True)
    # At most three samples go through together.
    monkeypatch.setattr(_engine, "_BUDGET", 3 * 50 * 8)
    parts = mc_predict(model, x, count, batch_size=50, seed=0, keep_samples=True)
    for name in ("samples", "mean", "std", "mutual_information", "variation_ratio"):
        np.testing.assert_allclose(
            getattr(parts, name), getattr(whole, name), atol=2e-6, err_msg=name
        )


def test_the_seed_fixes_the_samples_whatever_the_batch(model, x):
    def mean(seed, **options):
        return mc_predict(model, x, 3, seed=seed, **options).mean

    np.testing.assert_array_equal(mean(1), mean(1))
    for batch_size in (1, 7, 50):
        np.testing.assert_allclose(mean(1, batch_size=batch_size), mean(1), atol=1e-6)
    assert not np.allclose(mean(1), mean(2), atol=1e-3)
    assert not np.allclose(mean(None), mean(None), atol=1e-3)
    # As the seeds of layers, that of the call comes from Keras's.
    keras.utils.set_random_seed(3)
    first = mean(None)
    keras.utils.set_random_seed(3)
    np.testing.assert_array_equal(first, mean(None))


def test_rows_have_their_own_masks_or_share_them(model):
    same = np.ones((2, 6), "float32")
    own = mc_predict(model, same, 20, seed=0, keep_samples=True).samples
    assert not np.allclose(own[:, 0], own[:, 1], atol=1e-3)
    shared = mc_predict(
        model, same, 20, noise="shared", seed=0, keep_samples=True
    ).samples
    np.testing.assert_allclose(shared[:, 0], shared[:, 1], atol=1e-6)
    assert (shared[:, 0].std(0) > 1e-3).all()
    # Over batches too: a sample is one function.
    single = mc_predict(
        model, same, 20, 1, noise="shared", seed=0, keep_samples=True
    ).samples
    np.testing.assert_allclose(single, shared, atol=1e-6)


def test_moments_are_stable_far_from_zero():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dropout(0.5), layers.Dense(1)], name="far"
    )
    model.layers[-1].set_weights([np.full((4, 1), 0.25), np.array([1e4])])
    x = np.ones((3, 4), "float32")
    mc = mc_predict(model, x, 500, batch_size=3, seed=0, keep_samples=True)
    # Variance 4 (w x)^2 p / (1 - p) = 0.25; float32's spacing at 1e4 is 0.001.
    np.testing.assert_allclose(mc.std, mc.samples.astype(float).std(0), rtol=1e-3)
    np.testing.assert_allclose(mc.std, 0.5, rtol=0.15)


def test_opposite_members_have_a_mutual_information_of_ln_2():
    # Dropout of one unit by half: the output is either (1, 0) or (0, 1).
    inputs = keras.Input((1,))
    x = layers.Dense(2, "softmax")(layers.Dropout(0.5)(inputs))
    model = keras.Model(inputs, x)
    model.layers[-1].set_weights([np.array([[100.0, -100.0]]), np.array([-50.0, 50])])
    mc = mc_predict(model, np.ones((1, 1)), 4096, seed=0)
    np.testing.assert_allclose(mc.predictive_entropy, np.log(2), atol=2e-3)
    np.testing.assert_allclose(mc.mutual_information, np.log(2), atol=2e-3)
    np.testing.assert_allclose(mc.variation_ratio, 0.5, atol=0.03)


def test_heteroscedastic_regression_has_the_closed_form():
    inputs = keras.Input((3,))
    mean = layers.Dense(1)(layers.Dropout(0.5)(inputs))
    log_variance = layers.Dense(1, bias_initializer="ones")(inputs)
    model = keras.Model(inputs, layers.Concatenate()([mean, log_variance]))
    x = np.array([[1.0, -2.0, 0.5]], "float32")
    kernel, other = (model.layers[i].get_weights()[0][:, 0] for i in (2, 3))
    mc = mc_predict(model, x, 5000, seed=0, task="heteroscedastic")
    epistemic = np.sqrt(((x[0] * kernel) ** 2).sum())
    np.testing.assert_allclose(mc.std[0, 0], epistemic, rtol=0.05)
    aleatoric = np.exp((x[0] @ other + 1) / 2)
    np.testing.assert_allclose(mc.aleatoric_std[0, 0], aleatoric, rtol=1e-4)
    np.testing.assert_allclose(
        mc.total_std, np.sqrt(mc.std**2 + mc.aleatoric_std**2), rtol=1e-6
    )
    assert mc.mean.shape == (1, 1)
    assert mc.predictive_entropy is None
    assert "aleatoric" in repr(mc)


def head(activation, units=2):
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dropout(0.5),
            layers.Dense(units, activation),
        ]
    )


def test_logits_become_probabilities(x):
    mc = mc_predict(head(None, 3), x, 10, seed=0, task="logits", keep_samples=True)
    np.testing.assert_allclose(mc.samples.sum(-1), 1, atol=1e-5)
    assert mc.predictive_entropy.shape == (50,)


def test_a_sigmoid_is_binary(x):
    mc = mc_predict(head("sigmoid"), x, 9, seed=0, keep_samples=True)
    p = mc.samples.astype(float)

    def entropy(p):
        return -p * np.log(p) - (1 - p) * np.log(1 - p)

    np.testing.assert_allclose(mc.predictive_entropy, entropy(p.mean(0)), atol=1e-5)
    np.testing.assert_allclose(
        mc.mutual_information, entropy(p.mean(0)) - entropy(p).mean(0), atol=1e-5
    )
    yes = (p > 0.5).sum(0)
    np.testing.assert_allclose(mc.variation_ratio, np.minimum(yes, 9 - yes) / 9)


def test_regression_has_no_entropy(x):
    mc = mc_predict(head(None), x, 5, seed=0)
    assert mc.predictive_entropy is mc.mutual_information is mc.variation_ratio is None
    assert "epistemic std" in repr(mc)
    np.testing.assert_array_equal(mc.total_std, mc.std)


def test_images_of_classes(rng):
    """A class for each pixel."""
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.SpatialDropout2D(0.5),
            layers.Conv2D(3, 1, activation="softmax"),
        ]
    )
    mc = mc_predict(model, rng.normal(size=(2, 4, 4, 1)), 5, seed=0)
    assert mc.mean.shape == (2, 4, 4, 3)
    assert mc.predictive_entropy.shape == mc.variation_ratio.shape == (2, 4, 4)


@pytest.fixture(scope="module")
def two_headed():
    a, b = keras.Input((6,), name="a"), keras.Input((2,), name="b")
    shared = layers.Dropout(0.5)(layers.Concatenate()([a, b]))
    outputs = {
        "kind": layers.Dense(3, "softmax", name="kind")(shared),
        "size": layers.Dense(1, name="size")(shared),
        "sure": layers.Dense(1, name="sure")(b),
    }
    return keras.Model([a, b], outputs)


def test_several_inputs_and_outputs(two_headed, x):
    b = np.ones((50, 2), "float32")
    mc = mc_predict(two_headed, [x, b], 5, seed=0)
    assert set(mc) == {"kind", "size", "sure"}
    assert mc["kind"].predictive_entropy.shape == (50,)
    assert mc["size"].predictive_entropy is None
    # A head that no dropout reaches.
    np.testing.assert_allclose(mc["sure"].std, 0, atol=1e-6)
    by_name = mc_predict(two_headed, {"b": b, "a": x}, 5, seed=0)
    np.testing.assert_array_equal(by_name["size"].mean, mc["size"].mean)
    tasks = {"kind": "regression", "size": None, "sure": None}
    given = mc_predict(two_headed, [x, b], 5, seed=0, task=tasks)
    assert given["kind"].predictive_entropy is None
    with pytest.raises(ValueError, match="`task` must be in the structure of the outp"):
        mc_predict(two_headed, [x, b], 5, task={"kind": "regression"})


class Batches(keras.utils.PyDataset):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return self.x[20 * i : 20 * i + 20], np.zeros(20)


def test_every_kind_of_input(model, x):
    expected = mc_predict(model, x, 5, seed=0).mean
    batches = [x[:20], x[20:40], x[40:]]
    for data in (
        Batches(x),
        ((batch, None) for batch in batches),
        iter(batches),
        keras.ops.convert_to_tensor(x),
        x.astype("float64"),
    ):
        np.testing.assert_allclose(
            mc_predict(model, data, 5, seed=0).mean, expected, atol=1e-6
        )


def test_a_dataset_of_the_backend(model, x):
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        rows = torch.utils.data.TensorDataset(torch.tensor(x), torch.zeros(50))
        data = torch.utils.data.DataLoader(rows, batch_size=20)
    else:
        tf = pytest.importorskip("tensorflow")
        data = tf.data.Dataset.from_tensor_slices((x, np.zeros(50))).batch(20)
    expected = mc_predict(model, x, 5, seed=0).mean
    result = mc_predict(model, data, 5, seed=0).mean
    np.testing.assert_allclose(result, expected, atol=1e-6)


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.drop, self.dense = layers.Dropout(0.5), layers.Dense(2, "softmax")
        self.norm = layers.BatchNormalization()

    def call(self, inputs, training=False):
        x = self.norm(inputs["x"], training=training)
        return self.dense(self.drop(x, training=training))


def test_a_subclassed_model(x):
    model = Own()
    model({"x": x})
    before = model.get_weights()
    mc = mc_predict(model, {"x": x}, 50, seed=0)
    assert (mc.std > 1e-3).all()
    np.testing.assert_allclose(mc.mean.sum(1), 1, atol=1e-5)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop = layers.Dropout(0.5)

    def call(self, x, training=None):
        return self.drop(x, training=training)


def test_dropout_inside_a_layer_of_the_user(x):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(1)(Block()(inputs)))
    assert (mc_predict(model, x, 20, seed=0).std > 1e-3).all()
    live = kt.uncertainty.to_mc(model)
    assert np.abs(np.asarray(live.predict(x) - live.predict(x))).max() > 1e-3


def test_masks_of_padding_reach_what_comes_behind(rng):
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(7, 3, mask_zero=True),
            layers.Dropout(0.3),
            layers.LSTM(2),
            layers.Dense(1),
        ]
    )
    padded = np.array([[1, 2, 0, 0, 0]])
    mc = mc_predict(model, padded, 50, seed=0)
    short = keras.Sequential([keras.Input((2,), dtype="int32"), *model.layers])
    expected = kt.uncertainty.to_mc(short).predict(
        np.repeat(padded[:, :2], 4000, axis=0), batch_size=4000, verbose=0
    )
    error = np.hypot(expected.std() / np.sqrt(50), expected.std() / np.sqrt(4000))
    assert abs(mc.mean[0, 0] - expected.mean()) < 4 * error


def test_the_model_stays_as_it_was(model, x):
    plain = model.predict(x, verbose=0)
    names = [set(vars(layer)) for layer in model._flatten_layers()]
    before = [to_numpy(v) for v in model.variables]
    mc_predict(model, x, 5)
    assert [set(vars(layer)) for layer in model._flatten_layers()] == names
    for a, b in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(a, to_numpy(b))
    np.testing.assert_array_equal(model.predict(x, verbose=0), plain)


def test_the_model_stays_as_it_was_after_an_error(x):
    class Fails(layers.Layer):
        def call(self, x, training=None):
            raise RuntimeError("on purpose")

        def compute_output_shape(self, input_shape):
            return input_shape

    inputs = keras.Input((6,))
    drop = layers.Dropout(0.5)
    outputs = keras.layers.Dense(1)(drop(inputs))
    model = keras.Model(inputs, outputs)
    model.layers[-1].call = Fails().call
    with pytest.raises(ValueError, match="on purpose"):
        mc_predict(model, x, 5)
    assert "call" not in vars(drop)


def test_new_weights_and_rates_count(x):
    model = head(None, 1)
    x = np.ones((1, 6), "float32")
    first = mc_predict(model, x, 20, seed=0)
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([2 * kernel, bias + 1])
    second = mc_predict(model, x, 20, seed=0)
    np.testing.assert_allclose(second.mean, 2 * first.mean + 1, atol=1e-5)
    model.layers[0].rate = 0.0
    with pytest.raises(ValueError, match="at least one dropout layer"):
        mc_predict(model, x, 20)
    model.layers[0].rate = 0.25
    third = mc_predict(model, x, 2000, seed=0)
    expected = np.sqrt(((2 * kernel) ** 2).sum() / 3)
    np.testing.assert_allclose(third.std[0, 0], expected, rtol=0.1)


def test_a_model_that_is_gone_is_forgotten(x):
    model = head("softmax")
    mc_predict(model, x, 2)
    gone = weakref.ref(model)
    del model
    # Keras remembers names of symbolic tensors until the session is cleared.
    keras.utils.clear_session(free_memory=False)
    gc.collect()
    assert gone() is None


def test_tolerance_stops_early(x):
    model = head(None, 1)
    sure = np.concatenate([np.zeros((3, 6), "float32"), x[:5]])
    mc = mc_predict(model, sure, 5000, seed=0, tolerance=0.05)
    # A row of zeros has no variance.
    assert mc.num_samples[:3].tolist() == [20] * 3
    error = mc.std[:, 0] / np.sqrt(mc.num_samples - 1)
    assert (error[mc.num_samples < 5000] < 0.05).all()
    assert (mc.num_samples[3:] > 20).all()
    # The samples are those that come without it too.
    for row in (3, 7):
        count = int(mc.num_samples[row])
        same = mc_predict(model, sure, count, seed=0)
        np.testing.assert_allclose(same.mean[row], mc.mean[row], atol=1e-5)
        np.testing.assert_allclose(same.std[row], mc.std[row], atol=1e-5)
    assert "20 to" in repr(mc)


def test_tolerance_with_classes(model, x):
    most = mc_predict(model, x, 50, seed=0, tolerance=1e-9)
    plain = mc_predict(model, x, 50, seed=0)
    assert most.num_samples.tolist() == [50] * 50
    for name in ("mean", "std", "mutual_information", "variation_ratio"):
        np.testing.assert_allclose(
            getattr(most, name), getattr(plain, name), atol=2e-6, err_msg=name
        )


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy, x):
    keras.config.set_dtype_policy(policy)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, "selu"),
            layers.AlphaDropout(0.2),
            layers.GaussianDropout(0.2),
            layers.Dropout(0.2),
            layers.Dense(3, "softmax", dtype="float32"),
        ]
    )
    mc = mc_predict(model, x, 10, seed=0)
    assert np.isfinite(mc.mean).all()
    assert (mc.std > 0).all()


def test_a_bar_shows_progress(model, x, capsys):
    mc_predict(model, x, 2, batch_size=10)
    assert capsys.readouterr().out == ""
    mc_predict(model, x, 2, batch_size=10, verbose=1)
    assert "5/5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "`num_samples` must be an integer >= 1"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1"),
        ({"noise": "own"}, "`noise` must be"),
        ({"seed": -1}, "`seed` must be an integer >= 0"),
        ({"task": "guess"}, "`task` must be"),
        ({"task": "heteroscedastic"}, "`task` must be another"),
        ({"tolerance": 0.0}, "`tolerance` must be"),
        ({"tolerance": 0.1, "keep_samples": True}, "`keep_samples` must be False"),
        ({"x": np.zeros((0, 6))}, "`x` must be at least one row"),
        ({"x": [np.zeros((2, 6))] * 2}, "`x` must be the model's inputs"),
        ({"x": 3}, "`x` must be arrays"),
        ({"x": iter([]), "batch_size": 3}, "`batch_size` must be None"),
        ({"model": 3}, "`model` must be a keras.Model"),
    ],
)
def test_bad_arguments(model, x, arguments, message):
    with pytest.raises(ValueError, match=message):
        mc_predict(**{"model": model, "x": x, **arguments})


def test_quantiles_need_samples(model, x):
    with pytest.raises(ValueError, match="keep_samples=True"):
        mc_predict(model, x, 2).quantile(0.5)
    assert isinstance(mc_predict(model, x, 2), MCPrediction)
