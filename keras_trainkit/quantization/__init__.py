"""Quantization-aware training: models that train as they will run in int8."""

from keras_trainkit.quantization._quantize_aware import kept_float as kept_float
from keras_trainkit.quantization._quantize_aware import quantize_aware as quantize_aware
from keras_trainkit.quantization._quantize_aware import strip as strip
