r"""The same text with fewer ways to write it: one minus sign, ASCII digits, no raised digits, no LaTeX spacing."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from dmax.evaluation.grading.number_words import with_parts
from dmax.evaluation.grading.said import without_markup

_CHARACTERS = {
    **dict.fromkeys("−–‒―﹣－", "-"),
    **dict.fromkeys("⁄∕", "/"),
    **dict.fromkeys("∼〜～", "~"),
    **{"∨": " or ", "٬": ",", "٫": "."},
    **dict.fromkeys("∶：", ":"),
    **dict.fromkeys("×⋅·∙∗", r"\times "),
    **{"÷": r"\div ", "√": r"\sqrt ", "π": r"\pi ", "∞": r"\infty ", "º": "°", "˚": "°"},
    **dict.fromkeys("\u00a0\u2007\u2009\u202f\u2002\u2003", "\u00a0"),
    **dict.fromkeys("\u200b\u2060\ufeff", ""),
}
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_COMMAND_BEFORE_DIGIT = re.compile(r"(\\[A-Za-z]+)(?=[0-9.])")
_DASH = re.compile(r"(?P<minus>(?<!\S)—(?=[0-9]))|(?<=[0-9])—(?=[0-9])")
"""An em dash that is a minus, or parts two numbers; elsewhere it parts clauses."""
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|([0-9]+(?:\.[0-9]+)?|[a-z]))")
_NEGATIVE = re.compile(
    r"\b(?:negative|(?:(?<=\bis )|(?<=\bof )|(?<=\bto )|(?<=\bwas )|(?<=# )|(?<=: )|(?<=\*\*)|(?<=^))minus)"
    r"\s+(?=\$?[0-9.])",
    re.IGNORECASE,
)
_CALCULATION = re.compile(r"<<[^<>]*>>")
DECIMAL_COMMA = re.compile(r"(?<=[0-9])\{,\}(?=[0-9]{1,2}(?![0-9,{]))|(?<=(?<![0-9.,])0)\{,\}(?=[0-9])")
"""LaTeX's ``0{,}5``, not ``1{,}000``."""
_OPERATORS = re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])")
_WORDS = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|hbox|boldsymbol|bm|operatorname)\b"
)
_SPACES = re.compile(r"\\(?:[,;:!> ]|quad\b|qquad\b|left\b|right\b|displaystyle\b|[()\[\]])|(?<!\\)~")


def plain(text: str) -> str:
    r"""Return the text with one minus sign, ASCII digits and spelt-out vulgar fractions.

    Raised digits become ``^{…}``, ``\times5`` becomes ``\times 5``, ``negative 5`` becomes ``-5``, and the calculations
    ``<<3*4=12>>`` that GSM8K notes are left out.
    """
    text = _NEGATIVE.sub("-", with_parts(without_markup(text)))
    text = _DASH.sub(lambda dash: "-" if dash["minus"] else ";", text)
    text = _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}", text)
    text = _RAISED.sub(lambda raised: f"^{{{unicodedata.normalize('NFKC', raised[0]).replace('−', '-')}}}", text)
    text = _LOWERED.sub(lambda lowered: f"_{{{unicodedata.normalize('NFKC', lowered[0])}}}", text)
    if not text.isascii():
        text = "".join(map(_plain_character, text))
    return _COMMAND_BEFORE_DIGIT.sub(r"\1 ", _CALCULATION.sub("", text))


def without_latex(statement: str) -> str:
    r"""Return a statement, already :func:`plain`, without LaTeX spacing, delimiters and the commands around words."""
    statement = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", statement)
    statement = re.sub(r"\{\s*([0-9]+)\s*\\over\s*([0-9]+)\s*\}", r"\\frac{\1}{\2}", statement)
    statement = DECIMAL_COMMA.sub(".", statement)
    statement = re.sub(r"(?<=[0-9])(?:\\!|\\,|(?:\\text)?\{,\})+(?=\s*,?\s*[0-9]{3})|\{,\}", ",", statement)
    statement = re.sub(r",(?:\\[!, ]|\s)*,", ",", re.sub(r",\\!\s*", ",", statement))
    statement = re.sub(r"(?<=[0-9)])\*\*(?=[0-9(-])", "^", statement)
    statement = _OPERATORS.sub("*", re.sub(r"\\div(?![A-Za-z])", "/", statement))
    statement = re.sub(r"-{2,}", "-", _SPACES.sub(" ", statement))
    previous = ""
    while previous != statement:
        previous = statement
        statement = re.sub(_WORDS.pattern + r"\s*\{([^{}]*)\}", r" \1 ", statement)
    return statement.replace(r"\$", "$").replace(r"\%", "%")


@cache
def _plain_character(character: str) -> str:
    if character in _CHARACTERS:
        return _CHARACTERS[character]
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    if "VULGAR FRACTION" in unicodedata.name(character, ""):
        value = unicodedata.normalize("NFKC", character).replace("⁄", "/")
        return f" {value}"
    folded = unicodedata.normalize("NFKC", character)
    return folded if folded.isascii() and unicodedata.east_asian_width(character) in "FW" else character
