"""The `keras-trainkit` command."""

from keras_trainkit.cli._command import main as main
