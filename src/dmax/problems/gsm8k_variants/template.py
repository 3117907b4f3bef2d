"""A problem whose numbers can be followed, and the draws of other numbers for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import NamedTuple

from dmax.problems.gsm8k_variants.expressions import evaluated
from dmax.problems.gsm8k_variants.names import GENDER, GIVEN
from dmax.problems.gsm8k_variants.numbers import Node, Number
from dmax.problems.gsm8k_variants.texts import Piece

SWEEPS = 2
"""How often each number of a problem is drawn anew."""
TRIES = 20
"""Draws of one number before it stays as it is."""


class Range(NamedTuple):
    """What a number is drawn from: ``(low + step * k) / scale`` for ``k < size``."""

    low: int
    step: int
    size: int
    scale: int


class Step(NamedTuple):
    """A result and what it must keep to."""

    target: int
    node: Node
    scale: int
    """A power of ten that makes it whole."""
    low: Number
    high: Number


@dataclass(frozen=True)
class Template:
    """A problem whose numbers can be followed."""

    question: tuple[Piece, ...]
    solution: tuple[Piece, ...]
    answer: int
    values: tuple[Number, ...]
    """The original's: numbers of the question, constants, results."""
    ranges: dict[int, Range]
    steps: dict[int, tuple[Step, ...]]
    """For each free number the results that hang on it, in the order in which they are worked out."""
    all_steps: tuple[Step, ...]
    neighbours: dict[int, tuple[tuple[int, ...], tuple[int, ...]]]
    """For each free number those that are less and those that are more, next to it."""
    order: tuple[tuple[int, int], ...]
    """Pairs of values of which the first is less than the second, where all keep their order; else empty."""
    names: tuple[str, ...]

    def drawn(self, random: Random) -> list[Number]:
        """Draw values in place of the original's, as far as sensible ones are found."""
        values = list(self.values)
        free = list(self.ranges)
        for _ in range(SWEEPS):
            random.shuffle(free)
            for index in free:
                values = self._redrawn((index,), values, random)
        for index in free:
            if values[index] == self.values[index] and len(free) > 1:
                other = free[int(random.random() * len(free))]
                values = self._redrawn((index, other), values, random)
        return values

    def _redrawn(self, indices: tuple[int, ...], values: list[Number], random: Random) -> list[Number]:
        """Draw the values anew at some places; they stay where no draw is sensible."""
        steps = self.steps[indices[0]] if len(indices) == 1 else self.all_steps
        for _ in range(TRIES):
            changed = values.copy()
            for index in indices:
                changed[index] = self._draw(index, random)
            if all(self._is_in_place(index, changed) for index in indices) and self._carried_out(steps, changed):
                return changed
        return values

    def _draw(self, index: int, random: Random) -> Number:
        low, step, size, scale = self.ranges[index]
        scaled = low + step * int(random.random() * size)
        return scaled if scale == 1 else Fraction(scaled, scale)

    def _is_in_place(self, index: int, values: list[Number]) -> bool:
        """Tell whether a number is another than the original's, of its kind, and in order."""
        value = values[index]
        if value == self.values[index] or (value.denominator == 1) != (self.ranges[index].scale == 1):
            return False
        below, above = self.neighbours[index]
        return all(values[i] < value for i in below) and all(values[i] > value for i in above)

    def _carried_out(self, steps: Sequence[Step], values: list[Number]) -> bool:
        """Work the steps out, in place; False at the first result that is not sensible."""
        for index, node, scale, low, high in steps:
            value = evaluated(node, values)
            if not low <= value <= high or (not isinstance(value, int) and scale % value.denominator):
                return False
            values[index] = value
        return all(values[less] < values[more] for less, more in self.order)

    def renamed(self, random: Random) -> list[str]:
        """Draw new names, each of the gender of the one that it takes the place of."""
        taken = set(self.names)
        names = []
        for name in self.names:
            given = GIVEN[GENDER[name]]
            while (new := given[int(random.random() * len(given))]) in taken:
                pass
            taken.add(new)
            names.append(new)
        return names
