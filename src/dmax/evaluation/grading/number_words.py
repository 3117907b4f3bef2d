"""Numbers that are written in words: ``twenty-five``, ``one hundred and twenty``, ``2 and a half``."""

from __future__ import annotations

import re

from dmax.problems.everyday.wording import number_word

_VALUES = {number_word(value): value for value in (*range(20), *range(20, 100, 10))}
_WORD = "|".join(_VALUES)
WORD = rf"(?:{_WORD})(?![\w-])"
"""A number of one word."""
_TIMES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_COUNTS = {"a": 1, "one": 1, "two": 2, "three": 3, "four": 4}
_SHARE = rf"(?P<count>{'|'.join(_COUNTS)})[\s-]+(?P<part>half|third|quarter|fourth|fifth)s?\b"
_NUMBER = re.compile(
    rf"(?P<before>[\s*_\"'({{]*(?:\\(?:text|textbf|mathrm)\s*\{{\s*)?)(?P<number>(?:{_WORD})"
    rf"(?:(?:[\s-]+|\s+and\s+(?!{_SHARE}))(?:{_WORD}|hundred|{'|'.join(_TIMES)}))*)(?![\w-])",
    re.IGNORECASE,
)
_ANYWHERE = re.compile(rf"\b(?!one\b(?!-|\s+(?:hundred|{'|'.join(_TIMES)})))(?=[a-z]){_NUMBER.pattern}", re.IGNORECASE)
_PART = re.compile(rf"(?<=[0-9])\s+and\s+{_SHARE}", re.IGNORECASE)
_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5}


def with_parts(text: str) -> str:
    """Return a text with ``2 1/2`` for "2 and a half", ``1 3/4`` for "1 and three quarters"."""
    return _PART.sub(lambda part: f" {_COUNTS[part['count'].lower()]}/{_PARTS[part['part'].lower()]}", text)


def spelt_as_digits(statement: str, *, whole: bool = False) -> str:
    """Return a statement with digits for the number in words that it begins with, or that it is as a whole."""
    match = _NUMBER.match(statement)
    if match is None or (whole and statement[match.end() :].strip(" .}*")):
        return statement
    total = part = 0
    for word in re.findall(r"[a-z]+", match["number"].lower()):
        if word == "hundred":
            part *= 100
        elif word in _TIMES:
            total, part = total + part * _TIMES[word], 0
        else:
            part += _VALUES.get(word, 0)
    value = f"{total + part}"
    return value if whole else with_parts(f"{match['before']}{value}{statement[match.end() :]}")


def spelt_anywhere(text: str) -> str:
    """Return a text with digits for every number in words but a bare "one"."""
    return _ANYWHERE.sub(lambda number: spelt_as_digits(number[0]), text)
