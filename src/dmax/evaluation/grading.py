r"""Reading what a worked solution ends with (algorithm.md#tasks-and-grading).

A solution states its answer after ``####``, else in ``\boxed{}``, else nowhere in particular, and then its last number
counts. Numbers are read exactly, as fractions: ``$1,234.50``, ``3/4``, ``2 1/2``, ``\frac{3}{4}``, ``-5``, ``25%``.
"""

from __future__ import annotations

import re
from fractions import Fraction

_DIGITS = r"(?:[0-9]{1,3}(?:(?:,\\!|\{,\}|\\,|,|[\u00a0\u2009\u202f])[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_CURRENCY = r"(?:(?:US)?\\?\$|[€£¥₹]|Rs\.?|USD)"
_SIGN = r"(?<![\w)\]}.])[-+]"
_UP = r"(?:\{\s*(?P<up>[-+]?[0-9]+)\s*\}|(?P<up1>[0-9]))"
_DOWN = r"(?:\{\s*(?P<down>[0-9]+)\s*\}|(?P<down1>[0-9]))"
_ALONE = r"(?<![\w^.])(?<!\^\{)(?<!_\{)"
"""Before a number that belongs to no name, exponent or index, as those of x2, cm^2 and a_1 do."""
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN})?\(?(?:{_CURRENCY}\s?)?(?P<late_sign>{_SIGN})?"  # -$5, -(1/3) and $-5
    rf"(?:(?:{_ALONE}(?P<whole>[0-9]+)\s?)?\\[dtc]?frac\s*{_UP}\s*{_DOWN}"
    rf"|{_ALONE}(?:(?P<mixed>[0-9]+)\s(?=[0-9]+\s?/\s?[0-9]))?"
    rf"(?P<number>{_DIGITS})(?:\s?/\s?(?P<by>[0-9]+(?!\.?[0-9])))?)"
)
_SEPARATORS = re.compile(r"[^0-9.]")
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅛": "1/8"}
_PLAIN = str.maketrans(
    {"−": "-", "–": "-", "﹣": "-", "－": "-", "⁄": "/", **{sign: f" {plain}" for sign, plain in _VULGAR.items()}}
)
_COMMAND_BEFORE_DIGIT = re.compile(r"(\\[A-Za-z]+)(?=[0-9.])")
_DECORATION = re.compile(
    r"(?:[\s*_`~≈=:{]|\\[(\[]|\$(?!\s*[-0-9.])|\\(?:boxed|text|mathbf|mathrm|textbf|approx)\b|[A-Za-z]\s*="
    r"|(?i:(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\b))*"
)
_MINUS_APART = re.compile(r"^-\s+")
_HEADING = re.compile(r"[0-9]+[.)]\**\s+\S")
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!Mr\.)(?<!Mrs\.)(?<!Ms\.)(?<!Dr\.)\s+(?=[^a-z])|\n+")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def final_number(text: str) -> Fraction | None:
    r"""The number after the last ``####``, else in the last ``\boxed{}``, else the last number at all.

    None where there is no number. A ``####`` that no number follows is taken for a heading, and a box without one for
    a remark.
    """
    text = _readable(text)
    for statement in reversed(_marked(text)):
        start = _DECORATION.match(statement)
        assert start is not None
        rest = _MINUS_APART.sub("-", statement[start.end() :])
        if _NUMBER.match(rest) and not _HEADING.match(rest):
            return _result(rest)
    for content in reversed(boxed(text)):
        number = _result(content)
        if number is not None:
            return number
    found = numbers(text)
    return found[-1] if found else None


def same_number(text: str, reference: str) -> bool:
    """Whether an answer ends with the reference's number, exactly."""
    given, expected = final_number(text), final_number(reference)
    return given is not None and given == expected


def numbers(text: str) -> list[Fraction]:
    """Every number of a text, in order."""
    values = (_value(match) for match in _NUMBER.finditer(_readable(text)))
    return [value for value in values if value is not None]


def boxed(text: str) -> list[str]:
    r"""What stands in each ``\boxed{}`` of a text, the outermost ones, in order; an unclosed box reaches to the end."""
    found = []
    position = 0
    while match := _BOX.search(text, position):
        position = _closing_brace(text, match.end())
        found.append(text[match.end() : position])
    return found


def final_statement(text: str) -> str:
    r"""The words an answer ends with: the line after the last ``####``, else the last ``\boxed{}``, else its last
    sentence."""
    marked = [statement for statement in _marked(text) if statement]
    if marked:
        return marked[-1]
    boxes = boxed(text)
    if boxes:
        return boxes[-1]
    sentences = [part for part in _SENTENCE_END.split(text) if re.search(r"\w", part)]
    return sentences[-1].strip() if sentences else ""


def _readable(text: str) -> str:
    r"""The same text with one minus sign, spelt-out vulgar fractions and ``\times5`` as ``\times 5``."""
    return _COMMAND_BEFORE_DIGIT.sub(r"\1 ", text.translate(_PLAIN))


def _marked(text: str) -> list[str]:
    """The first line with anything on it after each ``####``."""
    return [part.strip().partition("\n")[0].strip() for part in re.split(r"(?<!#)####(?!#)", text)[1:]]


def _result(statement: str) -> Fraction | None:
    """The first number of a statement, or of what an equation in it comes to."""
    after = statement.rpartition("=")[2]
    found = numbers(after) or numbers(statement)
    return found[0] if found else None


def _closing_brace(text: str, begin: int) -> int:
    depth = 1
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0) if text[position - 1] != "\\" else 0
        if depth == 0:
            return position
    return len(text)


def _value(match: re.Match[str]) -> Fraction | None:
    part = match.groupdict()
    try:
        if part["up"] or part["up1"]:
            value = Fraction(int(part["whole"] or 0)) + Fraction(
                int(part["up"] or part["up1"]), int(part["down"] or part["down1"])
            )
        else:
            value = Fraction(_SEPARATORS.sub("", part["number"]))
            if part["by"]:
                value = int(part["mixed"] or 0) + value / int(part["by"])
    except (ValueError, ZeroDivisionError):  # thousands of digits, which Python refuses to read; or a zero below
        return None
    return -value if "-" in (part["sign"], part["late_sign"]) else value
