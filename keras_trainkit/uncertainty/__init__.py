"""Predictive uncertainty: Monte Carlo dropout, calibration, conformal prediction."""

from keras_trainkit.uncertainty._calibration import ReliabilityCurve as ReliabilityCurve
from keras_trainkit.uncertainty._calibration import (
    adaptive_calibration_error as adaptive_calibration_error,
)
from keras_trainkit.uncertainty._calibration import brier_score as brier_score
from keras_trainkit.uncertainty._calibration import (
    classwise_calibration_error as classwise_calibration_error,
)
from keras_trainkit.uncertainty._calibration import (
    expected_calibration_error as expected_calibration_error,
)
from keras_trainkit.uncertainty._calibration import nll as nll
from keras_trainkit.uncertainty._calibration import (
    reliability_curve as reliability_curve,
)
from keras_trainkit.uncertainty._conformal import (
    ConformalClassifier as ConformalClassifier,
)
from keras_trainkit.uncertainty._conformal import (
    ConformalRegressor as ConformalRegressor,
)
from keras_trainkit.uncertainty._distill import distill as distill
from keras_trainkit.uncertainty._ensemble import (
    ensemble_prediction as ensemble_prediction,
)
from keras_trainkit.uncertainty._laplace import LastLayerLaplace as LastLayerLaplace
from keras_trainkit.uncertainty._mc_graph import mc_graph as mc_graph
from keras_trainkit.uncertainty._predict import mc_predict as mc_predict
from keras_trainkit.uncertainty._prediction import MCPrediction as MCPrediction
from keras_trainkit.uncertainty._rejection import aurc as aurc
from keras_trainkit.uncertainty._rejection import ood_auroc as ood_auroc
from keras_trainkit.uncertainty._rejection import rejection_curve as rejection_curve
from keras_trainkit.uncertainty._scaling import IsotonicScaling as IsotonicScaling
from keras_trainkit.uncertainty._scaling import TemperatureScaling as TemperatureScaling
from keras_trainkit.uncertainty._scaling import VectorScaling as VectorScaling
from keras_trainkit.uncertainty._to_mc import to_mc as to_mc
