"""A quick selection of the zoo for the gate, and the whole behind `-m slow`."""

import subprocess
import sys
from pathlib import Path

import pytest

from . import matrix, registry

ROOT = Path(__file__).parents[2]
# Cells that would catch what fails in silence; about 60 s on an idle machine.
QUICK: dict[str, tuple[str, ...]] = {
    "mlp_with_dropout": ("prune_once", "mc_predict", "one_cycle", "gradual_unfreezing"),
}
CELLS = [(model, feature) for model, features in QUICK.items() for feature in features]


@pytest.mark.parametrize(("model", "feature"), CELLS, ids="-".join)
def test_cell(model, feature):
    registry.load("user", "inputs", "vision", "text", "custom")
    outcome = matrix.run_cell(model, feature)
    if outcome.status == "skipped":
        pytest.skip(outcome.detail)
    assert not outcome.fails, outcome.detail


@pytest.mark.slow
@pytest.mark.parametrize("family", registry.FAMILIES)
def test_family(family):
    command = [sys.executable, "-m", "tests.zoo", "--family", family]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:]
