"""Whatever makes no sense is refused by name, and changes no model.

A selection; `python benchmarks/stress.py arguments` tries all of it.
"""

import functools

import bad_input
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_public_api import PUBLIC


def test_every_public_callable_has_a_sensible_call():
    assert not bad_input.missing(PUBLIC)


@functools.cache
def calls():
    found = bad_input.quick_calls()
    # Models and figures take a tenth of a second for each call.
    return {
        path: options
        for path, options in found.items()
        if not {"model", "num_classes"} & set(options)
        and not path.startswith(("kt.plots", "kt.datasets", "kt.metrics"))
    }


def test_sensible_calls_are_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    faults = {path: bad_input.refusal(path, calls()[path]) for path in calls()}
    assert {path for path, fault in faults.items() if fault is not None} == set()


@settings(derandomize=True, max_examples=150, deadline=None, database=None)
@given(st.data())
def test_bad_arguments_are_refused_by_name(data):
    path = data.draw(st.sampled_from(sorted(calls())))
    name, kind, options = data.draw(
        st.sampled_from(list(bad_input.changes(path, calls()[path]))),
        label="argument",
    )
    fault = bad_input.verdict(path, name, kind, options)
    assert not fault, f"{path}({name}={kind}): {fault}"


@pytest.mark.parametrize("kind", ["rank 5", "array of text"])
def test_mc_predict_names_what_the_model_does_not_take(kind):
    options = {"model": bad_input.learner(), "x": bad_input.BAD[kind]}
    assert bad_input.refusal("kt.uncertainty.mc_predict", options) == ""


def test_figures_name_their_arguments():
    options = {"histories": {"one": {"val_loss": [2.0, 1.0]}}, "ax": "abc"}
    assert bad_input.refusal("kt.plots.compare", options) == ""


def test_statistics_of_nan_are_refused():
    model = bad_input.learner()
    before = bad_input.state(model)
    options = {"model": model, "x": bad_input.BAD["NaN array"]}
    assert bad_input.refusal("kt.recalibrate_batch_norm", options) == ""
    assert bad_input.same(before, bad_input.state(model))
