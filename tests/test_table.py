"""The table that every report is made of."""

from dataclasses import dataclass

from keras_trainkit._table import Report, Table

TABLE = Table(["layer", "n"], [["a", "1,000"], ["a longer name", ""]])


@dataclass(frozen=True, repr=False)
class Named(Report):
    """A report of nothing but its notes."""

    notes: tuple = ()

    def _table(self):
        return TABLE

    def _notes(self):
        return list(self.notes)


def test_columns_are_aligned_and_no_line_ends_in_spaces():
    assert TABLE.text().splitlines() == [
        "layer              n",
        "a              1,000",
        "a longer name",
    ]


def test_markdown_has_a_rule_that_aligns_numbers_right():
    assert TABLE.markdown().splitlines()[:2] == ["| layer | n |", "| --- | ---: |"]


def test_a_report_reads_the_same_in_the_terminal_and_in_a_notebook():
    report = Named(("one", "two"))
    assert repr(report) == report.summary() == TABLE.text() + "\none\ntwo"
    assert report._repr_markdown_() == TABLE.markdown() + "\n\n- one\n- two"
    assert Named().to_markdown() == TABLE.markdown()
