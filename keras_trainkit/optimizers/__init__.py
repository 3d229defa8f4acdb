"""Optimizers: Keras's, where the momentum may be a schedule.

The schedule is evaluated in the compiled step on the count of batches, as Keras does
with the learning rate. With a constant each class is Keras's own, bit for bit.
"""

from keras_trainkit.optimizers._momentum import SGD as SGD
from keras_trainkit.optimizers._momentum import Adam as Adam
from keras_trainkit.optimizers._momentum import AdamW as AdamW
from keras_trainkit.optimizers._momentum import Nadam as Nadam
