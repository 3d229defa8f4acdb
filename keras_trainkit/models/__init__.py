"""Ready-made networks that train well, to use or to copy."""

from keras_trainkit.models._cifar_resnet import build_cifar_resnet as build_cifar_resnet
from keras_trainkit.models._hypermodel import hypermodel as hypermodel
from keras_trainkit.models._mlp import build_mlp as build_mlp
from keras_trainkit.models._presets import PRESETS as PRESETS
from keras_trainkit.models._presets import Preset as Preset
