"""keras-trainkit: the training toolkit that Keras 3 lacks.

```python
import keras_trainkit as kt
```
"""

from keras_trainkit import batch_size as batch_size
from keras_trainkit import callbacks as callbacks
from keras_trainkit import compression as compression
from keras_trainkit import constraints as constraints
from keras_trainkit import datasets as datasets
from keras_trainkit import diagnostics as diagnostics
from keras_trainkit import export as export
from keras_trainkit import folding as folding
from keras_trainkit import initializers as initializers
from keras_trainkit import layers as layers
from keras_trainkit import losses as losses
from keras_trainkit import lr_finder as lr_finder
from keras_trainkit import metrics as metrics
from keras_trainkit import models as models
from keras_trainkit import optimizers as optimizers
from keras_trainkit import plots as plots
from keras_trainkit import pruning as pruning
from keras_trainkit import quantization as quantization
from keras_trainkit import regularizers as regularizers
from keras_trainkit import schedules as schedules
from keras_trainkit import tfmot as tfmot
from keras_trainkit import transfer as transfer
from keras_trainkit import uncertainty as uncertainty
from keras_trainkit._model.flops import flops as flops
from keras_trainkit._training.batch_norm import (
    recalibrate_batch_norm as recalibrate_batch_norm,
)
from keras_trainkit.batch_size import find_batch_size as find_batch_size
from keras_trainkit.compression import compress as compress
from keras_trainkit.lr_finder import find_lr as find_lr
from keras_trainkit.lr_finder import lr_sweep as lr_sweep

__version__ = "0.2.0"
