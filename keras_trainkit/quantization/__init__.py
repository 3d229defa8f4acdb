"""Quantization-aware training and weight clustering."""

from keras_trainkit.quantization._clustering import Clustering as Clustering
from keras_trainkit.quantization._quantize_aware import kept_float as kept_float
from keras_trainkit.quantization._quantize_aware import quantize_aware as quantize_aware
from keras_trainkit.quantization._quantize_aware import strip as strip
