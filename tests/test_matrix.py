"""The whole of tests/matrix.py, and that it covers what it says."""

import itertools

import pytest
from matrix import FACTORS, FEATURES, check, covering

CELLS = covering()


def test_every_two_values_occur_together():
    columns = [tuple(FEATURES), *FACTORS.values()]
    for (i, one), (j, other) in itertools.combinations(enumerate(columns), 2):
        assert {(c[i], c[j]) for c in CELLS} == set(itertools.product(one, other))


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids=["-".join(cell) for cell in CELLS])
def test_the_cell_does_what_it_should(cell):
    check(cell)
