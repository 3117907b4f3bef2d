"""GSM8K's rows with their calculator notes made part of the text."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dmax.problems.gsm8k_variants.numbers import DIGITS
from dmax.problems.word_problems import equations

_NOTE = re.compile(rf"([$€£¥]?)(?:(?<=[$€£¥]) *)?<<([^<>]*)>> *([$€£¥]?)({DIGITS}|\.\d+)?")
_CALCULATED = re.compile(r"(?![-+*/ ])(?=.*\d[ )%]*[-+*/])[\d.+\-*/() %]+")
_TIMES = re.compile(r"(?:(?<=[\d)%])| )[xX×]\s?(?=[$€£¥]?[\d(.])")
_BARE_DECIMAL = re.compile(r"(?<=[\s$€£¥(*x+/=-])\.(?=\d)")
_MINUS = re.compile(r"(?<=[\d)%\w]) ?[–−—] ?(?=[$€£¥]?[\d(])")
_SIGN_BETWEEN = re.compile(r"(?<=[\d)%]) ?([-+*/x=]) ?(?=[$€£¥]?[\d(])")


def plain_row(row: Mapping[str, str]) -> dict[str, str]:
    """Make calculator notes part of a row's text, with times signs as ``*`` and equations spaced."""
    body, _, answer = row["answer"].partition("####")
    lines = [_spaced(_without_notes(_tidy(line))) for line in body.strip().splitlines()]
    answer = answer.strip().replace(",", "").lstrip("$")
    solution = "\n".join([*lines, f"#### {answer}"])
    return {"question": re.sub(r"[^\S\n]+", " ", row["question"].strip()), "solution": solution, "answer": answer}


def _tidy(line: str) -> str:
    line = re.sub(r"\s+", " ", line.strip())
    line = _MINUS.sub(" - ", _TIMES.sub(" * ", line))
    return re.sub(r"\$ (?=\d)", "$", line)


def _without_notes(line: str) -> str:
    """Leave each note's expression out of a line where the text has it, and write it out where it has not."""
    text, at = "", 0
    for note in _NOTE.finditer(line):
        text += line[at : note.start()]
        expression, _, noted = note[2].rpartition("=")
        shown = note[4] or noted.strip()
        result = (note[1] or note[3]) + shown
        if _CALCULATED.fullmatch(expression.strip()) and not _ends_in(text, expression, result):
            text += _lead(text, expression)
        text += result
        at = note.end()
    return _BARE_DECIMAL.sub("0.", text + line[at:])


def _bare(text: str) -> str:
    return re.sub(r"[\s$€£¥,]", "", text)


def _ends_in(text: str, expression: str, result: str) -> bool:
    """Tell whether the text ends in an equation with this result."""
    if _bare(text[-3 * len(expression) - 20 :]).endswith(_bare(expression) + "="):
        return True
    whole = _BARE_DECIMAL.sub("0.", text + result)
    found = equations(whole)
    return bool(found) and found[-1].end == len(whole)


def _lead(text: str, expression: str) -> str:
    """Tell what is missing between a text and the result of an expression."""
    space = "" if not text or text[-1] in " ($" else " "
    if _bare(text).endswith(_bare(expression)):
        return f"{space}= "
    return f"{space}{expression.strip()} = "


def _spaced(line: str) -> str:
    """Put a space on either side of every sign of a line's equations."""
    for equation in reversed(equations(line)):
        start, end = equation.start, equation.result
        spaced = _SIGN_BETWEEN.sub(r" \1 ", line[start : end + 1])[:-1]
        line = line[:start] + re.sub(r"\s*=\s*$", " = ", spaced) + line[end:]
    return line
