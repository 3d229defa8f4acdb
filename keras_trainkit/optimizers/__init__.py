"""Keras's optimizers with scheduled momentum, and with a learning rate per layer.

The momentum schedule is evaluated in the compiled step at the number of batches seen,
as Keras does for the learning rate. With a constant momentum, each class matches
Keras's own bit for bit.
"""

from keras_trainkit.optimizers._layerwise import layerwise as layerwise
from keras_trainkit.optimizers._momentum import SGD as SGD
from keras_trainkit.optimizers._momentum import Adam as Adam
from keras_trainkit.optimizers._momentum import AdamW as AdamW
from keras_trainkit.optimizers._momentum import Nadam as Nadam
