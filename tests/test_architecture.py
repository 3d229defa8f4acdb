"""The rules of the layout: what may import what, and how large a file may be."""

import ast
import cProfile
import itertools
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_trainkit
import keras_trainkit as kt

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
            base = node.value
            while isinstance(base, ast.Attribute):
                base = base.value
            known = isinstance(base, ast.Name) and base.id in aliases
            if known and not node.attr.startswith("__"):
                yield node.lineno, ast.unparse(node)


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


PAGE = ROOT.parent / "docs" / "architecture.md"


def rows_of_walk(start, end):
    """The files that each row of a walk names, between two lines of the page."""
    text = PAGE.read_text(encoding="utf-8")
    text = text[text.index(start) :]
    rows = text[: text.index(end) if end else None].splitlines()
    files = [re.findall(r"`([\w/]+\.py)`", row) for row in rows]
    return [found for found in files if found]


def test_the_page_names_files_that_are_there():
    named = re.findall(r"`(\w+/\w+\.py)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 30
    places = (ROOT, ROOT.parent)
    missing = [n for n in named if not any((place / n).is_file() for place in places)]
    assert missing == []


def folders_entered(call):
    """The folders whose functions run in a call; those that any code uses left out."""
    profile = cProfile.Profile()
    profile.runcall(call)
    codes = [entry.code for entry in profile.getstats()]
    paths = [Path(code.co_filename) for code in codes if not isinstance(code, str)]
    entered = {topic(path) for path in paths if path.is_relative_to(ROOT)}
    return entered - {"_checks", "_keras", "_types", "_table", "_stopwatch"}


@pytest.fixture(scope="module")
def network():
    parts = [keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.5)]
    model = keras.Sequential([keras.Input((4,)), *parts, keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    return model


X = np.ones((8, 4), "float32")
WALKS = {
    "fit": (
        "## Walk 1",
        "## Walk 2",
        lambda m, _: m.fit(
            X, X[:, :2], verbose=0, callbacks=[kt.callbacks.OneCycle(0.1)]
        ),
    ),
    "mc_predict": (
        "## Walk 2",
        "## Walk 3",
        lambda m, _: kt.uncertainty.mc_predict(m, X, 2),
    ),
    "prune_channels": (
        "## Walk 3",
        "`kt.export.to_litert(",
        lambda m, _: kt.pruning.prune_channels(m, 0.5),
    ),
    "to_litert": (
        "`kt.export.to_litert(",
        None,
        lambda m, folder: kt.export.to_litert(m, folder / "m.tflite"),
    ),
}


@pytest.mark.parametrize("name", WALKS)
def test_a_walk_enters_the_folders_of_its_table(name, network, tmp_path):
    if name == "to_litert":
        pytest.importorskip("ai_edge_litert")
        if keras.backend.backend() != "tensorflow":
            pytest.skip("the conversion is in a process of its own")
    start, end, walk = WALKS[name]
    rows = rows_of_walk(start, end)
    named = {file.split("/")[0] for row in rows for file in row}
    assert folders_entered(lambda: walk(network, tmp_path)) == named


@pytest.mark.parametrize("name", WALKS)
def test_a_walk_returns_to_no_folder_twice(name):
    start, end, _ = WALKS[name]
    actors = [row[0].split("/")[0] for row in rows_of_walk(start, end)]
    stays = [folder for folder, _ in itertools.groupby(actors)]
    assert all(stays.count(folder) <= 2 for folder in stays)
