"""Constants that the words of a problem bring in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from dmax.problems.gsm8k_variants.numbers import Number
from dmax.problems.gsm8k_variants.question import Variable

_CUES: dict[str, tuple[Number, ...]] = {}
"""Constants that a word may bring in."""
for _bringing, _constants in (
    ("half halves halfway halved other", (2, Fraction(1, 2), Fraction(3, 2))),
    ("twice double doubled doubles doubling both pair pairs couple couples twin twins parents bike bikes", (2,)),
    (
        "bicycle bicycles legs feet hands eyes arms ears shoes socks round semi biweekly weekend weekends perimeter",
        (2,),
    ),
    ("third thirds triple tripled triples thrice tricycle tricycles triplets triangle triangular", (3, Fraction(1, 3))),
    ("yard yards", (3, 36)),
    ("quarter quarters", (4, Fraction(1, 4), Fraction(3, 4), 25)),
    ("fourth fourths", (4, Fraction(1, 4), Fraction(3, 4))),
    ("quadruple quadrupled quadruplets square squares rectangle rectangular perimeter seasons", (4,)),
    ("legs paws wheels tires", (2, 3, 4, 6, 8)),
    ("fifth fifths", (5, Fraction(1, 5))),
    ("weekday weekdays workday workdays workweek", (5,)),
    ("sixth sixths cube", (6,)),
    ("seventh", (7,)),
    ("eighth eighths spider spiders octopus octopuses", (8,)),
    ("ninth", (9,)),
    ("tenth tenths", (10, Fraction(1, 10))),
    ("week weeks weekly", (4, 7, 52)),
    ("day days daily everyday", (7, 24, 30, 31, 365)),
    ("monday tuesday wednesday thursday friday saturday sunday", (7,)),
    ("month months monthly", (4, 12, 28, 30, 31)),
    ("year years yearly annual annually", (12, 52, 365, 366)),
    ("hour hours hourly", (24, 60, 3600)),
    ("minute minutes", (60, Fraction(1, 2))),
    ("second seconds", (60, 3600)),
    ("decade decades", (10,)),
    ("century centuries percent percentage cent cents dollars penny pennies", (100, Fraction(1, 100))),
    ("dime dimes", (10, Fraction(1, 10))),
    ("nickel nickels", (5, 20, Fraction(1, 20))),
    ("dozen dozens foot feet inch inches noon midnight clock", (12,)),
    ("mile miles", (5280, 1760)),
    ("ounce ounces pound pounds", (16,)),
    ("ton tons", (2000,)),
    ("cup cups pint pints quart quarts gallon gallons", (2, 4, 8, 16, 128)),
    ("kilometer kilometers kilometre km kilogram kilograms kg gram grams liter liters litre litres ml mm mg", (1000,)),
    ("meter meters metre metres cm centimeter centimeters", (10, 100, 1000)),
    ("deck decks", (52,)),
    ("overtime", (Fraction(3, 2),)),
    ("degrees angle angles circle", (90, 180, 360)),
    ("january march may july august october december", (31,)),
    ("april june september november", (30,)),
    ("february", (28, 29)),
):
    for _word in _bringing.split():
        _CUES[_word] = (*_CUES.get(_word, ()), *_constants)

_SAID: dict[str, tuple[Number, ...]] = {
    "half": (2, 50, Fraction(1, 2)),
    "twice": (2, 100, 200),
    "double": (2, 100, 200),
    "doubled": (2, 100, 200),
    "both": (2,),
    "couple": (2,),
    "pair": (2,),
    "triple": (3, 200, 300),
    "thrice": (3,),
    "third": (3,),
    "quarter": (4, 25),
    "fourth": (4, 25),
    "fifth": (5, 20),
    "tenth": (10,),
    "dozen": (12,),
}
"""Numbers that the words of a solution may say again."""


def cued_constants(text: str) -> set[Number]:
    constants: set[Number] = {100, Fraction(1, 100)} if "%" in text else set()
    for word in set(re.findall(r"[a-z]+", text.lower())):
        constants.update(_CUES.get(word, ()))
    return constants


def fix_what_is_said(variables: Sequence[Variable], question: str, body: str) -> None:
    """Fix the numbers that the solution says in other words than the question."""
    words = set(re.findall(r"[a-z]+", body.lower())) - set(re.findall(r"[a-z]+", question.lower()))
    said = {value for word in words for value in _SAID.get(word, ())}
    for variable in variables:
        variable.fixed |= variable.value in said
