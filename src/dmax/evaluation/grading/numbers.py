"""Every number of a text, exactly, as fractions: ``$1,234.50``, ``3/4``, ``2 1/2``, ``1.5 million``, ``-5``."""

from __future__ import annotations

import re
from fractions import Fraction

from dmax.evaluation.grading.arithmetic import (
    CURRENCY,
    DIGITS_IN_PROSE,
    MAGNITUDE,
    NotArithmetic,
    digits_value,
    leading_value,
    magnitude,
)
from dmax.evaluation.grading.plain_text import plain

_SIGN = r"(?<![\w)\]}.])[-+]"
_UP = r"(?:\{\s*(?P<up>[-+]?[0-9]+)\s*\}|(?P<up1>[0-9]))"
_DOWN = r"(?:\{\s*(?P<down>[0-9]+)\s*\}|(?P<down1>[0-9]))"
_ALONE = r"(?<![0-9A-Za-z_\u00c0-\u052f^.])(?<!\^\{)(?<!_\{)"
"""Before a number that belongs to no name, exponent or index, as those of x2, cm^2 and a_1 do. Scripts without spaces
between words may touch it."""
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN})?\(?(?:{CURRENCY}\s?)?(?P<late_sign>{_SIGN})?"  # -$5, -(1/3) and $-5
    rf"(?:(?P<root>\\sqrt(?:\[[0-9]+\])?\s*(?:\{{[0-9. ]+\}}|[0-9]+))"
    rf"|(?:{_ALONE}(?P<whole>[0-9]+)\s?(?:and\s)?)?\\[dtc]?frac\s*{_UP}\s*{_DOWN}"
    rf"|{_ALONE}(?:(?P<mixed>[0-9]+)\s+(?:and\s+)?(?=[0-9]+\s?/\s?[0-9]))?"
    rf"(?P<number>{DIGITS_IN_PROSE})(?:\s?/\s?(?P<by>[0-9]+(?!\.?[0-9])))?{MAGNITUDE}?"
    r"(?:\^(?:(?P<power>-?[0-9]+)|\{(?P<power_in>-?[0-9]+)\})"
    r"|\s?(?:\\times|x|\*)\s{0,2}10\^(?:(?P<tens>-?[0-9]{1,3})|\{(?P<tens_in>-?[0-9]{1,3})\}))?)"
)


def numbers(text: str) -> list[Fraction]:
    """Return every number of a text, in order."""
    return [value for value, _, _ in located_numbers(plain(text))]


def located_numbers(text: str) -> list[tuple[Fraction, int, int]]:
    """Return every number of a text that is plain already, with where it begins and ends."""
    found = ((_value(match), match.start(), match.end()) for match in _NUMBER.finditer(text))
    return [(value, start, end) for value, start, end in found if value is not None]


def _value(match: re.Match[str]) -> Fraction | None:
    part = match.groupdict()
    try:
        value = _size(part)
    except (ValueError, ZeroDivisionError):  # thousands of digits, which Python refuses to read; or a zero below
        return None
    return -value if "-" in (part["sign"], part["late_sign"]) else value


def _size(part: dict[str, str | None]) -> Fraction:
    if part["root"]:
        return leading_value(part["root"])[0]
    up, down = part["up"] or part["up1"], part["down"] or part["down1"]
    if up and down:
        return int(part["whole"] or 0) + Fraction(int(up), int(down))
    value = digits_value(part["number"] or "")
    if part["by"]:
        value = int(part["mixed"] or 0) + value / int(part["by"])
    value *= magnitude(part["ten"], part["size"], part["letter"])
    value *= Fraction(10) ** int(part["tens"] or part["tens_in"] or 0)
    power = part["power"] or part["power_in"]
    if power is None:
        return value
    if value.denominator != 1:
        raise NotArithmetic(power)
    return leading_value(f"{value}^{power}")[0]
