"""Weight clustering: few distinct values, after training as well."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_trainkit as kt
from keras_trainkit.quantization._centroids import INITIALIZATIONS, cluster


def mlp():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, activation="relu", name="first"),
            layers.Dense(1, name="last"),
        ]
    )


def data():
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    return x, (x[:, :1] * x[:, 1:2]).astype("float32")


def kernel_values(model):
    found = [w for w in model.trainable_variables if w.name == "kernel"]
    return [keras.ops.convert_to_numpy(w) for w in found]


def fit(model, *callbacks, epochs=3, optimizer="adam"):
    model.compile(optimizer, "mse")
    x, y = data()
    return model.fit(x, y, 16, epochs, callbacks=list(callbacks), verbose=0)


@pytest.mark.parametrize("initialization", INITIALIZATIONS)
def test_inertia_is_that_of_scikit_learn(initialization):
    from sklearn.cluster import KMeans

    values = np.random.default_rng(0).normal(size=2000)
    labels = cluster(values, 8, initialization, 0)
    assert set(labels) == set(range(8))
    means = np.bincount(labels, values) / np.bincount(labels)
    expected = KMeans(8, n_init=5, random_state=0).fit(values[:, None]).inertia_
    assert ((values - means[labels]) ** 2).sum() <= 1.1 * expected


def test_kernels_have_few_values_and_the_loss_falls():
    model = mlp()
    losses = fit(model, kt.quantization.Clustering(6), epochs=8).history["loss"]
    assert losses[-1] < losses[0]
    assert [len(np.unique(k)) for k in kernel_values(model)] == [6, 6]


def test_a_centroid_moves_by_the_mean_gradient():
    model = mlp()
    x, y = data()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    clustering = kt.quantization.Clustering(3)
    model.fit(x, y, 64, callbacks=[clustering], verbose=0)
    before = kernel_values(model)
    # One step of plain SGD gives the gradients.
    plain = keras.models.clone_model(model)
    plain.set_weights(model.get_weights())
    for one, callbacks in ((plain, []), (model, [clustering])):
        one.compile(keras.optimizers.SGD(0.1), "mse")
        one.fit(x, y, 64, callbacks=callbacks, verbose=0)
    for old, free, got in zip(
        before, kernel_values(plain), kernel_values(model), strict=True
    ):
        for value in np.unique(old):
            members = old == value
            expected = free[members].mean()
            np.testing.assert_allclose(got[members], expected, atol=1e-6)


def test_zeros_stay_and_count_as_a_cluster():
    model = mlp()
    kernel = model.layers[0].get_weights()[0]
    kernel[::2] = 0
    model.layers[0].set_weights([kernel, np.zeros(16)])
    fit(model, kt.quantization.Clustering(4, preserve_sparsity=True))
    after = kernel_values(model)[0]
    np.testing.assert_array_equal(after == 0, kernel == 0)
    assert len(np.unique(after)) == 4


def test_each_unit_has_clusters_of_its_own():
    model = mlp()
    fit(model, kt.quantization.Clustering(2, per_channel=True, exclude="last"))
    first, last = kernel_values(model)
    assert [len(np.unique(column)) for column in first.T] == [2] * 16
    assert len(np.unique(first)) > 2
    assert len(np.unique(last)) == 16


def test_quantize_aware_keeps_clusters():
    model = kt.quantization.quantize_aware(mlp())
    fit(model, kt.quantization.Clustering(5))
    plain = kt.quantization.strip(model)
    assert [len(np.unique(k)) for k in kernel_values(plain)] == [5, 5]
    grids = model.layers[0].rounded_kernels()["_kernel"]
    for column in keras.ops.convert_to_numpy(grids).T:
        assert len(np.unique(column)) <= 5


def test_quantize_aware_keeps_zeros():
    model = kt.quantization.quantize_aware(mlp())
    fit(model, kt.pruning.MagnitudePruning(0.5, end_step=8, frequency=2))
    for kernel in kernel_values(kt.quantization.strip(model)):
        assert (kernel == 0).mean() == 0.5
    rounded = model.layers[0].rounded_kernels()["_kernel"]
    kernel = kernel_values(model)[0]
    assert (keras.ops.convert_to_numpy(rounded)[kernel == 0] == 0).all()
    # Clusters of the pruned, quantized model, in a fit behind that one.
    fit(model, kt.quantization.Clustering(4, preserve_sparsity=True))
    for kernel in kernel_values(kt.quantization.strip(model)):
        assert (kernel == 0).mean() == 0.5
        assert len(np.unique(kernel)) == 4


def test_the_next_fit_is_free_again():
    model = mlp()
    fit(model, kt.quantization.Clustering(4))
    fit(model)
    assert len(np.unique(kernel_values(model)[0])) > 4


def test_layers_that_thaw_later_are_refused():
    class Thaw(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.layers[0].trainable = epoch > 0

    with pytest.raises(ValueError, match="throughout a fit that clusters"):
        fit(mlp(), kt.quantization.Clustering(4), Thaw())


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_clusters"):
        kt.quantization.Clustering(1)
    with pytest.raises(ValueError, match="initialization"):
        kt.quantization.Clustering(4, initialization="random")
    pruning = kt.pruning.MagnitudePruning(0.5, end_step=8, frequency=2)
    for callbacks in (
        (pruning, kt.quantization.Clustering(4)),
        (kt.quantization.Clustering(4), pruning),
    ):
        model = mlp()
        before = model.get_weights()
        with pytest.raises(ValueError, match="kernels alone"):
            fit(model, *callbacks)
        for a, b in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


class Nudge(keras.callbacks.Callback):
    """Changes a kernel behind the optimizer's back."""

    def on_epoch_end(self, epoch, logs=None):
        kernel = self.model.layers[0].kernel
        kernel.assign(kernel * np.linspace(1, 2, kernel.shape[0])[:, None])


def test_a_fit_that_loses_its_clusters_raises():
    with pytest.raises(RuntimeError, match="lost its clusters"):
        fit(mlp(), Nudge(), kt.quantization.Clustering(4))


def test_pruned_clustered_and_quantized_in_one_fit():
    model = mlp()
    for layer in model.layers:
        kernel, *rest = layer.get_weights()
        layer.set_weights([np.where(np.abs(kernel) < 0.2, 0, kernel), *rest])
    zeros = [w == 0 for w in model.get_weights() if w.ndim == 2]
    model = kt.quantization.quantize_aware(model)
    fit(model, kt.quantization.Clustering(5, preserve_sparsity=True))
    for layer, zero in zip(model.layers, zeros, strict=True):
        rounded = keras.ops.convert_to_numpy(layer.rounded_kernels()["_kernel"])
        assert zero.mean() > 0.1
        np.testing.assert_array_equal(rounded[zero], 0)
        assert max(len(np.unique(unit)) for unit in rounded.T) <= 5


def test_averages_of_the_weights_have_the_clusters():
    model, average = mlp(), []

    def follow(batch, logs):
        if keras.backend.backend() == "jax":
            model.jax_state_sync()
        new = kernel_values(model)
        old = average[-1] if average else new
        average.append([0.9 * a + 0.1 * b for a, b in zip(old, new, strict=True)])

    seen = keras.callbacks.LambdaCallback(on_train_batch_end=follow)
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9)
    model.compile(optimizer, "mse", run_eagerly=True)
    x, y = data()
    clustering = kt.quantization.Clustering(6)
    model.fit(x, y, 16, 2, callbacks=[clustering, seen], verbose=0)
    for kernel, expected in zip(kernel_values(model), average[-1], strict=True):
        assert len(np.unique(kernel)) == 6
        np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-6)
