"""The command `python -m tests.zoo`."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Run the whole, a process for each family, or the cells that are named."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.zoo",
        description="Try each feature on each architecture. Without arguments the "
        "whole, a process for each family, and docs/compatibility.md is written.",
    )
    parser.add_argument("--family", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--model", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--feature", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--out", type=Path, help="where results are kept, as JSON")
    parser.add_argument("--trace", action="store_true", help="show whole tracebacks")
    parser.add_argument("--write", action="store_true", help="write the page alone")
    arguments = parser.parse_args()
    if arguments.write or not (arguments.family or arguments.model):
        return _whole(arguments)
    return _part(arguments)


def _whole(arguments) -> int:
    from .page import write_page
    from .registry import FAMILIES

    folder = arguments.out or ROOT / ".zoo" / os.environ["KERAS_BACKEND"]
    folder.mkdir(parents=True, exist_ok=True)
    if not arguments.write:
        for family in FAMILIES:
            command = [sys.executable, "-m", "tests.zoo", "--family", family]
            command += ["--out", str(folder)]
            if arguments.feature:
                command += ["--feature", *arguments.feature]
            subprocess.run(command, cwd=ROOT, check=False)
    return write_page(folder, ROOT / "docs" / "compatibility.md")


def _part(arguments) -> int:
    from . import features, matrix, registry

    builders = registry.load(*arguments.family)
    chosen = [
        name
        for name, (family, _) in builders.items()
        if (not arguments.family or family in arguments.family)
        and (not arguments.model or name in arguments.model)
    ]
    if unknown := set(arguments.model) - set(builders):
        sys.exit(f"no such model: {', '.join(unknown)}; there are {list(builders)}")
    outcomes = []
    for name in chosen:
        for feature in arguments.feature or features.FEATURES:
            if arguments.trace:
                features.FEATURES[feature](name)
                continue
            outcomes.append(matrix.run_cell(name, feature))
            matrix.show(outcomes[-1])
        if arguments.out and arguments.family:
            _keep(outcomes, arguments.out / f"{'_'.join(arguments.family)}.json")
    counts = {}
    for one in outcomes:
        counts[one.status] = counts.get(one.status, 0) + 1
    print(counts)
    return int(any(one.fails for one in outcomes))


def _keep(outcomes, path: Path) -> None:
    """Put cells beside those that an earlier run left, or in their places."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else []
    cells = {(row["model"], row["feature"]): row for row in before}
    cells |= {(one.model, one.feature): asdict(one) for one in outcomes}
    path.write_text(json.dumps(list(cells.values()), indent=1))


if __name__ == "__main__":
    sys.exit(main())
