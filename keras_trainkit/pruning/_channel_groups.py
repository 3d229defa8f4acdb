"""Groups of channels that must be removed together.

Every channel of every tensor between layers has a number. A layer that passes channels
on, such as BatchNorm, outputs the numbers of its input; one that sums over them, such
as a convolution, outputs new numbers; an Add merges the numbers of its inputs
(union-find). Everything that ends up with the same number is cut together, wherever it
is: in kernels, biases, statistics, widths and constants.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

Numbers = np.ndarray
Width = tuple[tuple[Numbers, ...], Callable[..., Any]]
# Counts the remaining channels among some numbers, or selects them from an array.
Left = Callable[[Numbers], np.ndarray]
# Maps an operation's arguments to its arguments after the cut.
Change = Callable[[Left, tuple, dict], tuple[tuple, dict]]

Lay = tuple["Numbers | str", ...]
"""What lies along each axis of a tensor, the batch axis first: the numbers of channels,
or, where nothing is cut, the reason."""

POSITIONS = "meets an axis along which nothing can be cut"


@dataclass
class Slices:
    """The axes of a variable that are cut.

    Attributes:
        variable: The variable.
        axes: Maps an axis to the channel number at each position along it.
        units: The axis of the layer's own units; None if it has none.
        statistic: Whether the variable holds statistics of the data, not weights.
    """

    variable: keras.Variable
    axes: dict[int, Numbers]
    units: int | None = None
    statistic: bool = False


class Channels:
    """The channels of a model and which of them belong together.

    Attributes:
        slices: Maps the id of a variable to the parts of it that are cut.
        widths: For each layer, by argument name: the channels whose count determines
            the argument, and the function that computes it from the counts.
        changes: For each operation whose arguments are cut, the function that does so.
        outputs: For each layer that has its own units, their channel numbers.
        layers: All layers and operations, with their paths.
        entries: The layout of each symbolic input of the nested models, by its id.
    """

    def __init__(self) -> None:
        self.slices: dict[int, Slices] = {}
        self.widths: dict[Any, dict[str, Width]] = {}
        self.changes: dict[Any, Change] = {}
        self.outputs: dict[Any, Numbers] = {}
        self.layers: dict[Any, str] = {}
        self.entries: dict[int, Lay] = {}
        self._parents: list[int] = []
        self._reasons: dict[int, str] = {}

    def new(self, count: int, keep: str | None = None) -> Numbers:
        """Return numbers for new channels, which must be kept if `keep` says why."""
        first = len(self._parents)
        numbers = np.arange(first, first + count)
        self._parents.extend(numbers.tolist())
        if keep:
            self.keep(numbers, keep)
        return numbers

    def keep(self, numbers: Numbers | str, reason: str) -> None:
        """Mark channels as ones that must be kept."""
        if not isinstance(numbers, str):
            for root in self.roots(numbers):
                self._reasons.setdefault(int(root), reason)

    def join(self, a: Numbers, b: Numbers) -> None:
        """Merge the groups of channels, position by position."""
        for one, other in zip(self.roots(a), self.roots(b), strict=True):
            first, second = self._root(int(one)), self._root(int(other))
            if first != second:
                self._parents[second] = first
                if second in self._reasons:
                    self._reasons.setdefault(first, self._reasons[second])

    def meet(self, a: Numbers | str, b: Numbers | str) -> Numbers | str:
        """Merge the channels along two axes; return the result."""
        if isinstance(a, str):
            self.keep(b, a)
            # Prefer a reason that says more than that the axis is one of positions.
            return b if not isinstance(b, str) or a == POSITIONS else a
        if isinstance(b, str):
            self.keep(a, b)
        else:
            self.join(a, b)
        return a

    def only(self, lay: Lay, axes: Sequence[int], reason: str = POSITIONS) -> Lay:
        """Return a layout with channels on the given axes only; keep all others."""
        axes = [axis % len(lay) for axis in axes]
        for axis, numbers in enumerate(lay):
            if axis not in axes:
                self.keep(numbers, reason)
        return tuple(
            numbers if axis in axes or isinstance(numbers, str) else reason
            for axis, numbers in enumerate(lay)
        )

    def roots(self, numbers: Numbers) -> Numbers:
        """Return the root of the group of each channel."""
        return np.array([self._root(int(n)) for n in numbers], int)

    def reason(self, numbers: Numbers) -> str | None:
        """Return why the first kept one of these channels is kept; None if none is."""
        for root in self.roots(numbers):
            if int(root) in self._reasons:
                return self._reasons[int(root)]
        return None

    def is_kept(self, root: int) -> bool:
        """Whether a channel must be kept."""
        return root in self._reasons

    def groups(self) -> list[tuple[list[Any], list[int]]]:
        """Return the channels that can be cut, grouped by the layers they belong to.

        Returns:
            The layers of each group and the roots of its channels.
        """
        places: dict[int, dict[int, Any]] = {}
        for layer, numbers in self.outputs.items():
            for root in self.roots(numbers):
                if not self.is_kept(int(root)):
                    places.setdefault(int(root), {})[id(layer)] = layer
        groups: dict[frozenset, tuple[list[Any], list[int]]] = {}
        for root, where in places.items():
            found = groups.setdefault(frozenset(where), (list(where.values()), []))
            found[1].append(root)
        return list(groups.values())

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number

    def cut(
        self,
        variable,
        axes: dict[int, Numbers | str],
        units: int | None = None,
        statistic: bool = False,
    ) -> None:
        """Record the channels along a variable's axes; each use has the same axes."""
        if variable is None:
            return
        shape = variable.shape
        rank = len(shape)
        along = {
            axis % rank: self.new(shape[axis], numbers)
            if isinstance(numbers, str)
            else numbers
            for axis, numbers in axes.items()
        }
        units = None if units is None else units % rank
        new = Slices(variable, along, units, statistic)
        before = self.slices.setdefault(id(variable), new)
        for axis, numbers in along.items():
            self.join(before.axes[axis], numbers)

    def width(
        self, layer, name: str, *numbers: Numbers, make: Callable[..., Any] = int
    ) -> None:
        """Record that an argument of a layer depends on numbers of channels."""
        before, _ = self.widths.setdefault(layer, {}).setdefault(name, (numbers, make))
        for one, other in zip(before, numbers, strict=True):
            self.join(one, other)

    def units(self, layer, numbers: Numbers) -> None:
        """Record a layer's own units, and merge those of all its uses."""
        self.join(self.outputs.setdefault(layer, numbers), numbers)
