# %% [markdown]
# # Fashion-MNIST: the choices of training a deep network, one by one
#
# The experiments of chapter 11 of *Hands-On Machine Learning* (A. Géron, 2nd ed., 2019)
# on a network of 300 and 100 hidden units: initialization and activations, batch
# normalization, transfer, optimizers, schedules, 1cycle and regularization. Each result
# is the mean over three seeds of the accuracy on the same 5,000 validation images,
# next to the one that the book's notebook shows, from a single seed. The learning
# rates are those that the finder suggests for that network, except in two sections:
# the regularized networks have the rates of the plain one, and transfer has fixed
# rates.
#
# To run it: `python notebooks/build.py 02`; a small network trains fastest on JAX.

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

from dataclasses import replace

import keras
import matplotlib.pyplot as plt
import numpy as np
from experiments import QUICK, SEEDS, Table, epochs, load, train

import keras_trainkit as kt

data = load("fashion_mnist", validation=5000)
PRESET = kt.models.PRESETS["default"]
data


# %%
def mlp(**options):
    """A network of 300 and 100 units; the default preset has He and ELU."""
    return kt.models.build_mlp(data.input_shape, data.num_classes, **options)


def ready(model, rate, optimizer=None):
    """The model compiled, by default for SGD with Nesterov momentum."""
    changes = {"optimizer": optimizer} if optimizer else {}
    return PRESET.compile(model, rate, steps_per_execution=8, **changes)


def found_rates(make, optimizer=None, batch_size=128):
    """What the finder says about a network."""
    keras.utils.set_random_seed(0)
    model = ready(make(), 1e-3, optimizer and optimizer(1e-3))
    return kt.find_lr(model, *data.train, batch_size=batch_size)


def constant(make, number, optimizer=None):
    """Train at the constant rate that the finder suggests."""
    rate = found_rates(make, optimizer).suggestion
    return train(
        lambda: ready(make(), rate, optimizer and optimizer(rate)),
        data,
        epochs=epochs(number),
    )


# %% [markdown]
# ## Initialization and activations
#
# Ten epochs at a constant rate.

# %%
activations = Table()
for name, options in {
    "Glorot + sigmoid": {
        "activation": "sigmoid",
        "kernel_initializer": "glorot_uniform",
    },
    "Glorot + tanh": {"activation": "tanh", "kernel_initializer": "glorot_uniform"},
    "He + ReLU": {"activation": "relu"},
    "He + leaky ReLU": {"activation": "leaky_relu"},
    "He + ELU": {},
    "LeCun + SELU": {"preset": "self_normalizing"},
    "He + SiLU": {"activation": "silu"},
}.items():
    runs = constant(lambda options=options: mlp(**options), 10)
    activations.add(name, runs, epochs(10))
activations

# %% [markdown]
# ### A hundred layers
#
# He initialization keeps the signal of a ReLU network level on average, but it strays
# further with each layer; SELU pulls it back to mean 0 and variance 1, layer by layer.
# Five epochs on one cycle, with gradients of at most norm 1. (For a network this deep
# the default preset has batch normalization; here it is off.)

# %%
DEEP = [300] + [100] * (9 if QUICK else 99)


def clipped(rate):
    """SGD with Nesterov momentum, and with gradients of at most norm 1."""
    return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, clipnorm=1.0)


deep = Table()
for name, options, published in (
    ("100 layers, LeCun + SELU", {"preset": "self_normalizing"}, "82.2"),
    ("100 layers, He + ReLU", {"activation": "relu", "normalization": None}, "73.8"),
):

    def make(options=options):
        return mlp(hidden_units=DEEP, **options)

    top = found_rates(make, clipped, batch_size=64).one_cycle
    runs = train(
        lambda make=make, top=top: ready(make(), top, clipped(top)),
        data,
        epochs=epochs(5),
        batch_size=64,
        callbacks=lambda top=top: [kt.callbacks.OneCycle(top)],
    )
    deep.add(name, runs, epochs(5), published)
deep

# %%
keras.utils.set_random_seed(0)
stds = {
    name: [
        layer.std
        for layer in kt.diagnostics.signal_report(
            ready(mlp(hidden_units=DEEP, **options), 1e-3),
            data.x_train[:1000],
            data.y_train[:1000],
        ).layers
        if layer.kind == "Activation"
    ]
    for name, options in {
        "LeCun + SELU": {"preset": "self_normalizing"},
        "He + ReLU": {"activation": "relu", "normalization": None},
        "Glorot + sigmoid": {
            "activation": "sigmoid",
            "kernel_initializer": "glorot_uniform",
            "normalization": None,
        },
    }.items()
}
figure, axis = plt.subplots(figsize=(7, 2.8))
for name, values in stds.items():
    axis.semilogy(np.linspace(0, 100, len(values)), values, label=name)
axis.set(xlabel="depth, % of the layers", ylabel="standard deviation")
axis.set_title("Signal at initialization")
axis.legend()
figure.tight_layout()

# %% [markdown]
# ## Batch normalization, after the activation or before it

# %%
norms = Table()
for name, options, published in (
    ("none", {}, ""),
    ("behind the activation", {"normalization": "batch"}, "87.5"),
    (
        "in front of the activation",
        {"normalization": "batch", "normalize_first": True},
        "86.6",
    ),
):
    runs = constant(lambda options=options: mlp(**options), 10)
    norms.add(name, runs, epochs(10), published)
norms

# %% [markdown]
# ## Optimizers
#
# Five epochs, each at its own found rate.

# %%
OPTIMIZERS = {
    "SGD": keras.optimizers.SGD,
    "momentum": lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
    "Nesterov": lambda rate: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
    "Adagrad": keras.optimizers.Adagrad,
    "RMSprop": keras.optimizers.RMSprop,
    "Adam": keras.optimizers.Adam,
    "Adamax": keras.optimizers.Adamax,
    "Nadam": keras.optimizers.Nadam,
    "AdamW": keras.optimizers.AdamW,
}
optimizers = Table()
for name, optimizer in OPTIMIZERS.items():
    optimizers.add(name, constant(mlp, 5, optimizer), epochs(5))
optimizers

# %% [markdown]
# ## Schedules
#
# Twenty-five epochs. A rate that falls can begin higher than one that stays: the
# schedules begin at the finder's `one_cycle`, which is the peak of 1cycle, the constant
# rate is its `descent`. Rates change from step to step, in the compiled training step.

# %%
rates = found_rates(mlp)
rate, peak = rates.suggestion, rates.one_cycle
number = epochs(25)
SCHEDULES = {
    "constant": (list, ""),
    "power": (lambda: [kt.callbacks.PowerSchedule(peak, epochs=5)], "89.2"),
    "exponential": (
        lambda: [kt.callbacks.ExponentialSchedule(peak, epochs=20)],
        "89.3 per epoch, 88.8 per step",
    ),
    "piecewise constant": (
        lambda: [
            kt.callbacks.PiecewiseConstantSchedule([5, 15], [peak, peak / 2, peak / 10])
        ],
        "88.7",
    ),
    "plateau": (lambda: [kt.callbacks.PlateauSchedule(patience=3)], "89.4"),
    "1cycle": (lambda: [kt.callbacks.OneCycle(peak)], "89.3"),
}
schedules = Table()
curves = {}
for name, (callbacks, published) in SCHEDULES.items():
    begin = rate if name == "constant" else peak
    runs = train(
        lambda begin=begin: ready(mlp(), begin),
        data,
        epochs=number,
        callbacks=callbacks,
    )
    schedules.add(name, runs, number, published)
    curves[name] = runs
schedules

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3))
for name, runs in curves.items():
    history = runs[0].history
    steps = np.arange(1, number + 1)
    left.semilogy(steps, history.get("learning_rate", [rate] * number), label=name)
    right.plot(steps, np.mean([r.history["val_accuracy"] for r in runs], axis=0))
left.set(xlabel="epoch", ylabel="learning rate")
right.set(xlabel="epoch", ylabel="validation accuracy, mean", ylim=(0.85, None))
left.legend(fontsize=8)
figure.tight_layout()

# %% [markdown]
# ## Regularization
#
# Twenty-five epochs on one cycle, enough to overfit without regularization.

# %%
regularized = Table()
VARIANTS = {
    "none": {},
    "L1, 1e-5": {"l1": 1e-5},
    "L2, 1e-4": {"l2": 1e-4},
    "dropout, 0.2": {"dropout": "dropout"},
    "max-norm, 1": {"max_norm": 1.0},
}


def regularized_mlp(max_norm=None, **options):
    """The network, with each unit's incoming weights kept short if wanted."""
    model = mlp(**options)
    if max_norm:
        constraint = kt.constraints.MaxNorm(max_norm)
        kt.regularizers.apply(model, constraint=constraint)
    return model


for name, options in VARIANTS.items():
    runs = train(
        lambda options=options: ready(regularized_mlp(**options), rate),
        data,
        epochs=number,
        callbacks=SCHEDULES["1cycle"][0],
    )
    regularized.add(name, runs, number)
    gap = [run.history["accuracy"][-1] - run.score for run in runs]
    print(f"{name:15s} training above validation: {100 * np.mean(gap):.1f} points")
regularized

# %% [markdown]
# Dropout narrows the gap to the training accuracy the most, L1 and L2 of this strength
# hardly do; the gain in validation accuracy is within the spread.
#
# ### Alpha dropout and MC dropout
#
# Twenty epochs of the self-normalizing network on one cycle; its test accuracy with the
# dropout off, and as the mean of a hundred predictions with it on.


# %%
def alpha_mlp():
    """The self-normalizing preset with its alpha dropout."""
    return mlp(preset="self_normalizing", dropout="alpha")


alpha_peak = found_rates(alpha_mlp).one_cycle
runs = train(
    lambda: ready(alpha_mlp(), alpha_peak),
    data,
    epochs=epochs(20),
    callbacks=lambda: [kt.callbacks.OneCycle(alpha_peak)],
)
sampled = [
    kt.uncertainty.mc_predict(
        run.model, data.x_test, num_samples=100, batch_size=500, seed=0
    ).mean
    for run in runs
]
alpha = Table()
alpha.add("alpha dropout, validation", runs, epochs(20), "87.6")
alpha.add(
    "alpha dropout, test",
    [run.model.evaluate(*data.test, verbose=0)[1] for run in runs],
    epochs(20),
    "86.39",
)
alpha.add(
    "MC x100, test",
    [np.mean(mean.argmax(axis=-1) == data.y_test) for mean in sampled],
    epochs(20),
    "86.61",
)
alpha

# %% [markdown]
# The mean of a hundred predictions is as accurate as one without dropout, not more. It
# is useful for the uncertainty: see the [notebook about it](04_uncertainty.ipynb).
#
# ## Transfer
#
# Model A learns eight of the classes; the task is to tell the other two, sandals from
# shirts, from 200 images. The book reports an error that drops from 2.9% to 0.7% thanks
# to A's layers, and admits that it tried many splits until one looked good. Here are
# five draws of the 200 images and of the initial weights, all shown; the accuracy
# is that on the 2,000 test images of the two classes.

# %%
PAIR = (5, 6)  # sandal, shirt
DRAWS = range(1 if QUICK else 5)


def only(x, y, classes):
    """The images of some classes, labelled from 0."""
    keep = np.isin(y, classes)
    return x[keep], np.searchsorted(classes, y[keep])


others = [label for label in range(10) if label not in PAIR]
task_a = replace(
    data,
    x_train=only(*data.train, others)[0],
    y_train=only(*data.train, others)[1],
    x_val=only(*data.validation, others)[0],
    y_val=only(*data.validation, others)[1],
    class_names=tuple(data.class_names[label] for label in others),
)
x_test, y_test = only(*data.test, PAIR)
x_pair, y_pair = only(*data.train, PAIR)


def build_a():
    """The network for the eight classes."""
    return ready(kt.models.build_mlp(task_a.input_shape, 8), rate)


def for_the_task(model):
    """Compiled for two classes."""
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        "binary_crossentropy",
        metrics=["accuracy"],
    )
    return model


ways = {"from scratch": [], "A's layers, frozen": [], "A's layers, fine-tuned": []}
for draw in DRAWS:
    (run,) = train(
        build_a,
        task_a,
        epochs=epochs(5),
        callbacks=SCHEDULES["1cycle"][0],
        seeds=[draw],
    )
    rows = np.random.default_rng(draw).permutation(len(x_pair))[:200]
    x, y = x_pair[rows], y_pair[rows]
    few = {"batch_size": 20, "verbose": 0}

    scratch = for_the_task(kt.transfer.replace_head(mlp(), 1, "sigmoid"))
    scratch.fit(x, y, epochs=epochs(20), callbacks=[kt.callbacks.OneCycle(0.02)], **few)

    frozen = kt.transfer.replace_head(run.model, 1, "sigmoid")
    kt.transfer.freeze(frozen, until=-1)
    for_the_task(frozen)
    frozen.fit(x, y, epochs=epochs(20), callbacks=[kt.callbacks.OneCycle(0.02)], **few)

    tuned = for_the_task(kt.transfer.replace_head(run.model, 1, "sigmoid"))
    kt.transfer.fine_tune(
        tuned,
        x,
        y,
        freeze_epochs=epochs(4),
        epochs=epochs(16),
        learning_rate=0.02,
        **few,
    )
    for name, model in zip(ways, (scratch, frozen, tuned), strict=True):
        ways[name].append(model.evaluate(x_test, y_test, verbose=0)[1])

transfer = Table(over="draws")
for name, scores in ways.items():
    published = {"from scratch": "97.1", "A's layers, fine-tuned": "99.3"}.get(name, "")
    transfer.add(name, scores, epochs(20), published)
transfer

# %% [markdown]
# A's layers help by half a point, not by two: a network from scratch is better than
# the book's, perhaps thanks to the cycle.
#
# ### Pretraining without labels
#
# All the images and 500 of their labels: a denoising autoencoder trains the hidden
# layers on the images, then the labels fine-tune them. (A related task with labels, as
# A's above, is pretraining too, with the same calls.)

# %%
pretrained = {"from scratch": [], "denoising autoencoder first": []}
for seed in SEEDS:
    rows = np.random.default_rng(seed).permutation(len(data.x_train))[:500]
    x, y = data.x_train[rows], data.y_train[rows]
    for name, scores in pretrained.items():
        keras.utils.set_random_seed(seed)
        model = mlp()
        if name != "from scratch":
            encoder = kt.transfer.replace_head(model, keras.layers.Identity())
            kt.transfer.pretrain_autoencoder(
                encoder,
                data.x_train,
                noise=0.3,
                epochs=epochs(5),
                batch_size=128,
                verbose=0,
            )
            model = kt.transfer.replace_head(encoder, keras.layers.Dense(10, "softmax"))
        ready(model, rate)
        if name == "from scratch":
            cycle = kt.callbacks.OneCycle(peak)
            model.fit(x, y, epochs=epochs(20), callbacks=[cycle], verbose=0)
        else:
            kt.transfer.fine_tune(
                model,
                x,
                y,
                freeze_epochs=epochs(4),
                epochs=epochs(16),
                lr_mult=10,
                learning_rate=peak,
                verbose=0,
            )
        scores.append(model.evaluate(*data.validation, verbose=0)[1])
table = Table()
for name, scores in pretrained.items():
    table.add(f"500 labels, {name}", scores, epochs(20))
table

# %% [markdown]
# With these 500 labels it gains nothing: a cycle from scratch does as well.
