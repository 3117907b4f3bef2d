"""Gaps behind numbers, at times a space wider: ``3 * 4 = 12``, ``3  * 4 = 12``.

The templates behind the word problems give every solution the same letters, which a model soon knows by heart: nothing
but the numbers is uncertain. And where a number ends decides where all text behind it stands. Mostly one can guess how
many digits it will have. A model that is right about that in 97 of 100 cases commits the text behind it first, with a
confidence above any usual threshold; in the other three a number has to fit where it does not. Natural text is not like
that. As long as a gap is open, nothing behind a number is certain until the number is there.

How wide the next gap is must be the safest guess of all that is not certain, or a decoder that has to choose between
guesses begins somewhere behind it. So nothing else is left to chance: other words of other lengths were tried, and
other signs, and a block could then hardly be decoded out of order.
"""

from __future__ import annotations

import re
from random import Random

WIDE = 0.3
"""Share of the gaps that are wide."""

_SIGN = re.compile(r"(?<=[\d)]) ?([-+*/x=]) ?(?=[$€£¥]?[\d(])")
_GAP = re.compile(r"(?<=\d)([^\s\d]{0,2})(?=\s)")
"""The first white space behind a number, but for what sticks to it."""


def vary_notation(solution: str, random: Random) -> str:
    """A worked solution, signs between spaces and gaps drawn; the line with the answer stays as it is."""
    body, mark, answer = solution.partition("####")
    even = _SIGN.sub(r" \1 ", body)
    return _GAP.sub(lambda match: match[1] + " " * (random.random() < WIDE), even) + mark + answer
