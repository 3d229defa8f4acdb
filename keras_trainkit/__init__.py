"""keras-trainkit: the training toolkit that Keras 3 lacks.

```python
import keras_trainkit as kt
```
"""

from keras_trainkit import datasets as datasets

__version__ = "0.1.0"
