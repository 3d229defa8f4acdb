"""Every public name is documented, and the examples in the docstrings are true."""

import doctest
import inspect
import pkgutil
import re
from dataclasses import is_dataclass
from pathlib import Path

import keras
import pytest

import keras_trainkit as kt
from keras_trainkit._table import Report

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules(package=kt):
    """Every module of the package, the private ones included."""
    yield package
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield __import__(info.name, fromlist=["_"])


def public_objects():
    """(path, object) for each public class and function, by its public path."""
    for name, module in vars(kt).items():
        if name.startswith("_"):
            continue
        if not inspect.ismodule(module):
            yield f"kt.{name}", module
            continue
        for inner in dir(module):
            value = getattr(module, inner)
            if inner.startswith("_") or not (
                inspect.isclass(value) or inspect.isfunction(value)
            ):
                continue
            if value.__module__.startswith("keras_trainkit"):
                yield f"kt.{name}.{inner}", value


PUBLIC = dict(public_objects())


# What Keras defines and documents; a subclass only fills it in.
KERAS_METHODS = {
    name
    for base in (
        keras.layers.Layer,
        keras.optimizers.Optimizer,
        keras.optimizers.schedules.LearningRateSchedule,
        keras.callbacks.Callback,
    )
    for name in dir(base)
}


def own_methods(cls):
    for name, member in vars(cls).items():
        if not name.startswith("_") and inspect.isfunction(member):
            yield name, member


@pytest.mark.parametrize("path", sorted(PUBLIC))
def test_public_name_is_documented(path):
    value = PUBLIC[path]
    documented = inspect.getdoc(value)
    assert documented
    assert "Examples:" in documented or path == "kt.cli.main"
    if inspect.isclass(value):
        for name, method in own_methods(value):
            assert name in KERAS_METHODS or inspect.getdoc(method), name
        if "__init__" not in vars(value):
            return
    for name, parameter in inspect.signature(value).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        assert f"{name}:" in documented, name


def test_every_result_reads_the_same_way():
    results = [
        value
        for value in PUBLIC.values()
        if is_dataclass(value) and inspect.isfunction(getattr(value, "summary", None))
    ]
    assert len(results) > 9
    assert all(issubclass(result, Report) for result in results)


def test_every_callback_can_be_had_from_one_place():
    callbacks = {
        value
        for value in PUBLIC.values()
        if inspect.isclass(value) and issubclass(value, keras.callbacks.Callback)
    }
    assert len(callbacks) > 13
    assert callbacks <= {v for v in vars(kt.callbacks).values() if inspect.isclass(v)}


TOPICS = {n: m for n, m in vars(kt).items() if inspect.ismodule(m) and n[0] != "_"}


@pytest.mark.parametrize("topic", sorted(set(TOPICS) - {"cli"}))
def test_completion_shows_public_names_alone(topic):
    shown = {name for name in dir(TOPICS[topic]) if not name.startswith("_")}
    # A name may be had from another topic too, as callbacks are.
    assert shown <= {name.rpartition(".")[2] for name in PUBLIC} | {"PRESETS"}
    assert shown


def test_the_reference_has_every_public_name():
    """And no others, which would stop the building of the site."""
    listed = set()
    for page in (Path(__file__).parents[1] / "docs" / "api").glob("*.md"):
        for topic, members in re.findall(
            r"^::: keras_trainkit\.(\w+)$(.*?)(?=^:::|\Z)",
            page.read_text(encoding="utf-8"),
            flags=re.MULTILINE | re.DOTALL,
        ):
            names = re.findall(r"^ {8}- (\w+)$", members, flags=re.MULTILINE)
            listed |= {f"kt.{topic}.{name}" for name in names}
    # Functions of `kt` itself, some of which are those of a topic.
    others = {name for name in PUBLIC if name.count(".") == 1}
    assert "kt.flops" in others
    # The command is there where another test has imported it.
    names = {name for name in PUBLIC if not name.startswith("kt.cli.")}
    assert names - others == listed - {"kt.models.PRESETS"}


@pytest.mark.parametrize("module", list(modules()), ids=lambda m: m.__name__)
def test_examples(module):
    result = doctest.testmod(module, optionflags=OPTIONS)
    assert result.failed == 0
