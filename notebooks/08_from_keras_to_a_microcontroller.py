# %% [markdown]
# # From Keras to a microcontroller
#
# A convolutional network for Fashion-MNIST is compressed to 20 kB, gets int8 inputs and
# outputs, and becomes a C header for LiteRT for Microcontrollers.
#
# To run it: `python notebooks/build.py 08`; the files are made on TensorFlow.

# %%
import tempfile
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
from experiments import QUICK, conditions, epochs, load
from keras import layers

import keras_trainkit as kt

keras.utils.set_random_seed(0)
data = load("fashion_mnist", validation=5000)
x, y = data.x_train[:10000], data.y_train[:10000]
folder = Path(tempfile.mkdtemp())
print(conditions())

# %% [markdown]
# ## A network that is too large
#
# Microcontrollers have a few hundred kB of flash and less memory.

# %%
model = keras.Sequential(
    [
        keras.Input(data.input_shape),
        layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Conv2D(64, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.GlobalAveragePooling2D(),
        layers.Dense(data.num_classes, activation="softmax"),
    ]
)
kt.models.PRESETS["default"].compile(model)
cycle = kt.callbacks.OneCycle("auto")
model.fit(x, y, batch_size=64, epochs=epochs(6), callbacks=[cycle], verbose=0)
accuracy = model.evaluate(*data.test, verbose=0)[1]
print(f"peak rate {cycle.max_lr:.2g}, test accuracy {accuracy:.3f}")
print(f"{4 * model.count_params() / 1000:.0f} kB as float32")

# %% [markdown]
# ## Compress to a budget
#
# `compress` folds, cuts channels where it costs least, trains after each cut, and
# quantizes, until the file is small enough. The validation data are used once, for the
# verdict.

# %%
result = kt.compress(
    model,
    x,
    y,
    validation_data=(data.x_val, data.y_val),
    max_bytes=20_000 if not QUICK else 30_000,
    path=folder / "small.tflite",
    epochs=epochs(2),
    progress=False,
)
result

# %%
kt.plots.front(result)
plt.gcf().set_size_inches(7, 3.5)

# %% [markdown]
# ## int8 in, int8 out
#
# The file of `compress` takes float32 images. Here is one of the same model without
# any float: it takes the camera's bytes without conversion to float.

# %%
small = kt.export.optimize_for_inference(result.model)
file = kt.export.to_litert(
    small,
    folder / "int8.tflite",
    quantization="int8",
    representative_data=x[:200],
    io_dtype="int8",
)
details = kt.export.load_litert(file)
(entry,), (exit_,) = details.get_input_details(), details.get_output_details()
print(entry["dtype"].__name__, entry["quantization"])
print(exit_["dtype"].__name__, exit_["quantization"])

# %%
scale, zero = entry["quantization"]
images = np.clip(np.round(data.x_test / scale) + zero, -128, 127).astype("int8")
outputs = kt.export.predict_litert(file, images)
print(f"test accuracy {np.mean(outputs.argmax(-1) == data.y_test):.3f}")
print(f"{file.stat().st_size / 1000:.1f} kB")

# %% [markdown]
# ## A C header
#
# The first lines say how much memory the tensors need.

# %%
header = kt.export.to_c_array(file, folder / "fashion.h")
lines = header.read_text().splitlines()
print("\n".join(lines[:11]))
print("…")
print("\n".join(lines[-4:]))

# %% [markdown]
# In the program, with LiteRT for Microcontrollers:
#
# ```cpp
# #include "fashion.h"
# const tflite::Model* model = tflite::GetModel(fashion);
# ```
#
# The same from the shell: `keras-trainkit compress model.keras --data train.npz
# --validation val.npz --max-kb 20 --c-array -o model.tflite`.
