"""The rules of the layout: what may import what, and how large a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import keras_trainkit

ROOT = Path(keras_trainkit.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

LEVELS = [
    {"_types", "_checks", "_keras", "_model", "_training", "_stopwatch", "_table"},
    {"schedules", "layers", "constraints", "regularizers", "optimizers", "datasets"}
    | {"losses", "metrics"},
    {"lr_finder", "batch_size", "uncertainty", "folding", "pruning", "diagnostics"}
    | {"initializers", "callbacks", "quantization"},
    {"models", "export", "tfmot", "transfer", "compression"},
    {"plots", "cli"},
]
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}
# Imported when they are needed, by those who have them.
OPTIONAL = {"tensorflow", "jax", "torch", "sklearn", "matplotlib", "tf_keras", "onnx"}
OPTIONAL.add("keras_tuner")


def topic(path):
    """The module or package below `keras_trainkit` that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path, top_level_only=False):
    """Dotted names of all that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_topics(path):
    """The topics of this package that a file imports."""
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "keras_trainkit" and len(parts) > 1 and parts[1] in LEVEL:
            yield parts[1]


def private_reaches(path):
    """What a file takes from inside another folder, as (line, dotted name).

    The modules of level 0 are what all folders share; the others are reached through
    their public names.
    """
    name, aliases = topic(path), set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            taken = [(alias.name, alias.asname) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            taken = [
                (f"{node.module}.{a.name}", a.asname or a.name) for a in node.names
            ]
        else:
            continue
        for dotted, alias in taken:
            package, *parts = dotted.split(".")
            if package != "keras_trainkit":
                continue
            aliases.add(alias or package)
            own = parts and parts[0] in (name, "__version__")
            inside = parts[1:] if parts and parts[0] in LEVELS[0] else parts
            if not own and any(part.startswith("_") for part in inside):
                yield node.lineno, dotted
    for node in ast.walk(tree):
        # `layers._mc`, `kt.layers._mc` of an imported package.
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            parts = ast.unparse(node).split(".")
            if parts[0] in aliases and not node.attr.startswith("__"):
                yield node.lineno, ".".join(parts)


def test_no_folder_reaches_into_another():
    reaches = [
        f"{path.relative_to(ROOT)}:{line} {dotted}"
        for path in FILES
        for line, dotted in private_reaches(path)
    ]
    assert reaches == []


def test_every_topic_has_a_level():
    assert {topic(path) for path in FILES} - {"__init__"} <= set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_keeps_the_rules(path):
    name = topic(path)
    for imported in own_topics(path):
        if name in ("__init__", imported):
            continue
        assert LEVEL[imported] <= LEVEL[name]
        if LEVEL[imported] == LEVEL[name]:
            # `callbacks` is the front of level 2, the command shows the figures, and
            # a check-up asks the range test, and clustering refuses pruning beside it.
            assert (name, imported) in (
                ("cli", "plots"),
                ("diagnostics", "lr_finder"),
                ("quantization", "pruning"),
            ) or name in (
                "callbacks",
                *LEVELS[0],
                *LEVELS[3],
            )
    for imported in imports(path):
        if imported.startswith("keras.src"):
            assert name == "_keras"
    for imported in imports(path, top_level_only=True):
        assert imported.split(".")[0] not in OPTIONAL
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


def test_import_loads_nothing_that_is_optional():
    code = (
        "import sys, keras; before = set(sys.modules); import keras_trainkit; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    added = set(run.stdout.split())
    assert "keras_trainkit" in added
    assert added & OPTIONAL == set()
