"""Callbacks for `model.fit`."""

from keras_trainkit.callbacks._gradual_unfreezing import (
    GradualUnfreezing as GradualUnfreezing,
)
from keras_trainkit.callbacks._one_cycle import OneCycle as OneCycle
from keras_trainkit.callbacks._plateau import PlateauSchedule as PlateauSchedule
from keras_trainkit.callbacks._schedules import ApplySchedule as ApplySchedule
from keras_trainkit.callbacks._schedules import (
    ExponentialSchedule as ExponentialSchedule,
)
from keras_trainkit.callbacks._schedules import (
    PiecewiseConstantSchedule as PiecewiseConstantSchedule,
)
from keras_trainkit.callbacks._schedules import PowerSchedule as PowerSchedule
from keras_trainkit.callbacks._signal_logger import SignalLogger as SignalLogger
from keras_trainkit.lr_finder._find import LRFinder as LRFinder
