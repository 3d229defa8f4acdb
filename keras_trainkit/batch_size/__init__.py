"""Find the batch size from the gradient noise and the time of a step."""

from keras_trainkit.batch_size._find import BatchSizeResult as BatchSizeResult
from keras_trainkit.batch_size._find import find_batch_size as find_batch_size
from keras_trainkit.batch_size._noise_scale import (
    GradientNoise as GradientNoise,
)
from keras_trainkit.batch_size._noise_scale import (
    gradient_noise_scale as gradient_noise_scale,
)
