"""KerasHub's models of images, tiny and with random weights."""

from .registry import Case, Skip, case, integers, random

try:
    import keras_hub
except ImportError:
    keras_hub = None

ROWS = 4
SPARSE = "sparse_categorical_crossentropy"


def _hub():
    if keras_hub is None:
        raise Skip('keras_hub is not installed: pip install "keras-trainkit[hub]"')
    return keras_hub.models


def _classifier(task, backbone, size=32):
    model = task(backbone, num_classes=3, activation="softmax", preprocessor=None)
    return Case(model, random(ROWS, size, size, 3), integers(3, ROWS), loss=SPARSE)


def _resnet():
    return _hub().ResNetBackbone(
        input_conv_filters=[64], input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64, 64], stackwise_num_blocks=[1, 1, 1],
        stackwise_num_strides=[1, 2, 2], block_type="basic_block",
        image_shape=(32, 32, 3),
    )  # fmt: skip


@case
def hub_resnet_classifier():
    return _classifier(_hub().ResNetImageClassifier, _resnet())


@case
def hub_vit_classifier():
    backbone = _hub().ViTBackbone(
        image_shape=(16, 16, 3), patch_size=(4, 4), num_layers=2, num_heads=2,
        hidden_dim=8, mlp_dim=16, dropout_rate=0.1,
    )  # fmt: skip
    return _classifier(_hub().ViTImageClassifier, backbone, 16)


@case
def hub_mobilenet_classifier():
    backbone = _hub().MobileNetBackbone(
        stackwise_expansion=[[8, 16]], stackwise_num_blocks=[2],
        stackwise_num_filters=[[8, 8]], stackwise_kernel_size=[[3, 3]],
        stackwise_num_strides=[[2, 1]], stackwise_se_ratio=[[0.25, None]],
        stackwise_activation=[["relu", "hard_swish"]],
        stackwise_padding=[[1, 1]], input_num_filters=8, output_num_filters=16,
        depthwise_filters=8, depthwise_stride=1, depthwise_residual=True,
        squeeze_and_excite=None, last_layer_filter=16, image_shape=(32, 32, 3),
    )  # fmt: skip
    return _classifier(_hub().MobileNetImageClassifier, backbone)


@case
def hub_densenet_classifier():
    backbone = _hub().DenseNetBackbone(
        stackwise_num_repeats=[2, 2], compression_ratio=0.5, growth_rate=4,
        image_shape=(32, 32, 3),
    )  # fmt: skip
    return _classifier(_hub().DenseNetImageClassifier, backbone)


@case
def hub_efficientnet_classifier():
    backbone = _hub().EfficientNetBackbone(
        stackwise_width_coefficients=[1.0] * 2, stackwise_depth_coefficients=[1.0] * 2,
        stackwise_kernel_sizes=[3, 3], stackwise_num_repeats=[1, 2],
        stackwise_input_filters=[8, 8], stackwise_output_filters=[8, 8],
        stackwise_expansion_ratios=[1, 4], stackwise_strides=[1, 1],
        stackwise_squeeze_and_excite_ratios=[0.25] * 2,
        stackwise_block_types=["v1", "v1"], stackwise_force_input_filters=[0, 0],
        stackwise_nores_option=[False, False], dropout=0.2, stem_conv_padding="same",
        image_shape=(32, 32, 3),
    )  # fmt: skip
    return _classifier(_hub().EfficientNetImageClassifier, backbone)


@case
def hub_cspnet_classifier():
    backbone = _hub().CSPNetBackbone(
        stem_filters=8, stem_kernel_size=3, stem_strides=2, stackwise_depth=[1, 1],
        stackwise_strides=[1, 2], bottle_ratio=[0.5, 1],
        block_ratio=[1, 0.5], expand_ratio=[2, 1], down_growth=True,
        stackwise_num_filters=[16, 16], block_type="dark_block", stage_type="csp",
        image_shape=(32, 32, 3),
    )  # fmt: skip
    return _classifier(_hub().CSPNetImageClassifier, backbone)


def _mit():
    return _hub().MiTBackbone(
        layerwise_depths=[1, 1], num_layers=2, layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1], max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3], layerwise_strides=[4, 2],
        image_shape=(32, 32, 3), hidden_dims=[4, 8],
    )  # fmt: skip


@case
def hub_mit_classifier():
    return _classifier(_hub().MiTImageClassifier, _mit())


@case
def hub_segformer_segmenter():
    hub = _hub()
    backbone = hub.SegFormerBackbone(image_encoder=_mit(), projection_filters=8)
    model = hub.SegFormerImageSegmenter(backbone, num_classes=3, preprocessor=None)
    loss = _from_logits()
    x = random(ROWS, 32, 32, 3)
    return Case(
        model, x, integers(3, *model(x).shape[:-1]), loss=loss, compile=_without_metrics
    )


def _without_metrics(model, optimizer, case):
    # The task's own metrics are for one-hot targets.
    model.compile(optimizer, loss=case.loss, metrics=[], run_eagerly=case.eager)


def _from_logits():
    import keras

    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@case
def hub_deeplab_segmenter():
    hub = _hub()
    backbone = hub.DeepLabV3Backbone(
        image_encoder=_resnet(), spatial_pyramid_pooling_key="P3", upsampling_size=2,
        dilation_rates=[1, 2], low_level_feature_key="P2", projection_filters=4,
        image_shape=(32, 32, 3),
    )  # fmt: skip
    model = hub.DeepLabV3ImageSegmenter(backbone, num_classes=3, preprocessor=None)
    x = random(ROWS, 32, 32, 3)
    return Case(
        model,
        x,
        integers(3, *model(x).shape[:-1]),
        loss=_from_logits(),
        compile=_without_metrics,
    )


@case
def hub_retinanet_backbone():
    model = _hub().RetinaNetBackbone(
        image_encoder=_resnet(), min_level=3, max_level=4, use_p5=False,
        image_shape=(32, 32, 3),
    )  # fmt: skip
    x = random(ROWS, 32, 32, 3)
    targets = {
        name: random(ROWS, *shape[1:]) for name, shape in _shapes(model, x).items()
    }
    return Case(model, x, targets)


def _shapes(model, x):
    return {name: tuple(y.shape) for name, y in model(x).items()}


@case
def hub_xception_classifier():
    backbone = _hub().XceptionBackbone(
        stackwise_conv_filters=[[8, 8], [8, 8]], stackwise_pooling=[True, False],
        image_shape=(32, 32, 3),
    )  # fmt: skip
    return _classifier(_hub().XceptionImageClassifier, backbone)
