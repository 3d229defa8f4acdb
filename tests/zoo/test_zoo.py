"""A quick selection of the zoo for the gate, and the whole behind `-m slow`."""

import subprocess
import sys
from pathlib import Path

import pytest

from . import matrix, registry

ROOT = Path(__file__).parents[2]
# Cells that would catch what fails in silence; about 60 s on an idle machine.
QUICK: dict[str, tuple[str, ...]] = {
    "adapted_normalization": (
        "prune_once",
        "replace_head",
        "to_mc",
        "prune_channels_half",
    ),
    "unregistered_without_kwargs": ("prune_once",),
    "layer_without_get_config": ("fold_batch_norm",),
    "lambda_layer": ("replace_head",),
    "function_as_activation": ("to_mc",),
    "rnn_of_own_cell": ("prune_once",),
    "layer_shared_with_nested": ("prune_once",),
    "functional_with_own_call": ("mc_predict", "replace_head"),
    "nested_called_by_keyword": ("fold_batch_norm",),
    "augmentation": ("mc_predict",),
    "training_true_by_default": ("mc_predict",),
    "mixed_precision": ("prune_once",),
    "constants_in_the_graph": ("to_mc",),
    "weight_shared_twice": ("fold_batch_norm",),
    "frozen_backbone": ("gradual_unfreezing", "one_cycle"),
    "spectral_normalization": ("layerwise",),
    "regularized_already": ("regularizers_apply", "magnitude_pruning"),
    "inputs_as_list": ("find_lr",),
    "inputs_as_dict": ("signal_report",),
    "several_outputs": ("mc_predict",),
    "string_lookup": ("prune_once", "find_lr"),
    "own_data_set": ("find_lr",),
    "small_gpt": ("freeze",),
    "train_step_of_pairs": ("find_lr", "one_cycle"),
    "time_series_fcn": ("optimize_for_inference",),
}
CELLS = [(model, feature) for model, features in QUICK.items() for feature in features]


@pytest.mark.parametrize(("model", "feature"), CELLS, ids=map("-".join, CELLS))
def test_cell(model, feature):
    registry.load("user", "inputs", "vision", "text", "custom")
    outcome = matrix.run_cell(model, feature)
    if outcome.status == "skipped":
        pytest.skip(outcome.detail)
    assert not outcome.fails, outcome.detail


def test_page_has_every_architecture():
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    names = registry.load("user", "inputs", "vision", "text", "custom")
    assert not [name for name in names if f"| {name} |" not in page]


@pytest.mark.slow
@pytest.mark.parametrize("family", registry.FAMILIES)
def test_family(family):
    command = [sys.executable, "-m", "tests.zoo", "--family", family]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:]
