r"""Features on one device and on many, as JSON: the job of test_devices.py.

KERAS_BACKEND=jax XLA_FLAGS=--xla_force_host_platform_device_count=8 \
    python tests/devices_job.py one,data_parallel,model_parallel
"""

import json
import sys
import tempfile

import keras
import numpy as np

import keras_trainkit as kt

RNG = np.random.default_rng(0)
X = RNG.normal(size=(256, 6)).astype("float32")
Y = (X[:, 0] + RNG.normal(size=256) / 2 > 0).astype("int32")
# What `Look` saw: shapes of tensors, and of the part of a device.
SEEN = []
# Into how many parts `mc_predict` divided each of them.
SHARES = []


class Look(keras.layers.Layer):
    """Records how many rows of a tensor are on a device, in a compiled function."""

    def call(self, inputs):
        if keras.backend.backend() == "jax":
            import jax

            def record(sharding):
                SEEN.append((inputs.shape, sharding.shard_shape(inputs.shape)))

            if isinstance(inputs, jax.core.Tracer):
                jax.debug.inspect_array_sharding(inputs, callback=record)
        return inputs


def learner(optimizer="sgd", dropout=False):
    keras.utils.set_random_seed(0)
    drop = [keras.layers.Dropout(0.5, seed=1), Look()] if dropout else []
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(16, "relu", name="hidden"),
            *([Look()] if dropout else []),
            *drop,
            keras.layers.Dense(8, "tanh", name="middle"),
            keras.layers.Dense(2, "softmax", name="head"),
        ]
    )
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model


def fit(callback=None, optimizer="sgd", model=None, epochs=3):
    model = model or learner(optimizer)
    callbacks = [callback] if callback else []
    model.fit(X, Y, 32, epochs, shuffle=False, verbose=0, callbacks=callbacks)
    rates = model.history.history.get("learning_rate", [])
    return [rates, *model.get_weights()]


def one_cycle():
    return fit(kt.callbacks.OneCycle(0.1))


def pruning():
    return fit(
        kt.pruning.MagnitudePruning(0.5, end_step=16, frequency=4), optimizer="adam"
    )


def find_lr():
    labels = (X[:, 0] > 0).astype("int32")
    found = kt.find_lr(learner(), X, labels, num_steps=50, batch_size=32)
    return [found.losses, [found.suggestion]]


def mc_predict():
    """Many rows, and fewer than there are devices."""
    SEEN.clear()
    model, found = learner(dropout=True), []
    for rows, samples in ((50, 20), (3, 20)):
        mc = kt.uncertainty.mc_predict(model, X[:rows], num_samples=samples, seed=3)
        found += [mc.mean, mc.std]
    SHARES.extend([shape[0] // part[0] for shape, part in SEEN])
    return found


def mc_predict_few_samples():
    """Fewer samples than devices, so that rows are divided; and in rounds."""
    SEEN.clear()
    model = learner(dropout=True)
    few = kt.uncertainty.mc_predict(model, X[:50], num_samples=3, seed=3)
    SHARES.extend([shape[0] // part[0] for shape, part in SEEN])
    sure = kt.uncertainty.mc_predict(model, X[:50], 60, seed=3, tolerance=0.02)
    return [few.mean, few.std, sure.mean, sure.std]


def exponential():
    return fit(kt.callbacks.ExponentialSchedule(0.1, 1))


def plateau():
    return fit(kt.callbacks.PlateauSchedule(monitor="loss", patience=1, min_delta=10.0))


def automatic_rate():
    callback = kt.callbacks.OneCycle("auto")
    # Not the losses behind the divergence, where each rounding counts.
    return [*fit(callback), [callback.found.one_cycle]]


def lr_finder():
    callback = kt.callbacks.LRFinder(num_steps=20)
    return [*fit(callback), callback.result.losses]


def unfreezing():
    return fit(kt.callbacks.GradualUnfreezing())


def layerwise():
    optimizer = keras.optimizers.Adam()
    optimizer = kt.optimizers.layerwise(optimizer, {"hidden": 0.1, "head": 2.0})
    return fit(model=learner(optimizer))


def signal_logger():
    callback = kt.callbacks.SignalLogger(X[:32], Y[:32])
    found = fit(callback)
    report = callback.reports[max(callback.reports)]
    return [*found, *([x.std, x.gradient_norm] for x in report.layers)]


def monitor():
    callback = kt.callbacks.Monitor()
    found = fit(callback)
    return [*found, [len(callback.findings)]]


def resumable():
    with tempfile.TemporaryDirectory() as path:
        model = learner("adam")
        backup = kt.callbacks.Resumable([], path, delete=False)
        fit(backup, model=model, epochs=1)
        # Another process would make the model anew.
        again = learner("adam")
        return fit(kt.callbacks.Resumable([], path), model=again)


def quantize_aware():
    model = kt.quantization.quantize_aware(learner())
    model.compile("sgd", "sparse_categorical_crossentropy")
    return [*fit(model=model), model.predict(X[:40], verbose=0)]


def clustering():
    # Not Adam: a unit with one centroid to both classes has a gradient of 0, and Adam
    # makes steps of the rounding errors.
    return fit(kt.quantization.Clustering(4))


def fine_tune():
    model = learner()
    kt.transfer.fine_tune(
        model, X, Y, epochs=2, learning_rate=0.05, batch_size=32, shuffle=False,
        verbose=0,
    )  # fmt: skip
    return model.get_weights()


def surgeries():
    found = []
    shrunk = kt.pruning.prune_channels(learner(), 0.5).model
    headed = kt.transfer.replace_head(learner(), 4)
    headed.layers[-1].set_weights(
        [np.ones_like(w) for w in headed.layers[-1].get_weights()]
    )
    keras.utils.set_random_seed(0)
    normal = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(2),
        ]
    )
    folded = kt.folding.fold_batch_norm(normal).model
    for model in (shrunk, headed, folded):
        found.append(model.predict(X[:40], verbose=0))
    return found


def noise_scale():
    callback = kt.callbacks.NoiseScale(X, Y)
    found = fit(callback)
    return [*found, [x.noise_scale for x in callback.measured.values()]]


def check_up():
    found = kt.diagnostics.check_up(learner(), X, Y, batch_size=32)
    return [[len(found.findings), found.healthy]]


def signal_report():
    report = kt.diagnostics.signal_report(learner(), X, Y)
    return [[layer.std, layer.gradient_norm] for layer in report.layers]


QUICK = (one_cycle, find_lr, mc_predict)
FEATURES = (
    *QUICK, mc_predict_few_samples, pruning, exponential, plateau, automatic_rate,
    lr_finder, unfreezing, layerwise, signal_logger, monitor, resumable,
    quantize_aware, clustering, fine_tune, surgeries, noise_scale, check_up,
    signal_report,
)  # fmt: skip


def result(feature):
    """What a feature gives, or in what words it is refused."""
    try:
        return [np.asarray(part, float).tolist() for part in feature()]
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def set_engine(name):
    """Let everything after this run on other devices."""
    if name == "data_parallel":
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    elif name == "model_parallel":
        mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
        layout = keras.distribution.LayoutMap(mesh)
        layout[".*(hidden|middle).*kernel"] = (None, "model")
        layout[".*(hidden|middle).*bias"] = ("model",)
        keras.distribution.set_distribution(
            keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
        )


def main(engines, *names):
    """Print what each feature, or those of some names, gives under each engine."""
    found = {}
    for engine in engines.split(","):
        set_engine(engine)
        found[engine] = {
            f.__name__: result(f) for f in FEATURES if not names or f.__name__ in names
        }
        found[engine]["shares"] = SHARES[:]
        SHARES.clear()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
