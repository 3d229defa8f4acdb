import keras
import numpy as np
import pytest
from helpers import check_layer, to_numpy

import keras_trainkit as kt

DROPOUTS = [
    (kt.layers.MCDropout, (4, 6)),
    (kt.layers.MCAlphaDropout, (4, 6)),
    (kt.layers.MCGaussianDropout, (4, 6)),
    (kt.layers.MCSpatialDropout1D, (2, 5, 6)),
    (kt.layers.MCSpatialDropout2D, (2, 3, 5, 6)),
    (kt.layers.MCSpatialDropout3D, (2, 3, 2, 5, 6)),
]


@pytest.mark.parametrize(("cls", "shape"), DROPOUTS)
def test_is_a_keras_citizen(cls, shape, tmp_path):
    check_layer(lambda **k: cls(0.5, seed=3, **k), shape, shape, tmp_path)


@pytest.mark.parametrize(("cls", "shape"), DROPOUTS)
def test_predict_is_a_sample_and_training_makes_no_difference(cls, shape):
    x = np.ones(shape, "float32")

    def samples(seed, training):
        layer = cls(0.5, seed=seed)
        return [to_numpy(layer(x, training=training)) for _ in range(2)]

    first, second = samples(1, training=False)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, samples(1, training=True)[0])
    assert not np.array_equal(first, samples(2, training=False)[0])
    model = keras.Sequential([keras.Input(shape[1:]), cls(0.5, seed=1)])
    one, two = (model.predict(x, verbose=0) for _ in range(2))
    assert not np.array_equal(one, two)


def test_rate_and_scale_over_a_million_elements():
    y = to_numpy(kt.layers.MCDropout(0.3, seed=0)(np.ones((1000, 1000), "float32")))
    # Five standard deviations of a binomial fraction.
    assert abs((y == 0).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 1e6)
    np.testing.assert_allclose(y[y > 0], 1 / 0.7, rtol=1e-6)


def test_alpha_dropout_keeps_mean_and_variance(rng):
    x = rng.normal(size=(1000, 1000)).astype("float32")
    y = to_numpy(kt.layers.MCAlphaDropout(0.3, seed=0)(x))
    assert abs(y.mean()) < 0.01
    assert abs(y.std() - 1) < 0.01
