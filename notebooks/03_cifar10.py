# %% [markdown]
# # CIFAR-10: a deep network without convolutions, and a ResNet
#
# The exercise of chapter 11 of *Hands-On Machine Learning* (A. Géron, 2nd ed., 2019):
# twenty hidden layers of a hundred units on CIFAR-10, with He and ELU, then with batch
# normalization, SELU, alpha dropout, MC dropout and 1cycle. Each network is trained at
# its own rate, the best of a few about the one that the learning-rate finder suggests,
# next to each result is the one published in the book's solution. Where two figures are
# published, the second is from another edition or revision: 50.3 for SELU is the third
# edition's, and 52.8 for one cycle is from a revision of 2020.
#
# The images of this run had been re-encoded as JPEG on their way; those of
# `keras.datasets` are the originals.
#
# To run it: `python notebooks/build.py 03`; a small network trains fastest on JAX.

# %%
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import subprocess
import sys

import keras
import matplotlib.pyplot as plt
import numpy as np
from experiments import QUICK, SEEDS, Table, epochs, load, train
from keras.optimizers import Nadam

import keras_trainkit as kt

data = load("cifar10", validation=5000)
HIDDEN = [100] * (3 if QUICK else 20)
data

# %% [markdown]
# ## The networks
#
# `build_mlp` makes all of them: the default preset is He with ELU, `self_normalizing`
# is LeCun with SELU. As in the book, batch normalization follows the input and precedes
# each activation, and alpha dropout only before the last layer.


# %%
def build(preset="default", alpha_dropout=0.0, flip=False, **overrides):
    """Twenty layers of a hundred units."""
    plain = kt.models.build_mlp(
        data.input_shape, data.num_classes, preset, hidden_units=HIDDEN, **overrides
    )
    flatten, *body, top = plain.layers
    if overrides.get("normalization"):
        body.insert(0, keras.layers.BatchNormalization())
    body.insert(0, flatten)
    if flip:
        body.insert(0, keras.layers.RandomFlip("horizontal"))
    if alpha_dropout:
        body.append(keras.layers.AlphaDropout(alpha_dropout))
    return keras.Sequential([keras.Input(data.input_shape), *body, top])


def compiled(rate, **options):
    """One of them, ready for `fit`."""
    model = build(**options)
    model.compile(
        Nadam(rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=8,
    )
    return model


NETWORKS = {
    "He + ELU": {"normalization": None},
    "He + ELU + BN": {"normalization": "batch", "normalize_first": True},
    "LeCun + SELU": {"preset": "self_normalizing"},
    "LeCun + SELU + alpha dropout": {
        "preset": "self_normalizing",
        "alpha_dropout": 0.1,
    },
}

# %% [markdown]
# ## The rates
#
# A range test of a few hundred steps for each network, with the batches of 32 that the
# book trains with.

# %%
found = {}
figure, axes = plt.subplots(1, 4, figsize=(13, 2.8), sharey=True)
for axis, (name, options) in zip(axes, NETWORKS.items(), strict=True):
    keras.utils.set_random_seed(0)
    found[name] = kt.find_lr(compiled(1e-3, **options), *data.train, batch_size=32)
    kt.plots.lr_finder(found[name], ax=axis)
    axis.set_title(f"{name}: {found[name].suggestion:.1e}", fontsize=9)
    axis.get_legend().remove()
figure.tight_layout()

# %% [markdown]
# A range test sees only the first few hundred steps; which rate is best in the long
# run, trainings show. Each network is trained on one seed, as below, at the finder's
# `suggestion`, at a quarter and half of it, and at twice and four times as much.


# %%
def constant_rate(options, rate, epochs, seeds=SEEDS):
    """Train until twenty epochs in a row bring no lower validation loss."""
    return train(
        lambda: compiled(rate, **options),
        data,
        epochs=epochs,
        batch_size=32,
        callbacks=lambda: [
            keras.callbacks.EarlyStopping(patience=20, restore_best_weights=True)
        ],
        seeds=seeds,
    )


def best_rate(rates, accuracy):
    """The rate with the best `accuracy(rate)`, all of which are printed."""
    scores = [accuracy(rate) for rate in rates]
    tried = zip(rates, scores, strict=True)
    print(", ".join(f"{rate:.1e}: {100 * score:.1f}%" for rate, score in tried))
    return rates[int(np.argmax(scores))]


PUBLISHED = {
    "He + ELU": (47, "47.6"),
    "He + ELU + BN": (49, "54.0"),
    "LeCun + SELU": (34, "47.9 or 50.3"),
    "LeCun + SELU + alpha dropout": (34, "48.9"),
}
rates = {}
for name, (most, _) in PUBLISHED.items():
    print(name, end="  ")
    rates[name] = best_rate(
        [found[name].suggestion * factor for factor in (0.25, 0.5, 1, 2, 4)],
        lambda rate, name=name, most=most: (
            constant_rate(NETWORKS[name], rate, epochs(most), seeds=(0,))[0].best
        ),
    )

# %% [markdown]
# ## At a constant rate
#
# As in the book: Nadam, and early stopping after twenty epochs without a lower
# validation loss, which keeps the weights of the lowest; at most as many epochs as the
# book took.

# %%
table = Table("published")
runs = {}
for name, (most, published) in PUBLISHED.items():
    runs[name] = constant_rate(NETWORKS[name], rates[name], epochs(most))
    took = [len(run.history["loss"]) for run in runs[name]]
    table.add(
        name,
        [run.best for run in runs[name]],
        f"{min(took)}-{max(took)} of {most}",
        published,
    )
table

# %% [markdown]
# Batch normalization is 1.1 points below the published figure. SELU is above the second
# edition's figure (47.9) and 1.8 points below the third's (50.3). The others are above
# theirs. The reasons are not proved: the images are re-encoded JPEGs, which may cost a
# little, and the book's figures are of a single training, where these are the mean of
# three. On one cycle, below, the same network has 54.0%, in fifteen epochs instead of
# 49.
#
# ## MC dropout
#
# The networks with alpha dropout again, not trained any further: the mean of a hundred
# predictions with the dropout on.

# %%
mc = Table("published")
plain, sampled = [], []
for run in runs["LeCun + SELU + alpha dropout"]:
    plain.append(run.model.evaluate(*data.validation, verbose=0)[1])
    prediction = kt.uncertainty.mc_predict(
        run.model, data.x_val, num_samples=100, batch_size=500, seed=0
    )
    sampled.append(np.mean(prediction.mean.argmax(axis=-1) == data.y_val))
mc.add("alpha dropout, off", plain, "none", "48.9")
mc.add("alpha dropout, MC x100", sampled, "none", "48.9")
mc

# %% [markdown]
# ## One cycle
#
# Fifteen epochs with batches of 128. The peak of the cycle is chosen among the finder's
# `one_cycle` for these batches and twice, four and eight times as much, by cycles of
# five epochs, on one seed; the results are on all.


# %%
def one_cycle(options, rate, epochs, seeds=SEEDS):
    """Train on one cycle."""
    return train(
        lambda: compiled(rate, **options),
        data,
        epochs=epochs,
        callbacks=lambda: [kt.callbacks.OneCycle(rate)],
        seeds=seeds,
    )


def peak(options):
    """The best peak of a short cycle, from the one that the finder suggests up."""
    keras.utils.set_random_seed(0)
    model = compiled(1e-3, **options)
    start = kt.find_lr(model, *data.train, batch_size=128).one_cycle
    return best_rate(
        [start * factor for factor in (1, 2, 4, 8)],
        lambda rate: one_cycle(options, rate, epochs(5), seeds=(0,))[0].score,
    )


cycles = Table("published")
for name, options in NETWORKS.items():
    runs[name, "1cycle"] = one_cycle(options, peak(options), epochs(15))
    published = "52.0 or 52.8" if "alpha" in name else ""
    cycles.add(f"{name}, 1cycle", runs[name, "1cycle"], epochs(15), published)

# %% [markdown]
# What remains is overfitting. Against it: the images flipped at random, a little
# dropout, and the longer cycle that these make worthwhile.

# %%
augmented = {
    "normalization": "batch",
    "normalize_first": True,
    "dropout": "dropout",
    "dropout_rate": 0.05,
    "flip": True,
}
runs["flips"] = one_cycle(augmented, peak(augmented), epochs(40))
cycles.add("He + ELU + BN, flips, dropout, 1cycle", runs["flips"], epochs(40))
cycles

# %% [markdown]
# Each network is at or above what is published for it at a constant rate (47.6, 54.0,
# 47.9 or 50.3, and 48.9, after up to 49 epochs), in fifteen epochs. One cycle with
# alpha dropout (52.4) is above the book's 52.0 and below the published one of the
# revision of 2020 (52.8).

# %%
figure, axis = plt.subplots(figsize=(7, 3.2))
for name, label in {
    "He + ELU + BN": "constant rate",
    ("He + ELU + BN", "1cycle"): "one cycle",
    "flips": "one cycle, flips and dropout",
}.items():
    for number, run in enumerate(runs[name]):
        accuracy = run.history["val_accuracy"]
        color = {"constant rate": "C0", "one cycle": "C1"}.get(label, "C2")
        axis.plot(
            np.arange(1, len(accuracy) + 1),
            accuracy,
            color=color,
            label=None if number else label,
        )
axis.set(xlabel="epoch", ylabel="validation accuracy", title="He + ELU + BN")
axis.legend()
figure.tight_layout()

# %% [markdown]
# On the test set, on which nothing was chosen:

# %%
final = Table("published (validation)")
for name, label, published in (
    ("He + ELU + BN", "He + ELU + BN, constant rate", "54.0"),
    (("He + ELU + BN", "1cycle"), "He + ELU + BN, 1cycle", "52.0 or 52.8 (SELU)"),
    ("flips", "He + ELU + BN, flips, dropout, 1cycle", ""),
):
    scores = [run.model.evaluate(*data.test, verbose=0)[1] for run in runs[name]]
    final.add(label, scores, len(runs[name][0].history["loss"]), published)
final

# %% [markdown]
# ## ResNet-20
#
# Convolutions suit these images better. `cifar10_resnet.py` trains the ResNets of He
# et al. (2015) with flips and shifts, on one cycle or on the piecewise schedule of the
# paper; on a CPU there is only time for a few epochs of the smallest.
# (This CPU was busy with other things, too, so its times mean nothing.)

# %%
command = [sys.executable, "cifar10_resnet.py", "--depth", "8" if QUICK else "20"]
command += ["--epochs", "10", "--seeds", *map(str, SEEDS)]
environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
result = subprocess.run(
    command, env=environment, capture_output=True, text=True, check=True
)
print(result.stdout)

# %% [markdown]
# ### ResNet-56, on a GPU
#
# Smith (2018) reports 91.9% for ResNet-56 after a cycle of 100 epochs, against 90.3%
# after 800 epochs of the piecewise schedule. The same comparison is a matter of two
# commands on a machine with a GPU; there was none for this notebook, so it is **not
# run**:
#
# | | epochs | test accuracy, % | published | ran on |
# |---|---|---|---|---|
# | `python cifar10_resnet.py --depth 56 --epochs 100` | 100 | not run | 91.9 | |
# | `… --depth 56 --epochs 800 --schedule piecewise` | 800 | not run | 90.3 | |
