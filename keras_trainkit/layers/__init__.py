"""Layers that Keras lacks."""

from keras_trainkit.layers._mc_dropout import MCAlphaDropout as MCAlphaDropout
from keras_trainkit.layers._mc_dropout import MCDropout as MCDropout
from keras_trainkit.layers._mc_dropout import MCGaussianDropout as MCGaussianDropout
from keras_trainkit.layers._mc_dropout import MCSpatialDropout1D as MCSpatialDropout1D
from keras_trainkit.layers._mc_dropout import MCSpatialDropout2D as MCSpatialDropout2D
from keras_trainkit.layers._mc_dropout import MCSpatialDropout3D as MCSpatialDropout3D
