"""The command `keras-trainkit`."""

from keras_trainkit.cli._command import main as main
