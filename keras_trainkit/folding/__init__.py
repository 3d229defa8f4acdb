"""Fold BatchNorms into the layers beside them."""

from keras_trainkit.folding._fold import FoldResult as FoldResult
from keras_trainkit.folding._fold import fold_batch_norm as fold_batch_norm
