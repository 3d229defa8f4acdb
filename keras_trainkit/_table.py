"""The table used by all reports, for the terminal and as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table of text cells: a header, and rows of the same length.

    Attributes:
        head: The name of each column.
        rows: The cells of each row. The first column is aligned left, the others right.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Return the table with its columns aligned by spaces."""
        lines = [self.head, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(_aligned(line, widths) for line in lines)

    def markdown(self) -> str:
        """Return the table as Markdown."""
        rule = ["---", *["---:"] * (len(self.head) - 1)]
        return "\n".join(
            f"| {' | '.join(line)} |" for line in (self.head, rule, *self.rows)
        )


class Report:
    """A result that reads as a table with notes below it.

    A subclass defines `_table` and, if it has any, `_notes`.
    """

    def _table(self) -> Table:
        raise NotImplementedError

    def _notes(self) -> list[str]:
        return []

    def summary(self) -> str:
        """Return the table and the notes, for the terminal."""
        return "\n".join([self._table().text(), *self._notes()])

    def to_markdown(self) -> str:
        """Return the table and the notes as Markdown."""
        notes = [f"- {note}" for note in self._notes()]
        return "\n".join([self._table().markdown(), *([""] if notes else []), *notes])

    # Dataclass subclasses need `repr=False`, or they would override this.
    def __repr__(self) -> str:
        return self.summary()

    # Notebooks display this.
    def _repr_markdown_(self) -> str:
        return self.to_markdown()


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    parts = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
    return "  ".join(parts).rstrip()
