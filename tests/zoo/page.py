"""The page docs/compatibility.md, from what the cells gave."""

import json
import re
from pathlib import Path

from .registry import FAMILIES

TITLES = {
    "user": "What users put into their models",
    "inputs": "Kinds of inputs, outputs and data",
    "vision": "Images",
    "text": "Text, tables, series and graphs",
    "custom": "Training steps and losses of one's own",
    "hub_vision": "KerasHub: images",
    "hub_text": "KerasHub: text and sound",
}
HEAD = """# Compatibility

Which feature works on which model. None of these models was made for this package:
they are architectures of KerasHub and of keras.io's examples, written small, and
constructs from users' code, all with random weights. Each cell runs the feature and
checks its effect: equal outputs, exact zeros, the learning rates of the schedule, a
file that loads again, a model left as it was. The checks are in `tests/zoo`.

This page is written by `python -m tests.zoo`, which runs everything (TensorFlow,
Keras {version}). `python -m tests.zoo --help` says how to run a part.

- **yes**: the effect was checked.
- **no** *(n)*: the feature refuses, for reason *n* below the table, and the model is
  left as it was.
- **fails** *(n)*: a fault of this package, described below the table.

{total}
"""


def write_page(folder: Path, path: Path) -> int:
    """Write the page; return 1 if a cell fails, else 0."""
    found = {family: _read(folder / f"{family}.json") for family in FAMILIES}
    rows = [row for family in found.values() for row in family]
    parts = [HEAD.format(version=_version(), total=_total(rows))]
    parts += [_section(family, cells) for family, cells in found.items() if cells]
    path.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")
    print(_total(rows))
    return int(any(row["status"] in ("error", "wrong") for row in rows))


def _version() -> str:
    import keras

    return keras.__version__


def _read(path: Path) -> list[dict]:
    return json.loads(path.read_text()) if path.exists() else []


def _total(rows: list[dict]) -> str:
    rows = [row for row in rows if row["status"] != "skipped"]
    counts = {status: 0 for status in ("works", "refuses", "error", "wrong")}
    for row in rows:
        counts[row["status"]] += 1
    fail = counts["error"] + counts["wrong"]
    models = len({row["model"] for row in rows})
    return (
        f"{models} models, {len(rows)} cells: {counts['works']} work, "
        f"{counts['refuses']} refuse, {fail} fail."
    )


def _section(family: str, cells: list[dict]) -> str:
    models = list(dict.fromkeys(cell["model"] for cell in cells))
    columns = list(dict.fromkeys(cell["feature"] for cell in cells))
    notes: dict[str, int] = {}
    table = {(cell["model"], cell["feature"]): _cell(cell, notes) for cell in cells}
    lines = [f"## {TITLES[family]}", ""]
    lines.append(f"| model | {' | '.join(f'`{name}`' for name in columns)} |")
    lines.append("|---" * (len(columns) + 1) + "|")
    for model in models:
        row = [table.get((model, feature), "") for feature in columns]
        lines.append(f"| {model} | {' | '.join(row)} |")
    lines.append("")
    lines += [f"{number}. {_escaped(note)}" for note, number in notes.items()]
    return "\n".join([*lines, ""])


def _cell(cell: dict, notes: dict[str, int]) -> str:
    status, detail = cell["status"], cell["detail"]
    if status == "works":
        return "yes"
    if status == "refuses":
        # The names of one model would make a note for each.
        detail = re.sub(r"\s*Received:.*", "", detail)
    number = notes.setdefault(detail, len(notes) + 1)
    word = {"refuses": "no", "skipped": "not here"}.get(status, "**fails**")
    return f"{word} *({number})*"


def _escaped(text: str) -> str:
    text = re.sub(r"\x1b\[\d*m", "", text)
    text = re.sub(r"/tmp/\S+", "...", text)
    return re.sub(r"([*_<>|\[\]{}])", r"\\\1", text)
