"""Equations set as different people would set them: ``3 x 4 = 12``, ``3* 4 = 12``, ``3 x 4  = 12``.

The templates behind the word problems give every solution the same letters, which a model soon knows by heart: nothing
but the numbers is uncertain. Natural text is not like that, and how many tokens a decoder can settle at a time hangs on
it. Two things are drawn here.

*Signs*, and the space before them. Each choice is one token whichever way it falls.

*Gaps*: behind a number there may be one space more. Where a number ends decides where all text behind it stands. Mostly
one can guess how many digits it will have, and a model that is right about that in 97 of 100 cases commits the text
behind it first, with a confidence above any usual threshold; in the other three a number has to fit where it does not.
As long as a gap is open, nothing behind a number is certain until the number is there.

Other words of other lengths were tried before: a block could then hardly be decoded out of order.
"""

from __future__ import annotations

import re
from random import Random

OTHER_SIGN = 0.15
"""Share of the signs that are set differently."""
WIDE_GAP = 0.3
"""Share of the gaps behind numbers that are wide. It is greater than ``OTHER_SIGN``, so that the next sign is a safer
guess than text behind the next number."""

_SIGN = re.compile(r"(?<=[\d)]) ?([-+*/x=]) ?(?=[$€£¥]?[\d(])")
_GAP = re.compile(r"(?<=\d)([^\s\d]{0,2})(?=\s)")
"""The first white space behind a number, but for what sticks to it."""


def vary_notation(solution: str, random: Random) -> str:
    """A worked solution with its signs and gaps set anew; the line with the answer stays as it is."""
    body, mark, answer = solution.partition("####")
    signs = _SIGN.sub(lambda match: _set(match[1], random), body)
    return _GAP.sub(lambda match: match[1] + " " * (random.random() < WIDE_GAP), signs) + mark + answer


def _set(sign: str, random: Random) -> str:
    if sign in "*x" and random.random() < OTHER_SIGN:
        sign = "x" if sign == "*" else "*"
    return f"{sign} " if random.random() < OTHER_SIGN else f" {sign} "
