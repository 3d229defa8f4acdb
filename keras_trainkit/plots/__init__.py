"""Figures: each function takes a result and returns matplotlib Axes."""

from keras_trainkit.plots._lr_finder import (
    compare_learning_rates as compare_learning_rates,
)
from keras_trainkit.plots._lr_finder import lr_finder as lr_finder
from keras_trainkit.plots._mistakes import confusion_matrix as confusion_matrix
from keras_trainkit.plots._mistakes import top_losses as top_losses
from keras_trainkit.plots._signal import signal as signal
from keras_trainkit.plots._training import compare as compare
from keras_trainkit.plots._training import front as front
from keras_trainkit.plots._training import learning_curves as learning_curves
from keras_trainkit.plots._training import schedule as schedule
from keras_trainkit.plots._training import variants as variants
from keras_trainkit.plots._uncertainty import intervals as intervals
from keras_trainkit.plots._uncertainty import regression_band as regression_band
from keras_trainkit.plots._uncertainty import reliability as reliability
from keras_trainkit.plots._uncertainty import set_sizes as set_sizes
from keras_trainkit.plots._uncertainty import uncertain_images as uncertain_images
