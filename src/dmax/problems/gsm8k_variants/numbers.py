"""Numbers as GSM8K writes them: digits, words, fractions."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import cache
from typing import NamedTuple

Number = int | Fraction
Node = int | tuple[str, "Node", "Node"]
"""A place in the list of a problem's values, or a sign between two nodes."""
DIGITS = r"\d+(?:,\d{3})*(?:\.\d+)?"
_TO_TWENTY = """
two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
twenty
"""
_TENS = "thirty forty fifty sixty seventy eighty ninety"
_ORDINALS = "half third fourth fifth sixth seventh eighth ninth tenth"
WORDS = {word: value for value, word in enumerate(_TO_TWENTY.split(), 2)}
SPELLED = {value: word for word, value in WORDS.items()}
LARGE_WORDS = {word: 10 * tens for tens, word in enumerate(_TENS.split(), 3)}
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
LARGE = frozenset((*LARGE_WORDS, *SCALES))
PARTS = {"halves": 2, "quarter": 4, "quarters": 4}
for _parts, _word in enumerate(_ORDINALS.split(), 2):
    PARTS |= {_word: _parts, _word + "s": _parts}
_ANY_WORD = "|".join(["one", *WORDS, *LARGE_WORDS, *SCALES])
_NUMBER = re.compile(rf"{DIGITS}|\b(?:{'|'.join(WORDS)})\b")
RUN = re.compile(rf"\b(?:{_ANY_WORD})(?:(?:[- ]| and )(?:{_ANY_WORD}))+\b|\b(?:{'|'.join(LARGE_WORDS)})\b")
"""Number words that make up one number: twenty-five, three hundred."""
WORD_PART = re.compile(rf"\b({'|'.join(['one', *WORDS])})[- ]({'|'.join(PARTS)})\b")
FRACTION = re.compile(r"(?:\b(\d+) )?(?<![\d.,/])\b(\d+) ?/ ?(\d+)\b(?![/,.]\d)")
SCALED = re.compile(rf"({DIGITS}) ?({'|'.join(SCALES)})\b")


class Unfit(Exception):
    """A row whose numbers cannot be followed; says why."""


class Written(NamedTuple):
    """A number as a text has it."""

    start: int
    end: int
    value: Number
    text: str


@cache
def to_number(text: str) -> Number:
    if text in WORDS:
        return WORDS[text]
    return simplified(Fraction(text.replace(",", "")))


def simplified(value: Fraction) -> Number:
    return value.numerator if value.denominator == 1 else value


def numbers_in(text: str) -> list[Written]:
    return [Written(*m.span(), to_number(m[0]), text[m.start() : m.end()]) for m in _NUMBER.finditer(text.lower())]


def decimals_of(value: Number) -> int:
    """Count its decimals.

    Raises:
        Unfit: they do not end.
    """
    for places in range(7):
        if 10**places % value.denominator == 0:
            return places
    raise Unfit("a result of many decimals")
