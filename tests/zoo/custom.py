"""Models that train by a step, or losses, of their own."""

import keras
from keras import layers, ops

from .registry import Case, case, integers, random

ROWS = 8


def _backward(model, loss_of, variables, optimizer):
    """One step of an optimizer, on whatever backend; JAX has a way of its own."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = loss_of()
        gradients = tape.gradient(loss, [v.value for v in variables])
        optimizer.apply(gradients, variables)
        return loss
    model.zero_grad()
    loss = loss_of()
    loss.backward()
    import torch

    with torch.no_grad():
        optimizer.apply([v.value.grad for v in variables], variables)
    return loss


def _not_on_jax():
    from .registry import Skip

    if keras.backend.backend() == "jax":
        raise Skip("a train_step on JAX has another signature")


class Sampling(layers.Layer):
    """Draws a code, in training and at inference."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs, training=None):
        mean, log_var = inputs
        if not training:
            return mean
        noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_var) * noise


def _encoder():
    x = keras.Input((8, 8, 1))
    y = layers.Conv2D(4, 3, activation="relu", strides=2, padding="same")(x)
    y = layers.Dense(8, "relu")(layers.Flatten()(y))
    mean, log_var = layers.Dense(2, name="mean")(y), layers.Dense(2, name="var")(y)
    return keras.Model(x, [mean, log_var, Sampling()([mean, log_var])], name="encoder")


def _decoder():
    x = keras.Input((2,))
    y = layers.Reshape((4, 4, 4))(layers.Dense(64, "relu")(x))
    y = layers.Conv2DTranspose(4, 3, activation="relu", strides=2, padding="same")(y)
    y = layers.Conv2DTranspose(1, 3, activation="sigmoid", padding="same")(y)
    return keras.Model(x, y, name="decoder")


class VAE(keras.Model):
    """keras.io's, with a `train_step` that takes x alone."""

    def __init__(self, encoder, decoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder, self.decoder = encoder, decoder
        self.tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.tracker]

    def call(self, x, training=None):
        return self.decoder(self.encoder(x, training=training)[2], training=training)

    def train_step(self, data):
        def loss_of():
            mean, log_var, code = self.encoder(data, training=True)
            rebuilt = self.decoder(code, training=True)
            error = ops.mean(ops.square(data - rebuilt))
            return error - 0.05 * ops.mean(1 + log_var - mean**2 - ops.exp(log_var))

        loss = _backward(self, loss_of, self.trainable_weights, self.optimizer)
        self.tracker.update_state(loss)
        return {"loss": self.tracker.result()}


@case
def variational_autoencoder():
    _not_on_jax()
    model = VAE(_encoder(), _decoder())
    x = random(ROWS, 8, 8, 1)
    model(x)

    def compile(model, optimizer, case):
        model.compile(optimizer, run_eagerly=case.eager)

    return Case(model, x, compile=compile, custom={"VAE": VAE, "Sampling": Sampling})


class GAN(keras.Model):
    """keras.io's, with two optimizers."""

    def __init__(self, discriminator, generator, size):
        super().__init__()
        self.discriminator, self.generator = discriminator, generator
        self.size = size
        self.seed_generator = keras.random.SeedGenerator(1337)
        self.d_metric = keras.metrics.Mean(name="d_loss")
        self.g_metric = keras.metrics.Mean(name="g_loss")

    def compile(self, d_optimizer, g_optimizer, loss_fn, **kwargs):
        super().compile(**kwargs)
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer
        self.loss_fn = loss_fn

    @property
    def metrics(self):
        return [self.d_metric, self.g_metric]

    def call(self, x, training=None):
        return self.discriminator(x, training=training)

    def train_step(self, data):
        rows = ops.shape(data)[0]

        def codes():
            return keras.random.normal((rows, self.size), seed=self.seed_generator)

        made = self.generator(codes())
        both = ops.concatenate([made, data], axis=0)
        labels = ops.concatenate([ops.ones((rows, 1)), ops.zeros((rows, 1))], axis=0)
        drawn = codes()

        def d_loss():
            return self.loss_fn(labels, self.discriminator(both))

        def g_loss():
            return self.loss_fn(
                ops.zeros((rows, 1)), self.discriminator(self.generator(drawn))
            )

        first = _backward(
            self, d_loss, self.discriminator.trainable_weights, self.d_optimizer
        )
        second = _backward(
            self, g_loss, self.generator.trainable_weights, self.g_optimizer
        )
        self.d_metric.update_state(first)
        self.g_metric.update_state(second)
        return {m.name: m.result() for m in self.metrics}


@case
def generative_adversarial():
    _not_on_jax()
    discriminator = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, strides=2, padding="same"),
            layers.LeakyReLU(negative_slope=0.2),
            layers.GlobalMaxPooling2D(),
            layers.Dropout(0.2),
            layers.Dense(1),
        ],
        name="discriminator",
    )
    generator = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(64),
            layers.Reshape((4, 4, 4)),
            layers.Conv2DTranspose(1, 4, strides=2, padding="same"),
        ],
        name="generator",
    )
    model = GAN(discriminator, generator, 3)
    model(random(1, 8, 8, 1))

    def compile(model, optimizer, case):
        model.compile(
            d_optimizer=optimizer,
            g_optimizer=keras.optimizers.SGD(0.01),
            loss_fn=keras.losses.BinaryCrossentropy(from_logits=True),
            run_eagerly=case.eager,
        )

    return Case(
        model, random(ROWS, 8, 8, 1), compile=compile, custom={"GAN": GAN},
        optimizers=("d_optimizer", "g_optimizer"),
    )  # fmt: skip


class Distiller(keras.Model):
    """keras.io's: a loss of its own, and a teacher that does not train."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher

    def compile(self, optimizer, student_loss, distillation_loss, **kwargs):
        super().compile(optimizer=optimizer, **kwargs)
        self.student_loss, self.distillation_loss = student_loss, distillation_loss

    def call(self, x, training=None):
        return self.student(x, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **_):
        soft = ops.softmax(self.teacher(x, training=False) / 3)
        other = self.distillation_loss(soft, ops.softmax(y_pred / 3))
        return 0.1 * self.student_loss(y, y_pred) + 0.9 * other * 9


def _classifier(width, name):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(width, 3, strides=2, padding="same"),
            layers.BatchNormalization(),
            layers.LeakyReLU(negative_slope=0.2),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(3, name=f"{name}_head"),
        ],
        name=name,
    )


@case
def knowledge_distillation():
    teacher = _classifier(8, "teacher")
    teacher.trainable = False
    model = Distiller(_classifier(4, "student"), teacher)
    model(random(1, 8, 8, 1))

    def compile(model, optimizer, case):
        model.compile(
            optimizer,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            keras.losses.KLDivergence(),
            run_eagerly=case.eager,
        )

    return Case(
        model, random(ROWS, 8, 8, 1), integers(3, ROWS), compile=compile,
        custom={"Distiller": Distiller},
        stages={0: "student_head", 1: "(.*/)?student/.*"},
    )  # fmt: skip


class Distance(layers.Layer):
    """Between two embeddings."""

    def call(self, a, b):
        return ops.sqrt(ops.sum(ops.square(a - b), axis=-1, keepdims=True) + 1e-7)


def contrastive(y_true, y_pred):
    return ops.mean(
        (1 - y_true) * ops.square(y_pred)
        + y_true * ops.square(ops.maximum(1 - y_pred, 0))
    )


@case
def siamese_contrastive():
    x = keras.Input((8, 8, 1))
    y = layers.Conv2D(4, 3, activation="tanh")(layers.BatchNormalization()(x))
    y = layers.Flatten()(layers.AveragePooling2D(2)(y))
    y = layers.Dense(4, "tanh")(layers.BatchNormalization()(layers.Dropout(0.2)(y)))
    embed = keras.Model(x, y, name="embedding")
    a, b = keras.Input((8, 8, 1)), keras.Input((8, 8, 1))
    y = layers.BatchNormalization()(Distance()(embed(a), embed(b)))
    model = keras.Model([a, b], layers.Dense(1, "sigmoid")(y))
    data = [random(ROWS, 8, 8, 1), random(ROWS, 8, 8, 1, seed=1)]
    return Case(
        model, data, integers(2, ROWS, 1).astype("float32"), loss=contrastive,
        custom={"Distance": Distance, "contrastive": contrastive},
    )  # fmt: skip


class CTCLayer(layers.Layer):
    """keras.io's: the loss is added by a layer, and there is no y."""

    def call(self, labels, predictions):
        rows = ops.shape(labels)[0]
        steps = ops.ones((rows,), "int32") * predictions.shape[1]
        sizes = ops.ones((rows,), "int32") * labels.shape[1]
        loss = ops.ctc_loss(labels, ops.log(predictions + 1e-7), sizes, steps)
        self.add_loss(ops.mean(loss))
        return predictions


@case
def ocr_with_ctc():
    image = keras.Input((16, 8, 1), name="image")
    labels = keras.Input((3,), name="label", dtype="int32")
    y = layers.Conv2D(4, 3, activation="relu", padding="same")(image)
    y = layers.Reshape((8, 4 * 4))(layers.MaxPooling2D(2)(y))
    y = layers.Dropout(0.2)(layers.Dense(8, "relu")(y))
    y = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(y)
    y = layers.Dense(6, "softmax")(y)
    model = keras.Model([image, labels], CTCLayer()(labels, y))
    data = {"image": random(ROWS, 16, 8, 1), "label": 1 + integers(4, ROWS, 3)}
    return Case(
        model, data, inputs=[data["image"], data["label"]], loss=None,
        custom={"CTCLayer": CTCLayer},
    )  # fmt: skip


class OwnStep(keras.Model):
    """A Functional model whose `train_step` unpacks `x, y = data`."""

    def train_step(self, data):
        x, y = data

        def loss_of():
            return self.compute_loss(y=y, y_pred=self(x, training=True))

        loss = _backward(self, loss_of, self.trainable_variables, self.optimizer)
        return {"loss": loss}


@case
def train_step_of_pairs():
    _not_on_jax()
    x = keras.Input((6,))
    y = layers.BatchNormalization()(layers.Dense(8, "relu")(x))
    model = OwnStep(x, layers.Dense(2)(layers.Dropout(0.5)(y)))
    return Case(model, random(ROWS, 6), random(ROWS, 2), custom={"OwnStep": OwnStep})


class Masked(keras.Model):
    """A masked autoencoder: `call` of a subclass, loss in `compute_loss`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.encoder = keras.Sequential([layers.Dense(8, "relu"), layers.Dropout(0.2)])
        self.decoder = layers.Dense(6)

    def call(self, x, training=None):
        return self.decoder(self.encoder(x, training=training))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **_):
        return ops.mean(ops.square(x - y_pred))


@case
def loss_of_the_inputs():
    model = Masked()
    model(random(1, 6))
    return Case(model, random(ROWS, 6), loss=None, custom={"Masked": Masked})
