# %% [markdown]
# # Fine-tune a KerasHub backbone
#
# A KerasHub ResNet is pretrained on five classes of Fashion-MNIST and fine-tuned for
# the other five with few labels: a new head, a frozen body, a lower rate for the
# body. The pretraining stands in for a preset, which needs a download:
#
# ```python
# backbone = keras_hub.models.Backbone.from_preset("resnet_18_imagenet")
# ```
#
# To run it: `pip install -e ".[notebooks,hub]" && python notebooks/build.py 07`.

# %%
import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np
from experiments import SEEDS, conditions, epochs, load, mean_and_spread

import keras_trainkit as kt

data = load("fashion_mnist", validation=5000)
print(conditions())

OLD = (0, 1, 2, 3, 4)
NEW = (5, 6, 7, 8, 9)


def part(x, y, classes, rows):
    """The first rows of some classes, with labels from 0."""
    chosen = np.flatnonzero(np.isin(y, classes))[:rows]
    return x[chosen], np.searchsorted(classes, y[chosen]).astype("int32")


source = part(data.x_train, data.y_train, OLD, 8000)
target = part(data.x_train, data.y_train, NEW, 200)
test = part(data.x_test, data.y_test, NEW, 2000)
print([len(y) for _, y in (source, target, test)], "rows")


# %% [markdown]
# ## A backbone from KerasHub
#
# Any backbone works, as does any Keras model. This one is small, for images of 28 x 28.


# %%
def backbone():
    """A ResNet of two stages."""
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 128],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=data.input_shape,
    )


def with_head(body, units):
    """The backbone under a classifier."""
    x = keras.layers.GlobalAveragePooling2D()(body.output)
    head = keras.layers.Dense(units, activation="softmax", name="head")
    return keras.Model(body.input, head(x))


def compiled(model, rate=1e-3):
    """The model, compiled."""
    optimizer = keras.optimizers.Adam(rate)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


keras.utils.set_random_seed(0)
pretrained = compiled(with_head(backbone(), len(OLD)))
pretrained.fit(
    *source,
    batch_size=64,
    epochs=epochs(3),
    callbacks=[kt.callbacks.OneCycle(3e-3)],
    verbose=0,
)
print(f"on the old classes: {pretrained.evaluate(*source, verbose=0)[1]:.3f}")

# %% [markdown]
# ## A new head
#
# `replace_head` copies the model up to its last layer, with weights and BatchNorm
# statistics, and puts a new head on it. The old model is not changed.

# %%
model = kt.transfer.replace_head(pretrained, len(NEW), activation="softmax")
frozen = kt.transfer.freeze(model, until=-1)
print(len(frozen), "layers frozen,", len(model.trainable_variables), "variables train")

# %% [markdown]
# A range test of the head alone. (`kt.transfer.fine_tune` trains the head first and
# then everything, in one call.)

# %%
model = kt.transfer.replace_head(pretrained, len(NEW), activation="softmax")
compiled(model)
kt.transfer.freeze(model, until=-1)
found = kt.find_lr(model, *target, batch_size=16)
print(found)
kt.plots.lr_finder(found)
plt.gcf().set_size_inches(7, 3.5)


# %% [markdown]
# ## Four ways, over three seeds
#
# Each has 200 labelled images and the same number of epochs. Pretraining gains less
# than a point here, where source and target are alike and small; a body that stays
# frozen costs about 17 points.


# %%
def from_scratch():
    """Without pretraining."""
    model = compiled(with_head(backbone(), len(NEW)))
    fit(model, [kt.callbacks.OneCycle(3e-3)])
    return model


def head_alone():
    """The body frozen."""
    model = compiled(kt.transfer.replace_head(pretrained, len(NEW), "softmax"))
    kt.transfer.freeze(model, until=-1)
    fit(model, [kt.callbacks.OneCycle(1e-2)])
    return model


def all_at_once():
    """Everything at the same rate."""
    model = compiled(kt.transfer.replace_head(pretrained, len(NEW), "softmax"))
    fit(model, [kt.callbacks.OneCycle(3e-3)])
    return model


def layer_by_layer():
    """The body at a tenth of the head's rate."""
    model = kt.transfer.replace_head(pretrained, len(NEW), "softmax")
    head = model.layers[-1].name
    rates = {head: 1.0, f"(?!{head}$).*": 0.1}
    optimizer = kt.optimizers.layerwise(keras.optimizers.Adam(1e-2), rates)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    fit(model, [kt.callbacks.OneCycle(1e-2)])
    return model


def fit(model, callbacks):
    """Train on the few labels."""
    total = epochs(12)
    model.fit(*target, batch_size=16, epochs=total, callbacks=callbacks, verbose=0)


ways = (from_scratch, head_alone, all_at_once, layer_by_layer)
scores = {}
for way in ways:
    scores[way.__doc__] = []
    for seed in SEEDS:
        keras.utils.set_random_seed(seed)
        scores[way.__doc__].append(way().evaluate(*test, verbose=0)[1])
    print(f"{way.__doc__:60s} {mean_and_spread(scores[way.__doc__])} %")

# %% [markdown]
# ## And further
#
# The fine-tuned network is a plain Keras model: its BatchNorms can be folded, and it
# can be exported to a file.

# %%
model = layer_by_layer()
print(kt.folding.fold_batch_norm(model))
print("FLOPs for an image:", kt.flops(model))
