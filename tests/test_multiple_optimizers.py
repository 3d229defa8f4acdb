"""Models whose training step uses several optimizers."""

import keras

from keras_trainkit._training.optimizer import optimizers_of, set_optimizer


class Gan(keras.Model):
    """Two networks, each with an optimizer of its own, as on keras.io."""

    def __init__(self):
        super().__init__()
        self.generator = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        self.discriminator = keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(1)]
        )

    def compile(self, d_optimizer, g_optimizer):
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer


def test_every_optimizer_is_found_once_and_can_be_exchanged():
    gan = Gan()
    d, g, inner, third = (keras.optimizers.Adam() for _ in range(4))
    gan.compile(d, g)
    gan.discriminator.compile(inner, "mse")
    gan.others = [third, d]
    found = optimizers_of(gan)
    assert found == {
        "optimizer": gan.optimizer,
        "d_optimizer": d,
        "g_optimizer": g,
        "others[0]": third,
        "discriminator.optimizer": inner,
    }
    new = keras.optimizers.SGD()
    set_optimizer(gan, d, new)
    assert gan.d_optimizer is new
    assert gan.others == [third, new]
    set_optimizer(gan, inner, d)
    assert gan.discriminator.optimizer is d


def test_a_plain_model_has_one():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    assert optimizers_of(model) == {"optimizer": model.optimizer}
