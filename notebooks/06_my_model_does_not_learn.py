# %% [markdown]
# # My model does not learn
#
# Four networks for Fashion-MNIST that do not learn as they should. For each,
# `kt.diagnostics.check_up` says what is wrong and what to do. The remedies are applied,
# and the trainings before and after are compared over three seeds.
#
# To run it: `python notebooks/build.py 06`, on any backend.

# %%
import warnings

import keras
import matplotlib.pyplot as plt
import numpy as np
from experiments import SEEDS, conditions, epochs, load, mean_and_spread

import keras_trainkit as kt

data = load("fashion_mnist", validation=5000)
x, y = data.x_train[:10000], data.y_train[:10000]
validation = data.x_val[:2000], data.y_val[:2000]
print(conditions())


# %%
def network(activation="softmax", hidden="relu"):
    """Two hidden layers."""
    return keras.Sequential(
        [
            keras.Input(data.input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(300, activation=hidden, name="first"),
            keras.layers.Dense(100, activation=hidden, name="second"),
            keras.layers.Dense(data.num_classes, activation=activation, name="output"),
        ]
    )


def compiled(model, optimizer, **loss_options):
    """The model, compiled for integer labels."""
    loss = keras.losses.SparseCategoricalCrossentropy(**loss_options)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


# %% [markdown]
# ## The output has no softmax, but the loss expects one
#
# The last layer gives logits, while the loss expects probabilities unless
# `from_logits=True` is set. Nothing raises an error.

# %%
keras.utils.set_random_seed(0)
no_softmax = compiled(network(activation=None), "adam")
found = kt.diagnostics.check_up(no_softmax, x, y, validation)
found

# %% [markdown]
# The first finding is the cause. Each has the figures that show it, and a remedy to
# paste.

# %%
first = found.findings[0]
print(first.kind, "|", first.where)
print(first.evidence)
print(first.remedy)

# %% [markdown]
# ## The pixels are numbers up to 255

# %%
pixels = 255 * x
raw = compiled(network(), keras.optimizers.SGD(0.1, momentum=0.9))
found = kt.diagnostics.check_up(raw, pixels, y, (255 * validation[0], validation[1]))
found

# %% [markdown]
# ## The learning rate is far too high

# %%
fast = compiled(network(), keras.optimizers.Adam(0.3))
found = kt.diagnostics.check_up(fast, x, y, validation)
found

# %% [markdown]
# ## Sigmoids that start saturated

# %%
wide = network(hidden="sigmoid")
for layer in wide.layers[1:3]:
    layer.kernel.assign(30 * layer.kernel)
saturated = compiled(wide, "adam")
found = kt.diagnostics.check_up(saturated, x, y, validation)
found

# %% [markdown]
# ## A network with nothing wrong

# %%
healthy = compiled(network(), "adam")
found = kt.diagnostics.check_up(healthy, x, y, validation)
print(found)
print("healthy:", found.healthy)


# %% [markdown]
# ## Before and after
#
# The remedies, applied by hand as the findings say: a softmax, a `Normalization` layer,
# the rate that `find_lr` suggests, and fresh weights. For the raw pixels there were two
# findings, and both remedies are applied.


# %%
def with_found_rate():
    """The network with the rate of a range test."""
    model = compiled(network(), "adam")
    model.optimizer.learning_rate = kt.find_lr(model, x, y).suggestion
    return model


def standardized():
    """The network behind a layer that standardizes, with the rate of a range test."""
    scale = keras.layers.Normalization()
    scale.adapt(pixels)
    model = compiled(keras.Sequential([scale, *network().layers]), momentum())
    model.build((None, *data.input_shape))
    model.optimizer.learning_rate = kt.find_lr(model, pixels, y).suggestion
    return model


def saturated_network():
    """Sigmoid layers whose kernels are thirty times too large."""
    model = network(hidden="sigmoid")
    for layer in model.layers[1:3]:
        layer.kernel.assign(30 * layer.kernel)
    return compiled(model, "adam")


def momentum():
    """The optimizer of the second network."""
    return keras.optimizers.SGD(0.1, momentum=0.9)


CASES = {
    "no softmax": (
        (lambda: compiled(network(activation=None), "adam"), 1),
        (lambda: compiled(network(), "adam"), 1),
    ),
    "raw pixels": (
        (lambda: compiled(network(), momentum()), 255),
        (standardized, 255),
    ),
    "rate of 0.3": (
        (lambda: compiled(network(), keras.optimizers.Adam(0.3)), 1),
        (with_found_rate, 1),
    ),
    "saturated": (
        (saturated_network, 1),
        (lambda: compiled(network(hidden="sigmoid"), "adam"), 1),
    ),
}


def accuracies(make, scale):
    """Validation accuracy after a short training, for each seed."""
    scores = []
    for seed in SEEDS:
        keras.utils.set_random_seed(seed)
        model = make()
        model.fit(scale * x, y, batch_size=64, epochs=epochs(3), verbose=0)
        scaled = scale * validation[0], validation[1]
        scores.append(model.evaluate(*scaled, verbose=0)[1])
    return scores


print(f"{'':14s}{'before':>14s}{'after':>14s}")
results = {}
for name, pair in CASES.items():
    results[name] = [accuracies(*one) for one in pair]
    before, after = map(mean_and_spread, results[name])
    print(f"{name:14s}{before:>14s}{after:>14s}")

# %%
places = np.arange(len(results))
for k, label in enumerate(("before", "after")):
    means = [100 * np.mean(scores[k]) for scores in results.values()]
    plt.bar(places + 0.4 * k - 0.2, means, 0.4, label=label)
plt.xticks(places, results)
plt.ylabel("validation accuracy, %")
plt.legend(loc="lower right")
plt.gcf().set_size_inches(7, 3.5)

# %% [markdown]
# ## During training
#
# `kt.callbacks.Monitor` watches a `fit`, warns once for each kind of finding, and keeps
# the batch in which the loss became NaN. Here one row has a missing value.

# %%
broken = x.copy()
broken[300, 3, 3] = np.nan
model = compiled(network(), "adam")
monitor = kt.callbacks.Monitor(stop=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    model.fit(monitor.watch(broken, y), epochs=1, callbacks=[monitor], verbose=0)
x_bad, y_bad = monitor.bad_batch
print("step", monitor.bad_step, "in layer", monitor.bad_layer)
print("rows with NaN in that batch:", int(np.isnan(x_bad).any(axis=(1, 2, 3)).sum()))
