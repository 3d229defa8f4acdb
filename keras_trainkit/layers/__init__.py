"""Layers that Keras does not have."""

from keras_trainkit.layers._crelu import CReLU as CReLU
from keras_trainkit.layers._local_response_normalization import (
    LocalResponseNormalization as LocalResponseNormalization,
)
from keras_trainkit.layers._mc_dropout import MCAlphaDropout as MCAlphaDropout
from keras_trainkit.layers._mc_dropout import MCDropout as MCDropout
from keras_trainkit.layers._mc_dropout import MCGaussianDropout as MCGaussianDropout
from keras_trainkit.layers._mc_dropout import MCSpatialDropout1D as MCSpatialDropout1D
from keras_trainkit.layers._mc_dropout import MCSpatialDropout2D as MCSpatialDropout2D
from keras_trainkit.layers._mc_dropout import MCSpatialDropout3D as MCSpatialDropout3D
from keras_trainkit.layers._mc_layers import MCGRU as MCGRU
from keras_trainkit.layers._mc_layers import MCLSTM as MCLSTM
from keras_trainkit.layers._mc_layers import MCAdditiveAttention as MCAdditiveAttention
from keras_trainkit.layers._mc_layers import MCAttention as MCAttention
from keras_trainkit.layers._mc_layers import MCConvLSTM1D as MCConvLSTM1D
from keras_trainkit.layers._mc_layers import MCConvLSTM2D as MCConvLSTM2D
from keras_trainkit.layers._mc_layers import MCConvLSTM3D as MCConvLSTM3D
from keras_trainkit.layers._mc_layers import (
    MCMultiHeadAttention as MCMultiHeadAttention,
)
from keras_trainkit.layers._mc_layers import MCSimpleRNN as MCSimpleRNN
from keras_trainkit.layers._rrelu import RReLU as RReLU
from keras_trainkit.layers._weight_normalization import (
    WeightNormalization as WeightNormalization,
)
