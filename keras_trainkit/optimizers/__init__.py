"""Optimizers: Keras's, with scheduled momentum and with a rate for each layer.

The schedule of the momentum is evaluated in the compiled step on the count of batches,
as Keras does with the learning rate. With a constant each class is Keras's own, bit for
bit.
"""

from keras_trainkit.optimizers._layerwise import layerwise as layerwise
from keras_trainkit.optimizers._momentum import SGD as SGD
from keras_trainkit.optimizers._momentum import Adam as Adam
from keras_trainkit.optimizers._momentum import AdamW as AdamW
from keras_trainkit.optimizers._momentum import Nadam as Nadam
