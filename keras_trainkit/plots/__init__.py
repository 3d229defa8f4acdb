"""Figures: each function takes a result and returns matplotlib Axes."""

from keras_trainkit.plots._training import learning_curves as learning_curves
from keras_trainkit.plots._training import schedule as schedule
from keras_trainkit.plots._training import variants as variants
