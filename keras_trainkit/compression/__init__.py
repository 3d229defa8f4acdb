"""Compress a model to a budget of size, latency, FLOPs or accuracy."""

from keras_trainkit.compression._compress import compress as compress
from keras_trainkit.compression._result import Candidate as Candidate
from keras_trainkit.compression._result import CompressResult as CompressResult
