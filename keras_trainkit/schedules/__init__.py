"""Learning-rate schedules: functions of the step, evaluated in the compiled step.

Each works wherever Keras accepts a `LearningRateSchedule`. Keras itself has
`ExponentialDecay`, `InverseTimeDecay`, `PolynomialDecay`, `PiecewiseConstantDecay`,
`CosineDecay` and `CosineDecayRestarts` in `keras.optimizers.schedules`.
"""

from keras_trainkit.schedules._compose import Chained as Chained
from keras_trainkit.schedules._compose import Delay as Delay
from keras_trainkit.schedules._compose import Lambda as Lambda
from keras_trainkit.schedules._compose import Sequential as Sequential
from keras_trainkit.schedules._compose import Warmup as Warmup
from keras_trainkit.schedules._cyclic import Cyclic as Cyclic
from keras_trainkit.schedules._cyclic import CyclicMomentum as CyclicMomentum
from keras_trainkit.schedules._decay import Constant as Constant
from keras_trainkit.schedules._decay import Linear as Linear
from keras_trainkit.schedules._decay import Multiplicative as Multiplicative
from keras_trainkit.schedules._decay import MultiStep as MultiStep
from keras_trainkit.schedules._decay import NaturalExponential as NaturalExponential
from keras_trainkit.schedules._decay import Power as Power
from keras_trainkit.schedules._decay import Step as Step
from keras_trainkit.schedules._linear_cosine import LinearCosine as LinearCosine
from keras_trainkit.schedules._linear_cosine import (
    NoisyLinearCosine as NoisyLinearCosine,
)
from keras_trainkit.schedules._one_cycle import OneCycle as OneCycle
from keras_trainkit.schedules._one_cycle import OneCycleMomentum as OneCycleMomentum
from keras_trainkit.schedules._reducible import Reducible as Reducible
from keras_trainkit.schedules._warmup_stable_decay import (
    WarmupStableDecay as WarmupStableDecay,
)
