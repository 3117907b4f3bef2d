r"""One spelling for the LaTeX of an answer and of a reference, before they are compared by value.

What is no mathematics goes (punctuation, degrees, currency, ``\text{Answer: }``, the letter of a choice), and what the
comparison cannot read is rewritten (``0.\overline{3}``, ``x>3`` where an interval is asked for).
"""

from __future__ import annotations

import re
from fractions import Fraction

from dmax.evaluation.grading.plain_text import DECIMAL_COMMA, plain, without_latex
from dmax.evaluation.grading.said import said, without_markup
from dmax.evaluation.grading.statements import boxes_side_by_side, final_statement

_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|°|\\degree\b|\\textdegree\b|\^\s*\{?°\}?)")
_CURRENCY = re.compile(r"\\\$|[£€¥₹₩]|\\(?:pounds|euro|textsterling|texteuro)\b|(?:^|(?<=\s))\$(?=[-0-9.])")
_SAID = re.compile(
    r"^(?:\\(?:text|textbf|mathbf|mathrm|mbox)\s*\{\s*)?(?:\*\*)?"
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|solution|result)"
    r"(?:\s+is|\s*:|\s*=)+\s*:?\s*(?:\*\*)?(?P<closed>\})?\s*",
    re.IGNORECASE,
)
_LETTER = re.compile(
    r"^(?:\\(?:text|textbf|mathbf|mathrm|mbox|bf)\s*\{\s*\(?([A-J])\)?[.:)]?\s*\}"
    r"|\(\s*\\(?:text|textbf|mathbf|mathrm)\s*\{\s*([A-J])\s*\}\s*\)|\(([A-J])\)|([A-J])[.:)])"
    r"(?:\\[ ,;:!]|\\q?quad\b|[\s~:])*(?=\S)"
)
_BARE_LETTER = re.compile(r"\s*(?:\\(?:text|textbf|mathbf|mathrm|mbox)\s*\{\s*)?\(?([A-J])\)?[.:)]?\s*\}?\s*")
_BOUND = re.compile(
    r"\b(?:or\s+(?:more|less|fewer|greater|above|below)|at\s+(?:least|most)|up\s+to|(?:more|less)\s+than)\b"
)
_REPEATING = re.compile(
    r"(?P<whole>[0-9]*)\.(?P<once>[0-9]*)\s*(?:\\(?:overline|bar|dot|widehat)\s*(?:\{\s*(?P<again>[0-9]+)\s*\}|(?P<digit>[0-9]))"
    r"|\((?P<round>[0-9]+)\))"
)
_DOTS = re.compile(r"(?P<before>[0-9]*\.[0-9]*?)(?P<again>[0-9]{1,6}?)(?P=again){1,}(?:\.{3}|…|\\[lc]?dots)")
"""A decimal that goes on as its last digits do: three of one, or two of a group."""
_MIXED = re.compile(r"(?<![0-9./{])([0-9]+)\s+([0-9]+)/([0-9]+)(?![0-9])")
_ADDED_NEGATIVE = re.compile(r"\+\s*\(\s*-\s*([0-9.]+)\s*\)")
"""``+ (-5)``, of which ``(-5)i`` would be read as a call."""
_TRAILING = re.compile(r"(?:\\[,;:! ]|[\s.,;:~]|\\q?quad|\\\\)+$")
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
    r"(?:^|\b(?:answer|option|choice)\b(?:\s+is|\s*:)?(?:\s+(?:option|choice))?)[*(\s:]*([A-J])[).*\s]*$"
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
    trimmed = with_signs(_TRAILING.sub("", plain(sentence.strip("*_` "))))
    chosen = _CHOSEN.search(trimmed)
    if chosen:
        return [chosen[1]]
    found = _PROSE.search(trimmed)
    ending = found[0].strip() if found else ""
    if not re.search("[0-9]", trimmed):  # a few words
        return [tidy(trimmed)] if len(trimmed.split()) <= 4 else []
    forms = [tidy(trimmed), tidy(ending)] if re.search(r"[0-9]|\\[a-zA-Z]", ending) else []
    return list(dict.fromkeys(filter(None, forms)))


def tidy(content: str) -> str:
    """Return the content of a box in the spelling that comparisons read."""
    text = with_signs(DECIMAL_COMMA.sub(".", plain(content))).replace(r"\varnothing", r"\emptyset")
    text = _DOTS.sub(_as_repeating, text)
    text = _OVERLINED.sub(r"\\overline{\1}", text)
    previous = None
    while text != previous:
        previous = text
        text = _unwrapped(_TRAILING.sub("", text.strip().removeprefix(r"\displaystyle").lstrip(" =")))
    text = _SAID.sub(lambda said: "" if said["closed"] or "{" not in said[0] else r"\text{", text, count=1)
    text = _CURRENCY.sub("", _DEGREES.sub("", text))
    text = _REPEATING.sub(_as_fraction, text).replace(r"+\infty", r"\infty")
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = _ADDED_NEGATIVE.sub(r"-\1", text)
    return _unwrapped(text.strip())


_OVERLINED = re.compile(r"\\overline\s+([0-9])")


def with_signs(statement: str) -> str:
    """Return a statement with signs in place of words such as "is greater than", behind a variable."""
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
    """Strip the braces or dollars around the whole."""
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
