# %% [markdown]
# # From a trained model to a small and fast file
#
# A convolutional network for Fashion-MNIST is optimized for inference, loses half of
# its channels, and is quantized; a report shows what each step gains and what it costs.
#
# To run it: `python notebooks/build.py 05`; files for LiteRT are made and run on
# TensorFlow.

# %%
import tempfile
from pathlib import Path

import keras
import matplotlib.pyplot as plt
from experiments import conditions, epochs, load
from keras import layers

import keras_trainkit as kt

keras.utils.set_random_seed(0)
data = load("fashion_mnist", validation=5000)
x, y = data.x_train[:20000], data.y_train[:20000]
folder = Path(tempfile.mkdtemp())
print(data)
print(conditions())


# %%
def convolutions():
    """Three blocks of convolution, BatchNorm and ReLU, and a head."""
    blocks = [
        layer
        for filters in (32, 64, 64)
        for layer in (
            layers.Conv2D(filters, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
        )
    ]
    head = [
        layers.Flatten(),
        layers.Dropout(0.3),
        layers.Dense(128, activation="relu"),
        layers.Dense(data.num_classes, activation="softmax"),
    ]
    model = keras.Sequential([keras.Input(data.input_shape), *blocks, *head])
    return kt.models.PRESETS["default"].compile(model)


def fit(model, max_lr, number):
    """Train on one cycle."""
    model.fit(
        x,
        y,
        batch_size=64,
        epochs=epochs(number),
        validation_data=data.validation,
        callbacks=[kt.callbacks.OneCycle(max_lr)],
        verbose=0,
    )


model = convolutions()
found = kt.find_lr(model, x, y, batch_size=64)
peak = found.one_cycle
fit(model, peak, 4)
print(
    f"rate {peak:.2g}, validation {model.evaluate(*data.validation, verbose=0)[1]:.3f}"
)

# %% [markdown]
# ## Optimize for inference
#
# What only training needs is removed: each BatchNorm becomes part of the convolution
# before it, dropout disappears, activations move into their layers. The outputs are
# compared with the model's.

# %%
optimized = kt.export.optimize_for_inference(model)
print(kt.folding.fold_batch_norm(model))
print([type(layer).__name__ for layer in model.layers])
print([type(layer).__name__ for layer in optimized.layers])

# %% [markdown]
# ## Cut half of the channels
#
# Zeros among the weights do not make a file faster on common hardware; removing
# channels does. The smaller network is trained for two more epochs.

# %%
result = kt.pruning.prune_channels(model, 0.5)
small = kt.models.PRESETS["default"].compile(result.model)
print(result)
print(f"at once: {small.evaluate(*data.validation, verbose=0)[1]:.3f}")
fit(small, peak / 3, 2)
print(f"after training: {small.evaluate(*data.validation, verbose=0)[1]:.3f}")
small = kt.export.optimize_for_inference(small)

# %% [markdown]
# ## Quantize, and compare
#
# Each file is loaded again and compared with its model before it appears.

# %%
variants = {"trained": model, "optimized": optimized, "half the channels": small}
for name, network, quantization in (
    ("float32", optimized, None),
    ("float16", optimized, "float16"),
    ("int8", optimized, "int8"),
    ("half, int8", small, "int8"),
):
    path = folder / f"{name}.tflite"
    needs_data = {"representative_data": x[:200]} if quantization == "int8" else {}
    kt.export.to_litert(network, path, quantization=quantization, **needs_data)
    variants[f"LiteRT, {name}"] = path
report = kt.export.deployment_report(variants, *data.test, repetitions=epochs(100))
report

# %%
axes = kt.plots.variants(report.measures())
plt.gcf().set_size_inches(11, 4)

# %% [markdown]
# The same from the shell, for a `.keras` file and an `.npz` file with `x` and `y`:
#
# ```bash
# keras-trainkit inspect model.keras
# keras-trainkit deploy model.keras --data val.npz --fold --prune-channels 0.5 \
#     --quantize int8 -o out
# ```
