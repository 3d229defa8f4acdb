"""Transfer learning: a new head, frozen layers, fine-tuning, unsupervised pretraining.

| to do | with |
|---|---|
| put a new head on a trained model | `replace_head` |
| choose which layers train | `freeze`, `unfreeze`, `kt.callbacks.GradualUnfreezing` |
| give each layer its own learning rate | `kt.optimizers.layerwise` |
| train the head, then everything | `fine_tune` |
| pretrain on data without labels | `pretrain_autoencoder` |
"""

from keras_trainkit.transfer._fine_tune import fine_tune as fine_tune
from keras_trainkit.transfer._freeze import freeze as freeze
from keras_trainkit.transfer._freeze import unfreeze as unfreeze
from keras_trainkit.transfer._head import replace_head as replace_head
from keras_trainkit.transfer._pretrain import (
    pretrain_autoencoder as pretrain_autoencoder,
)
