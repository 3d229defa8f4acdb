"""How sure a model is: Monte Carlo dropout and calibration."""

from keras_trainkit.uncertainty._calibration import ReliabilityCurve as ReliabilityCurve
from keras_trainkit.uncertainty._calibration import (
    TemperatureScaling as TemperatureScaling,
)
from keras_trainkit.uncertainty._calibration import (
    adaptive_calibration_error as adaptive_calibration_error,
)
from keras_trainkit.uncertainty._calibration import brier_score as brier_score
from keras_trainkit.uncertainty._calibration import (
    expected_calibration_error as expected_calibration_error,
)
from keras_trainkit.uncertainty._calibration import nll as nll
from keras_trainkit.uncertainty._calibration import ood_auroc as ood_auroc
from keras_trainkit.uncertainty._calibration import rejection_curve as rejection_curve
from keras_trainkit.uncertainty._calibration import (
    reliability_curve as reliability_curve,
)
from keras_trainkit.uncertainty._predict import mc_predict as mc_predict
from keras_trainkit.uncertainty._prediction import MCPrediction as MCPrediction
from keras_trainkit.uncertainty._to_mc import to_mc as to_mc
