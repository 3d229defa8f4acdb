"""Find the learning rate with a range test."""

from keras_trainkit.lr_finder._analyse import LRFinderResult as LRFinderResult
from keras_trainkit.lr_finder._analyse import analyse as analyse
from keras_trainkit.lr_finder._callback import LRFinder as LRFinder
from keras_trainkit.lr_finder._find import find_lr as find_lr
from keras_trainkit.lr_finder._sweep import LRSweepResult as LRSweepResult
from keras_trainkit.lr_finder._sweep import lr_sweep as lr_sweep
