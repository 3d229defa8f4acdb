"""Diagnose a model: signals in each layer, and checks for what is wrong."""

from keras_trainkit.diagnostics._check_up import check_up as check_up
from keras_trainkit.diagnostics._finding import CheckUp as CheckUp
from keras_trainkit.diagnostics._finding import Finding as Finding
from keras_trainkit.diagnostics._monitor import Monitor as Monitor
from keras_trainkit.diagnostics._self_normalization import (
    SelfNormalizationReport as SelfNormalizationReport,
)
from keras_trainkit.diagnostics._self_normalization import (
    self_normalization as self_normalization,
)
from keras_trainkit.diagnostics._signal import LayerSignal as LayerSignal
from keras_trainkit.diagnostics._signal import SignalReport as SignalReport
from keras_trainkit.diagnostics._signal import signal_report as signal_report
