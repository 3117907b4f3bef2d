r"""One spelling for the LaTeX of an answer and of a reference, before they are compared by value.

What is no mathematics goes (punctuation, degrees, currency, ``\text{Answer: }``, the letter of a choice), and what the
comparison cannot read is rewritten (``0.\overline{3}``, ``x>3`` where an interval is asked for).
"""

from __future__ import annotations

import re
from fractions import Fraction

from dmax.evaluation.grading.arithmetic import MAGNITUDES
from dmax.evaluation.grading.number_words import spelt_as_digits
from dmax.evaluation.grading.plain_text import DECIMAL_COMMA, plain, without_latex
from dmax.evaluation.grading.said import said, without_markup
from dmax.evaluation.grading.statements import boxes_side_by_side, final_statement

_TEXT = r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|rm|it|sf)|mbox|hbox|bf|bold|boldsymbol)"
_STYLE = re.compile(r"\\(?:text)?color\s*\{[^{}]*\}|\\(?:underline|ang|num|bf|rm|large|Large)(?![A-Za-z])")
_DEGREES = re.compile(
    r"\s*(?:(?<=[0-9])\s*\^\s*(?:o|\{o\})(?![a-z])|\^\s*\{?\s*\\circ\s*\}?|°|\\degree\b|\\textdegree\b|\^\s*\{?°\}?)"
)
_CODE = r"(?:USD|EUR|GBP|INR|CAD|AUD|CHF|JPY|Rs)\b\.?"
_CURRENCY = re.compile(
    rf"(?:\b(?:US|A|C|HK|NZ|S))?\\\$|[£¥¢₠-⃀]|\\(?:pounds|euro|yen|textsterling|texteuro)(?![A-Za-z])"
    rf"|(?:^|(?<=\s))\$(?=[-0-9.])|^(?:{_TEXT}\s*\{{\s*{_CODE}\s*\}}|{_CODE})(?:\\ |\\,|[~\s])*(?=[-0-9.\\])"
)
_STATED = (
    r"(?:the\s+)?(?:final\s+|correct\s+|total\s+)?(?:(?:answer|solution|result|value|total|sum)(?:\s+is|\s*:|\s*=)+"
    r"|ans\b\.?\s*:?|(?:it|this|that|there)\s+(?:is|are)\b)"
)
_SAID = re.compile(
    rf"^(?:{_TEXT}\s*\{{\s*)?(?:\*\*)?(?:(?:so|thus|hence|therefore)\b,?\s*(?:{_STATED})?|{_STATED})"
    r"\s*:?\s*(?:\*\*)?(?P<closed>\})?\s*",
    re.IGNORECASE,
)
_OPTION = r"(?:(?i:option|choice|answer)\s+)?"
_LETTER = re.compile(
    rf"^(?:(?:{_TEXT})?\s*\{{\s*{_OPTION}\(?([A-J])\)?[.:)]*\s*\}}"
    rf"|\(\s*{_TEXT}\s*\{{\s*([A-J])\s*\}}\s*\)|{_OPTION}\(([A-J])\):?|{_OPTION}([A-J])[.:)])"
    r"(?:\\[ ,;:!]|\\q?quad\b|[\s~:])*(?=\S)"
)
_BARE_LETTER = re.compile(rf"\s*(?:{_TEXT}\s*\{{\s*)?{_OPTION}\(?([A-J])\)?[.:)]?\s*\}}?\s*")
_BOUND = re.compile(
    r"\b(?:or\s+(?:more|less|fewer|greater|above|below)|at\s+(?:least|most)|up\s+to|(?:more|less)\s+than)\b"
)
_REPEATING = re.compile(
    r"(?P<whole>[0-9]*)[.,](?P<once>[0-9]*)\s*(?P<brace>\{)?(?:\\(?:overline|bar|dot|widehat|widebar)"
    r"\s*(?:\{\s*(?P<again>[0-9]+)\s*\}|(?P<digit>[0-9]))|\((?P<round>[0-9]+)\))(?(brace)\})"
)
_BARRED = re.compile("(?:[0-9]\u0305)+")
"""Digits under combining overlines."""
_DOTS = re.compile(r"(?P<before>[0-9]*\.[0-9]*?)(?P<again>[0-9]{1,6}?)(?P=again){1,}(?:\.{3}|…|\\[lc]?dots)")
"""A decimal that goes on as its last digits do: three of one, or two of a group."""
_MIXED = re.compile(r"(?<![0-9./{])([0-9]+)\s+([0-9]+)/([0-9]+)(?![0-9])")
_ADDED_NEGATIVE = re.compile(r"\+\s*\(\s*-\s*([0-9.]+)\s*\)")
"""``+ (-5)``, of which ``(-5)i`` would be read as a call."""
_TRAILING = re.compile(rf"(?:\\[,;:! ]|[\s.,;:~。，、；]|\\q?quad|\\\\|{_TEXT}\s*\{{[\s.,;:]*\}})+$")
_DECIMAL_POWER = re.compile(r"\^\{?(-?[0-9]*\.[0-9]+)\}?")
_SIZE = re.compile(
    rf"(?<=[0-9])(?:\s+|\s*(?P<open>{_TEXT}\s*\{{\s*))(?P<size>hundred|thousand|million|billion|trillion)\b(?P<closed>\s*\}})?"
)
_ENDS = {"[": "[)", "]": "(]"}
_OPEN_ENDS = re.compile(r"([\[\]])([^\[\](),]+),([^\[\](),]+)([\[\]])")
"""An interval as the French write it, ``]2,5]``."""
_ALL = re.compile(
    r"^(?:\\text\s*\{\s*)?(?:all|any|every)\s+(?:real\s+)?(?:(?:numbers?|values?)\b\s*(?:of\b\s*)?)?\}?\s*"
)
_RELATION = re.compile(r"\s*(?:[<>≤≥≠]|\\(?:leq?|geq?|neq?|lt|gt|leqslant|geqslant|not)(?![A-Za-z]))")
_PLAIN_NUMBER = re.compile(r"-?[0-9.,\\!{}]+")
_PARTED = re.compile(
    rf"[0-9]\s*{_TEXT}\s*\{{(?!\s*(?:and|or|of|out\s+of)\s*\}})[^{{}}]*[a-zA-Z][^{{}}]*\}}\s*[0-9]"
    r"|[0-9](?:\s|\\[ ,;:]|\\q?quad)+(?![0-9]{3}(?![0-9]))[0-9]"
)
"""Two numbers that are parts of one quantity, such as ``3\text{ hours }20``, or whose sum or list is left open."""
_DENIED = re.compile(r"\b(?:not|neither|nor|never|no|cannot)\b|n't\b")
_UNITS = re.compile(
    r"\s+(?:(?:square|cubic)\s+)?(?:units?|degrees?|inch(?:es)?|feet|foot|yards?|miles?|(?:kilo|centi|milli)?met(?:er|re)s?"
    r"|cm|km|dollars?|cents?|hours?|minutes?|seconds?|days?|years?|percent)$"
)
_ENVIRONMENT = re.compile(r"\\begin\{(\w+)\}.*?\\end\{\1\}", re.DOTALL)
_NAME = r"[a-zA-Z](?:_\{?\w+\}?)?"
_OPERATORS = (
    (re.compile(r"\\(?:leqslant|leqq|leq|le)(?![A-Za-z])|≤|<="), "≤"),
    (re.compile(r"\\(?:geqslant|geqq|geq|ge)(?![A-Za-z])|≥|>="), "≥"),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\(?:neq|ne)(?![A-Za-z])|≠"), "≠"),
)
_THAN = (
    (
        r"(?:greater|more|larger|bigger|higher)\s+than\s+or\s+equal\s+to|at\s+least|no(?:t)?\s+(?:less|smaller|fewer)\s+than",
        "≥",
    ),
    (r"(?:less|smaller|lower|fewer)\s+than\s+or\s+equal\s+to|at\s+most|no(?:t)?\s+(?:more|greater|larger)\s+than", "≤"),
    (r"(?:greater|more|larger|bigger|higher)\s+than", ">"),
    (r"(?:less|smaller|lower|fewer)\s+than", "<"),
)
_IN_WORDS = tuple(
    (
        re.compile(
            r"(?<![A-Za-z])(?P<name>[a-zA-Z])\s*(?:\\text\s*\{\s*)?\s*(?:is|are|must\s+be|has\s+to\s+be|can\s+be)?\s*(?:strictly\s+|any\s+number\s+)?"
            rf"(?:{words})\s*\}}?\s*(?=[-+0-9.\\(])",
            re.IGNORECASE,
        ),
        sign,
    )
    for words, sign in _THAN
)
_CHOSEN = re.compile(
    r"(?:^|\b(?:answer|option|choice)\b(?:\s+is|\s*:)?(?:\s+(?:option|choice))?)[*(\s:]*"
    rf"(?:{_TEXT}\s*\{{)?\(?([A-J])[).*\s}}]*$"
)
"""The letter of a choice, all alone or so called."""
_PROSE = re.compile(r"(?:\\[a-zA-Z]+|[^a-zA-Z]|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z]))*$")
_BASE = re.compile(r"[0-9A-F ]+_\s*\{?\s*([0-9]+)\s*\}?")
_INTERVAL = re.compile(r"[(\[].+,.+[)\]]")


def stated_forms(answer: str) -> list[str]:
    r"""Return what an answer states, the likeliest first: its last box, with those before it that only "or" and "and"
    part from it, else the mathematics or the letter of a choice that its last sentence ends with. Without dollars or a
    box, LaTeX counts as it stands."""
    answer = said(answer)
    boxes = boxes_side_by_side(answer)
    if boxes:
        return [tidy(", ".join(boxes))]
    sentence = without_markup(final_statement(answer)).strip()
    if not sentence:
        return []
    marked = re.findall(r"\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]|`([^`]+)`", sentence)
    if marked:
        return [tidy("".join(marked[-1]).replace("**", "^"))]
    if r"\end{" in sentence and (laid_out := [found[0] for found in _ENVIRONMENT.finditer(answer)]):
        return [tidy(laid_out[-1])]
    trimmed = with_signs(_TRAILING.sub("", plain(sentence.strip("*_` "))))
    chosen = _CHOSEN.search(trimmed)
    if chosen:
        return [chosen[1]]
    if not re.search("[0-9]", trimmed):  # a few words
        ending = "" if _DENIED.search(trimmed) else re.split(r"\b(?:is|are|equals)\s+|[:=]\s*", trimmed)[-1]
        return [tidy(words) for words in (trimmed, ending) if 0 < len(words.split()) <= 4]
    trimmed = _UNITS.sub("", trimmed)
    found = _PROSE.search(trimmed)
    ending = found[0].strip() if found else ""
    forms = [tidy(trimmed), tidy(ending)] if re.search(r"[0-9]|\\[a-zA-Z]", ending) else []
    return list(dict.fromkeys(filter(None, forms)))


def tidy(content: str) -> str:
    """Return the content of a box in the spelling that comparisons read."""
    text = with_signs(DECIMAL_COMMA.sub(".", plain(content))).replace(r"\varnothing", r"\emptyset")
    text = _DOTS.sub(_as_repeating, _STYLE.sub("", text))
    text = _BARRED.sub(lambda barred: rf"\overline{{{barred[0].replace(chr(0x305), '')}}}", text)
    text = _OVERLINED.sub(r"\\overline{\1}", text)
    previous = None
    while text != previous:
        previous = text
        text = _unwrapped(_TRAILING.sub("", text.strip().removeprefix(r"\displaystyle").lstrip(" =")))
    text = _SAID.sub(lambda said: "" if said["closed"] or "{" not in said[0] else r"\text{", text, count=1)
    text = _CURRENCY.sub("", _DEGREES.sub("", _unwrapped(text)))
    text = _SIZE.sub(_as_power, _DECIMAL_POWER.sub(lambda power: f"^{{{Fraction(power[1])}}}", text))
    text = _OPEN_ENDS.sub(lambda ends: f"{_ENDS[ends[1]][0]}{ends[2]},{ends[3]}{_ENDS[ends[4]][1]}", text)
    text = _REPEATING.sub(_as_fraction, text).replace(r"+\infty", r"\infty")
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = _ADDED_NEGATIVE.sub(r"-\1", text)
    return spelt_as_digits(_unwrapped(text.strip()), whole=True)


_OVERLINED = re.compile(r"\\overline\s+([0-9])")


def _as_power(match: re.Match[str]) -> str:
    left_open = match["open"] and not match["closed"]
    return rf" \cdot {MAGNITUDES[match['size']]} " + (r"\text{" if left_open else "")


def with_signs(statement: str) -> str:
    """Return a statement with signs in place of words such as "is greater than", behind a variable."""
    if every := _ALL.match(statement):
        rest = statement[every.end() :]
        statement = (rest if re.match(r"[a-zA-Z](?![a-zA-Z])", rest) else f"x {rest}") if rest else r"(-\infty,\infty)"
    for words, sign in _IN_WORDS:
        statement = words.sub(rf"\g<name> {sign} ", statement)
    return statement


def _as_repeating(match: re.Match[str]) -> str:
    again, run = match["again"], match[0][len(match["before"]) :].rstrip(".…\\lcdots")
    if len(run) < 3:
        return match[0]
    return rf"{match['before']}\overline{{{again}}}"


def same_words(gold: str, given: str) -> bool | None:
    """Return whether two tidied answers are the same as written, or differ in what a comparison by value leaves out
    (the letter of a choice, the base of a number); None where their value decides."""
    if _BOUND.search(given) and not _BOUND.search(gold):
        return False
    if _RELATION.match(given) and not re.search(_RELATION.pattern + r"|[(\[]", gold):
        return False
    if _PLAIN_NUMBER.fullmatch(gold) and _PARTED.search(given) and "=" not in given:
        return False
    letter = _BARE_LETTER.fullmatch(gold)
    if letter:
        chosen = _BARE_LETTER.fullmatch(given) or _LETTER.match(given)
        return chosen is not None and letter[1] in chosen.groups() and given[chosen.end() :][:1] not in tuple("+*/^=")
    if _bare(gold) == _bare(given):
        return True
    bases = _BASE.fullmatch(gold.strip()), _BASE.fullmatch(given.strip())
    if bases[0] and bases[1] and bases[0][1] != bases[1][1]:
        return False
    return None


def comparable(gold: str, given: str) -> tuple[str, str]:
    """Return both with the letter of a choice left out, and as intervals where one is and the other an inequality."""
    chosen = _LETTER.match(given)
    if chosen and given[chosen.end() :].strip() and not _INTERVAL.fullmatch(gold):
        given = given[chosen.end() :].strip()
    if r"\cup" in gold:
        given = re.sub(rf"(?<=[)\]])\s*(?:{_TEXT}\s*\{{\s*)?(?:or\b|,)\s*\}}?\s*(?=[(\[])", r" \\cup ", given)
    intervals = as_interval(gold), as_interval(given)
    if (intervals[0] is None) != (intervals[1] is None) and (_is_interval(gold) or _is_interval(given)):
        return intervals[0] or _without_name(gold), intervals[1] or _without_name(given)
    return gold, given


def as_interval(statement: str) -> str | None:
    r"""Return the interval that an inequality in one variable describes, such as ``(3,\infty)`` for ``x>3``; None where
    the statement is something else."""
    text = without_latex(statement)
    for pattern, sign in _OPERATORS:
        text = pattern.sub(sign, text)
    builder = re.fullmatch(rf"\s*\\?\{{\s*{_NAME}\s*(?::|\||\\mid|\\vert)\s*(.+?)\\?\}}\s*", text)
    text = builder[1] if builder else text
    parts = re.split(r"\s+or\s+|\\lor|\\vee|\\cup", text)
    found = [_one_interval(part.strip()) for part in parts]
    return None if None in found else r" \cup ".join(part for part in found if part)


def _one_interval(text: str) -> str | None:
    both = re.split(r"\s+and\s+|\\land|\\wedge|,", text)
    if len(both) == 2:
        sides = [re.fullmatch(r"[(\[](.+),(.+)[)\]]", _one_interval(side.strip()) or "") for side in both]
        if sides[0] and sides[1]:
            low, high = (sides[0], sides[1]) if r"\infty" in sides[0][2] else (sides[1], sides[0])
            return f"{low[0][0]}{low[1]},{high[2]}{high[0][-1]}"
        return None
    if match := re.fullmatch(rf"([^<>≤≥≠]+?)\s*([<>≤≥])\s*{_NAME}\s*([<>≤≥])\s*([^<>≤≥≠]+)", text):
        left, first, second, right = (part.strip() for part in match.groups())
        if first in ">≥" and second in ">≥":
            left, first, second, right = right, second, first, left
        elif first in ">≥" or second in ">≥":
            return None
        return f"{'[' if first in '≤≥' else '('}{left},{right}{']' if second in '≤≥' else ')'}"
    if match := re.fullmatch(rf"{_NAME}\s*([<>≤≥≠])\s*([^<>≤≥≠]+)", text):
        sign, bound = match[1], match[2].strip()
    elif match := re.fullmatch(rf"([^<>≤≥≠]+?)\s*([<>≤≥≠])\s*{_NAME}", text):
        sign, bound = match[2].translate(str.maketrans("<>≤≥", "><≥≤")), match[1].strip()
    else:
        return None
    if sign == "≠":
        return rf"(-\infty,{bound}) \cup ({bound},\infty)"
    if sign in ">≥":
        return f"{'[' if sign == '≥' else '('}{bound},\\infty)"
    return f"(-\\infty,{bound}{']' if sign == '≤' else ')'}"


def _is_interval(text: str) -> bool:
    return _INTERVAL.fullmatch(without_latex(_without_name(text)).strip()) is not None


def _without_name(text: str) -> str:
    return re.sub(rf"^\s*{_NAME}\s*\\in(?![A-Za-z])\s*", "", text)


def _unwrapped(text: str) -> str:
    """Strip the braces or dollars around the whole, and what sets a value in letters."""
    if inside := re.fullmatch(rf"{_TEXT}\s*\{{([^{{}}]*[0-9][^{{}}]*)\}}", text):
        return inside[1].strip()
    if len(text) > 1 and text[0] == text[-1] == "$":
        return text[1:-1].strip()
    depth = 0
    for at, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0) if at == 0 or text[at - 1] != "\\" else 0
        if depth == 0 and at < len(text) - 1:
            return text
    return text[1:-1].strip() if text.startswith("{") and text.endswith("}") else text


def _bare(text: str) -> str:
    words = re.sub(r"\s+", "", without_latex(text))
    return words.casefold() if re.fullmatch(r"[a-zA-Z]{3,}", words) else words


def _as_fraction(match: re.Match[str]) -> str:
    once, again = match["once"], match["again"] or match["digit"] or match["round"]
    value = Fraction(int(match["whole"] or 0))
    value += Fraction(int(once or 0), 10 ** len(once)) + Fraction(int(again), 10 ** len(once) * (10 ** len(again) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
