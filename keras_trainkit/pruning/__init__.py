"""Pruning: set weights to zero, remove channels, and report what that saves."""

from keras_trainkit.pruning._channels import Cost as Cost
from keras_trainkit.pruning._channels import ShrinkResult as ShrinkResult
from keras_trainkit.pruning._channels import prune_channels as prune_channels
from keras_trainkit.pruning._magnitude import MagnitudePruning as MagnitudePruning
from keras_trainkit.pruning._once import prune_once as prune_once
from keras_trainkit.pruning._report import LayerSparsity as LayerSparsity
from keras_trainkit.pruning._report import SparsityReport as SparsityReport
from keras_trainkit.pruning._report import sparsity_report as sparsity_report
from keras_trainkit.pruning._sparsity import ConstantSparsity as ConstantSparsity
from keras_trainkit.pruning._sparsity import PolynomialSparsity as PolynomialSparsity
