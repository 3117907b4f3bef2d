"""Spaces of different widths: ``3  * 4 = 12 eggs``, ``3  * 4 =  12 eggs``.

The templates behind the word problems give every solution the same letters, which a model soon knows by heart: nothing
but the numbers is uncertain. And where a number ends decides where all text behind it stands. Mostly one can guess how
many digits it will have. A model that is right about that in 97 of 100 cases commits the text behind it first, with a
confidence above any usual threshold; in the other three a number has to fit where it does not. Natural text is not like
that: what follows depends on what was said, and the further ahead, the less is certain. Here, too:

- the gap behind a number depends on the number, so that nothing behind it has a certain place before the number is
  there, and next to it the gap is certain;
- any space may be a space wider. Rarely: the next token must stay the safest guess, or a decoder begins somewhere
  behind it. So nothing else is left to chance: other words of other lengths were tried, and other signs, and gaps that
  are wide at random, and a block could then hardly be decoded out of order.
"""

from __future__ import annotations

import re
from random import Random

STRETCHED = 0.06
"""Share of the spaces that are wider by chance."""

_SIGN = re.compile(r"(?<=[\d)]) ?([-+*/x=]) ?(?=[$€£¥]?[\d(])")
_GAP = re.compile(r"(\d(?:[\d.,]*\d)?)([^\s\d]{0,2})(?=\s|$)")
"""A number and what sticks to it, in front of white space or the end."""
_SPACE = re.compile(r" (?=\S)")


def gap_is_wide(number: str) -> bool:
    """Whether two spaces belong behind ``number``: if its last digit other than 0 is odd."""
    return number.rstrip("0.,")[-1:] in tuple("13579")


def vary_notation(solution: str, random: Random) -> str:
    """A worked solution, signs between spaces and spaces set."""
    body, mark, answer = solution.partition("####")
    text = _SIGN.sub(r" \1 ", body) + mark + answer
    text = _GAP.sub(lambda match: match[0] + " " * gap_is_wide(match[1]), text)
    return _SPACE.sub(lambda match: " " * (1 + (random.random() < STRETCHED)), text)
