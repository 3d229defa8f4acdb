"""Callbacks for `model.fit`."""

from keras_trainkit.callbacks._epoch_schedules import ApplySchedule as ApplySchedule
from keras_trainkit.callbacks._epoch_schedules import (
    ExponentialSchedule as ExponentialSchedule,
)
from keras_trainkit.callbacks._epoch_schedules import (
    PiecewiseConstantSchedule as PiecewiseConstantSchedule,
)
from keras_trainkit.callbacks._epoch_schedules import PowerSchedule as PowerSchedule
from keras_trainkit.callbacks._gradual_unfreezing import (
    GradualUnfreezing as GradualUnfreezing,
)
from keras_trainkit.callbacks._noise_scale import NoiseScale as NoiseScale
from keras_trainkit.callbacks._one_cycle import OneCycle as OneCycle
from keras_trainkit.callbacks._plateau import PlateauSchedule as PlateauSchedule
from keras_trainkit.callbacks._resumable import Resumable as Resumable
from keras_trainkit.callbacks._signal_logger import SignalLogger as SignalLogger
from keras_trainkit.callbacks._snapshots import Snapshots as Snapshots
from keras_trainkit.diagnostics import Monitor as Monitor
from keras_trainkit.lr_finder import LRFinder as LRFinder
from keras_trainkit.pruning import MagnitudePruning as MagnitudePruning
from keras_trainkit.quantization import Clustering as Clustering
