"""Fold what training alone needs into the layers beside it."""

from keras_trainkit.folding._fold import FoldResult as FoldResult
from keras_trainkit.folding._fold import fold_batch_norm as fold_batch_norm
from keras_trainkit.folding._weight_normalization import (
    strip_weight_normalization as strip_weight_normalization,
)
