"""The features, each with the effect that it must have on any model."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

import keras_trainkit as kt

from . import registry
from .checks import (
    all_layers,
    array,
    changed,
    check,
    check_equal,
    distance,
    dropouts,
    fit,
    is_batched,
    kernels,
    outputs,
    reload,
    set_rates,
    untouched,
    values,
)
from .registry import Case

FEATURES: dict[str, Callable[[str], None]] = {}

# What the features that change nothing work on: built once for all of them.
_shared: dict[str, Case] = {}
_reloads: dict[str, bool] = {}


def feature(function: Callable[[str], None]) -> Callable[[str], None]:
    """A column of the matrix: a function of an architecture's name."""
    FEATURES[function.__name__] = function
    return function


def shared(name: str) -> Case:
    """A model that several cells use, none of which may change it."""
    if name not in _shared:
        _shared.clear()
        _shared[name] = case = registry.build(name)
        # What a plain call changes, such as the seeds of recurrent dropout.
        before = values(case.model)
        outputs(case.model, case.inputs)
        case.restless = changed(case.model, before)
    return _shared[name]


def forget() -> None:
    """Build the shared model anew, since a cell failed on it."""
    _shared.clear()


def _check_copy(name: str, case: Case, copy: keras.Model, what: str, same=True):
    """A model that was made of the user's: equal, apart, and its file loads."""
    if same:
        before, after = outputs(case.model, case.inputs), outputs(copy, case.inputs)
        check_equal(before, after, case.model, f"the outputs of {what} and the model")
    theirs = {id(v) for v in case.model.variables}
    check(not theirs & {id(v) for v in copy.variables}, f"{what} shares variables")
    _check_file(name, case, copy, what)


def _check_file(name, case: Case, copy: keras.Model, what: str, rate=None):
    if not _reloads_itself(name, case):
        return
    try:
        loaded = reload(copy, case.custom)
    except Exception as error:
        raise AssertionError(
            f"the file of {what} does not load, that of the model does: "
            f"{type(error).__name__}: {error}"
        ) from error
    if rate is not None:
        set_rates(loaded, rate)
    before, after = outputs(copy, case.inputs), outputs(loaded, case.inputs)
    check_equal(before, after, case.model, f"the outputs of {what} and of its file")


def _reloads_itself(name: str, case: Case) -> bool:
    """Whether the user's own model survives its file."""
    if name not in _reloads:
        try:
            loaded = reload(case.model, case.custom)
            error = distance(
                outputs(case.model, case.inputs), outputs(loaded, case.inputs)
            )
            _reloads[name] = error < 0.05
        except Exception:
            _reloads[name] = False
    return _reloads[name]


@feature
def prune_once(name):
    """With sparsity 0 it is a copy: equal, trainable, apart."""
    case = shared(name)
    with untouched(case):
        copy = kt.pruning.prune_once(case.model, 0.0)
        _check_copy(name, case, copy, "the copy")
        count = len(case.model.trainable_variables)
        check(len(copy.trainable_variables) == count, "the copy trains other weights")
        if type(copy) is not type(case.model) and case.compile is not _usual:
            return
        case.compile(copy, keras.optimizers.SGD(0.01), case)
        before = values(copy)
        fit(case, copy)
        check(changed(copy, before), "the copy does not train")


_usual = registry.fit_with_loss


@feature
def prune_channels_0(name):
    """With the ratio 0 it is a copy."""
    case = shared(name)
    with untouched(case):
        result = kt.pruning.prune_channels(case.model, 0.0)
        _check_copy(name, case, result.model, "the copy")


@feature
def prune_channels_half(name):
    """Half of the channels: fewer parameters, and a model that runs and loads."""
    case = shared(name)
    with untouched(case):
        result = kt.pruning.prune_channels(case.model, 0.5)
        smaller = result.model
        check(smaller.count_params() < case.model.count_params(), "nothing was cut")
        shapes = [y.shape for y in outputs(case.model, case.inputs)]
        after = outputs(smaller, case.inputs)
        check([y.shape for y in after] == shapes, "the outputs have other shapes")
        check(all(np.isfinite(y).all() for y in after), "the outputs are not finite")
        _check_copy(name, case, smaller, "the smaller model", same=False)


@feature
def to_mc(name):
    """Only the dropouts are live, and all of them are."""
    case = shared(name)
    with untouched(case):
        copy = kt.uncertainty.to_mc(case.model, seed=1)
        check(dropouts(case.model), "a copy though there is no dropout")
        passes = [outputs(copy, case.inputs) for _ in range(8)]
        spread = max(distance(passes[0], other) for other in passes)
        check(spread > 0, "each pass gives the same")
        theirs, ours = len(dropouts(case.model)), len(dropouts(copy))
        check(theirs == ours, f"{ours} dropouts of {theirs}")
        set_rates(copy, 0.0)
        _check_file(name, case, copy, "the copy", rate=0.0)
        before, after = outputs(case.model, case.inputs), outputs(copy, case.inputs)
        check_equal(before, after, case.model, "the outputs without dropout")


@feature
def mc_predict(name):
    """Spread where there is dropout, and none from anything else."""
    case = shared(name)
    with untouched(case):
        found = _mc(case)
        check(dropouts(case.model), "samples though there is no dropout")
        stds = [f.std for f in found]
        check(max(std.max() for std in stds) > 0, "no spread")
        check(
            all(np.isfinite(std).all() for std in stds), "a spread that is not finite"
        )
    silent = registry.build(name)
    set_rates(silent.model, 1e-9)
    found = _mc(silent)
    before = outputs(silent.model, silent.inputs)
    for mc, exact in zip(found, before, strict=True):
        scale = max(np.abs(exact).max(), 1e-6)
        check(mc.std.max() < 1e-3 * scale, f"{mc.std.max():.1e} of spread that is not")
        error = np.abs(mc.mean - exact.reshape(mc.mean.shape)).max() / scale
        check(error < 2e-2 if _is_half(silent) else error < 1e-4, f"mean off: {error}")


def _is_half(case):
    return any("16" in layer.compute_dtype for layer in all_layers(case.model))


def _mc(case):
    x = case.inputs if case.predicted is None else case.predicted
    found = kt.uncertainty.mc_predict(case.model, x, num_samples=6, seed=0)
    is_one = isinstance(found, kt.uncertainty.MCPrediction)
    return [found] if is_one else keras.tree.flatten(found)


@feature
def fold_batch_norm(name):
    """Equal outputs, and each BatchNorm folded or kept with a reason."""
    case = shared(name)
    norms = [
        layer
        for layer in all_layers(case.model)
        if isinstance(layer, layers.BatchNormalization)
    ]
    with untouched(case):
        x = None if hasattr(case.model, "inputs") else case.inputs
        result = kt.folding.fold_batch_norm(case.model, x)
        _check_copy(name, case, result.model, "the folded model")
        listed = len(result.folded) + len(result.kept)
        check(listed == len(norms), f"{listed} of {len(norms)} BatchNorms are listed")
        check(all(result.kept.values()), "a BatchNorm is kept without a reason")
        left = [
            layer
            for layer in all_layers(result.model)
            if isinstance(layer, layers.BatchNormalization)
        ]
        check(len(left) == len(result.kept), f"{len(left)} left, {result.kept} kept")


@feature
def replace_head(name):
    """With the old head's weights in the new one, nothing has changed."""
    case = shared(name)
    with untouched(case):
        probe = kt.transfer.replace_head(case.model, 3, "linear")
        before = outputs(case.model, case.inputs)
        after = outputs(probe, case.inputs)
        check(len(after) == 1 and after[0].shape[-1] == 3, "the head has not 3 units")
        _check_copy(name, case, probe, "the model with a new head", same=False)
        kernel, bias = map(array, probe.get_layer("head").weights)
        old = _old_heads(case.model, kernel.shape[0])
        ways = [_with_head(case, layer) for layer in old]
        if kernel.shape[0] == before[0].shape[-1]:
            pooled = _pooled(case)
            ways.append((lambda: [pooled @ kernel + bias], lambda: after))
        errors = []
        for expected, found in ways:
            want, got = expected(), found()
            errors.append(distance(want, got) if _alike(want, got) else math.inf)
        best = min(errors, default=math.inf)
        rough = _is_half(case) or any(layer.quantization_mode for layer in old)
        check(best < (5e-2 if rough else 1e-4), f"the body is off by {best}")


def _pooled(case):
    """The mean over places, of those that the mask leaves, by Keras."""
    (y,) = keras.tree.flatten(case.model(case.inputs, training=False))
    pooling = {
        3: layers.GlobalAveragePooling1D,
        4: layers.GlobalAveragePooling2D,
        5: layers.GlobalAveragePooling3D,
    }
    rank = len(y.shape)
    return array(pooling[rank]()(y) if rank in pooling else y)


def _alike(a, b):
    return [y.shape for y in a] == [y.shape for y in b]


def _old_heads(model, width):
    return [
        layer
        for layer in all_layers(model)
        if isinstance(layer, layers.Dense) and array(layer.kernel).shape[0] == width
    ][::-1]


def _with_head(case: Case, old: layers.Dense):
    def found():
        new = kt.transfer.replace_head(case.model, old.units)
        head = new.get_layer("head")
        kernel = array(old.kernel)
        if old.quantization_mode == "int8":
            kernel = kernel / array(old.kernel_scale)
        head.kernel.assign(kernel)
        head.bias.assign(array(old.bias) if old.use_bias else array(head.bias) * 0)
        return outputs(new, case.inputs)

    return lambda: outputs(case.model, case.inputs), found


@feature
def magnitude_pruning(name):
    """Half of the entries of each kernel are exactly zero after the fit."""
    case = registry.build(name)
    pruning = kt.pruning.MagnitudePruning(
        0.5, end_step=1, frequency=1, schedule="constant"
    )
    known = kernels(case.model)
    optimizer = getattr(case.model, "optimizer", None)
    fit(case, callbacks=[pruning])
    check(getattr(case.model, "optimizer", None) is optimizer, "another optimizer")
    report = kt.pruning.sparsity_report(case.model)
    check(report.layers, "no kernel in the report")
    for layer, variable in known:
        size, zeros = math.prod(variable.shape), np.sum(array(variable) == 0)
        wanted = size - max(round(size * 0.5), 1)
        check(zeros == wanted, f"{layer.name}: {zeros} zeros of {size}, not {wanted}")


@feature
def sparsity_report(name):
    """The zeros and parameters that NumPy counts, and every kernel."""
    case = shared(name)
    with untouched(case):
        report = kt.pruning.sparsity_report(case.model)
        check(report.parameters == case.model.count_params(), "other parameters")
        nonzeros = sum(np.count_nonzero(array(w)) for w in case.model.weights)
        check(report.nonzeros == nonzeros, f"{report.nonzeros} is not {nonzeros}")
        paths = {layer.path for layer in report.layers}
        missing = [v.path for _, v in kernels(case.model) if v.path not in paths]
        check(not missing, f"kernels without a line: {missing}")


def _cycle(max_lr: float, steps: int) -> list[float]:
    """One cycle as PyTorch has it, by its formula."""
    peak, last = 0.3 * steps - 1, steps - 1
    rates = []
    for step in range(steps):
        low, high, part = max_lr / 25, max_lr, step / peak
        if step > peak:
            low, high = max_lr, max_lr / 25 / 1e4
            part = (step - peak) / (last - peak)
        rates.append(high + (low - high) / 2 * (1 + math.cos(math.pi * part)))
    return rates


@feature
def one_cycle(name):
    """The weights of a fit with the same rates by Keras's own schedule."""
    case = registry.build(name)
    options: dict[str, Any] = {"momentum": None, "total_steps": 4}
    if len(case.optimizers) > 1:
        try:
            fit(case, callbacks=[kt.callbacks.OneCycle(0.05, **options)])
        except (TypeError, ValueError):
            options["optimizer"] = case.optimizers[0]
            case = registry.build(name)
        else:
            check(False, "nothing was said of several optimizers")
    given = [getattr(case.model, attribute) for attribute in case.optimizers]
    cycle = kt.callbacks.OneCycle(0.05, **options)
    fit(case, epochs=2, callbacks=[cycle])
    left = [getattr(case.model, attribute) for attribute in case.optimizers]
    check(all(a is b for a, b in zip(given, left, strict=True)), "another optimizer")
    rates = _cycle(0.05, 4)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0, 1, 2], rates)
    other = registry.build(name, keras.optimizers.SGD(schedule))
    start = values(other.model)
    fit(other, epochs=2)
    check(changed(other.model, start), "the comparison does not train")
    ours, theirs = case.model.trainable_variables, other.model.trainable_variables
    error = distance([array(v) for v in theirs], [array(v) for v in ours])
    check(error < (3e-2 if _is_half(case) else 1e-4), f"weights off by {error:.1e}")


@feature
def find_lr(name):
    """A verdict, losses that depend on the rate, and the model unchanged."""
    case = shared(name)
    with untouched(case):
        found = kt.find_lr(case.model, case.x, case.y, num_steps=12, **_given(case))
        check(found.verdict, "no verdict")
        losses = np.asarray(found.losses)
        check(np.isfinite(losses[0]), "no loss")
        check(len(set(losses.tolist())) > 1, "the losses do not depend on the rate")


def _given(case: Case) -> dict[str, Any]:
    options = {} if is_batched(case.x) else {"batch_size": 4}
    return {**options, **case.fit}


@feature
def signal_report(name):
    """A line whose figures are those of the outputs, gradients, model unchanged."""
    case = shared(name)
    with untouched(case):
        y = case.y
        if is_batched(case.x):
            x, y = case.x[0]
        else:
            x = case.x
        report = kt.diagnostics.signal_report(case.model, x, y, training=False)
        check(report.layers, "no layers")
        figures = [(layer.mean, layer.std) for layer in report.layers]
        check(np.isfinite(figures).all(), "figures that are not finite")
        if y is not None:
            norms = [layer.gradient_norm for layer in report.layers]
            check(any(norm for norm in norms), "no gradients")
    if y is None or x is not case.inputs or not _is_its_graph(case.model):
        return
    found = outputs(case.model, x)
    # A layer with several outputs has one line for all of them.
    found.append(np.concatenate([y.ravel() for y in found]))
    own = [(float(y.mean()), float(y.std())) for y in found]
    near = [
        np.allclose(a, b, rtol=2e-2 if _is_half(case) else 1e-3, atol=1e-5)
        for a in own
        for b in figures
    ]
    check(any(near), f"no layer has the figures of an output: {own}")


def _is_its_graph(model):
    plain = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
    graphs = type(plain), type(keras.Model(plain.inputs, plain.outputs))
    return any(type(model).call is graph.call for graph in graphs)


@feature
def gradual_unfreezing(name):
    """The last layer alone trains in epoch 0, and more in epoch 1."""
    case = registry.build(name)
    before, sets = values(case.model), []
    trainable = {id(v) for v in case.model.trainable_variables}
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: sets.append(changed(case.model, before))
    )
    gradual = kt.callbacks.GradualUnfreezing(case.stages)
    fit(case, epochs=2, callbacks=[gradual, watch])
    check(sets[0], "nothing trains in epoch 0")
    extra = [v.path for v in case.model.trainable_variables if id(v) not in trainable]
    wrong = _never_trained(case.model, extra)
    check(not wrong, f"weights train now: {wrong}")
    now = {id(v) for v in case.model.trainable_variables}
    sets = [some & now for some in sets]
    if _weighted(case.model) > 1:
        check(sets[0] < sets[1], f"{len(sets[0])} weights changed, then {len(sets[1])}")


def _weighted(model):
    own = [
        layer
        for layer in all_layers(model)
        if not layer._layers and layer.trainable_variables
    ]
    return len(own)


@feature
def layerwise(name):
    """A layer with the factor 0 stays, the others train."""
    case = registry.build(name)
    written = _written_by_keras(case.model)
    known = [layer for layer, v in kernels(case.model) if id(v) not in written]
    layer = known[0] if known else None
    if layer is None:
        layer = next(one for one in all_layers(case.model) if one.trainable_variables)
    named = [one for one in all_layers(case.model) if one.name == layer.name]
    optimizer = kt.optimizers.layerwise(keras.optimizers.SGD(0.01), {layer: 0.0})
    case.compile(case.model, optimizer, case)
    before = values(case.model)
    fit(case)
    moved = changed(case.model, before)
    still = {id(v) for one in named for v in one.trainable_variables}
    check(not moved & still, f"{layer.name} has the rate 0 and moved")
    train = {id(v) for v in case.model.trainable_variables}
    check(train <= still or moved & train, "nothing trains")


@feature
def freeze(name):
    """All but the last layer stay; unfreezing gives back what trained before."""
    case = registry.build(name)
    train = {id(v) for v in case.model.trainable_variables}
    kt.transfer.freeze(case.model)
    check(not case.model.trainable_variables, "something trains though all is frozen")
    kt.transfer.unfreeze(case.model)
    now = {id(v) for v in case.model.trainable_variables}
    check(now >= train, f"{len(train - now)} weights do not train again")
    extra = [v.path for v in case.model.trainable_variables if id(v) not in train]
    wrong = _never_trained(case.model, extra)
    check(not wrong, f"weights train now: {wrong}")
    case = registry.build(name)
    kt.transfer.freeze(case.model, until=case.stages[0])
    left = {id(v) for v in case.model.trainable_variables}
    check(left, "nothing is left to train")
    before = values(case.model)
    fit(case)
    moved = changed(case.model, before) & {id(v) for v in case.model.trainable_weights}
    check(moved, "nothing trained")
    everything = {id(v): v.path for v in case.model.variables if "seed" not in v.path}
    wrong = changed(case.model, before) - left - _written_by_keras(case.model)
    frozen = [everything[key] for key in wrong if key in everything]
    check(not frozen, f"frozen, and moved: {frozen}")


def _written_by_keras(model):
    """What a layer itself writes in training, whether it is frozen or not."""
    return {
        id(v)
        for layer in all_layers(model)
        if isinstance(layer, layers.SpectralNormalization)
        for v in layer.variables
    }


def _never_trained(model, extra):
    """Weights that no user would mean by `unfreeze`: the base of a LoRA layer."""
    lora = {
        v.path
        for layer in all_layers(model)
        if getattr(layer, "lora_enabled", False)
        for v in layer.variables
        if "lora" not in v.path and v.name != "bias"
    }
    return lora & set(extra)


@feature
def regularizers_apply(name):
    """The loss rises by the penalty, and the file has it."""
    case = registry.build(name)
    model = case.model
    before = _penalties(case, model)
    old = {
        v.path: float(array(v.regularizer(v.value)))
        for _, v in kernels(model)
        if v.regularizer is not None
    }
    paths = kt.regularizers.apply(model, kernel=keras.regularizers.L2(0.01))
    known = {v.path: v for _, v in kernels(model)}
    check(set(paths) >= set(known), f"left out: {set(known) - set(paths)}")
    regular = [v for v in model.trainable_variables if v.path in set(paths)]
    wanted = 0.01 * sum(float(np.sum(array(v).astype("float64") ** 2)) for v in regular)
    rise = _penalties(case, model) - before
    wanted -= sum(old.get(v.path, 0.0) for v in regular)
    check(
        np.isclose(rise, wanted, rtol=1e-2), f"the loss rises by {rise}, not {wanted}"
    )
    if _reloads_itself(name, case):
        loaded = reload(model, case.custom)
        kept, now = _penalties(case, loaded), _penalties(case, model)
        check(np.isclose(kept, now, rtol=1e-2), f"the file has {kept} of {now}")


def _penalties(case, model):
    outputs(model, case.inputs)
    return float(sum(float(array(keras.ops.cast(x, "float32"))) for x in model.losses))


@feature
def optimize_for_inference(name):
    """Equal outputs without what only training needs."""
    case = shared(name)
    with untouched(case):
        copy = kt.export.optimize_for_inference(case.model)
        _check_copy(name, case, copy, "the optimized model")


@feature
def to_litert(name):
    """The file gives what the model gives."""
    case = shared(name)
    with untouched(case), tempfile.TemporaryDirectory() as folder:
        path = kt.export.to_litert(case.model, Path(folder, "model.tflite"))
        check(path.stat().st_size > 0, "an empty file")
        given = keras.tree.map_structure(np.asarray, case.inputs)
        found = kt.export.predict_litert(path, given)
        found = [np.asarray(y, "float32") for y in keras.tree.flatten(found)]
        _check_file_outputs(case, found)


def _check_file_outputs(case, found):
    """Equal, in whatever order a format has the outputs."""
    before = outputs(case.model, case.inputs)
    check(len(before) == len(found), f"{len(found)} outputs for {len(before)}")
    limit = 5e-2 if _is_half(case) else 1e-3
    for exact in before:
        same = [y for y in found if y.shape == exact.shape]
        errors = [distance([exact], [y]) for y in same]
        check(min(errors, default=math.inf) < limit, f"the file is off by {errors}")


@feature
def to_onnx(name):
    """The file gives what the model gives."""
    import onnxruntime

    case = shared(name)
    with untouched(case), tempfile.TemporaryDirectory() as folder:
        path = kt.export.to_onnx(case.model, Path(folder, "model.onnx"))
        session = onnxruntime.InferenceSession(
            str(path), providers=["CPUExecutionProvider"]
        )
        flat = [np.asarray(x) for x in keras.tree.flatten(case.inputs)]
        taken = session.get_inputs()
        # What a model casts by itself, onnxruntime wants to have in the file's type.
        kinds = [given.type[7:-1].replace("float", "float32") for given in taken]
        flat = [x.astype(k) for x, k in zip(flat, kinds, strict=True)]
        names = [given.name for given in taken]
        found = session.run(None, dict(zip(names, flat, strict=True)))
        _check_file_outputs(case, [np.asarray(y, "float32") for y in found])
