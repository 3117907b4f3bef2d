"""Worked solutions said in other words, as different people would say them.

The templates behind the word problems give every solution the same wording, which a model soon knows by heart: nothing
but the numbers is uncertain. Natural text is not like that, and how many tokens a decoder can settle at a time hangs on
it. Here every turn of phrase is drawn: how a sentence begins, how an equation is set, which of two words is used.
Numbers, and the line with the answer, stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

OTHER_WORDING = 0.35
"""Share of the places with a choice that differ from the template."""

_OPENERS = ("So ", "Then ", "Now ", "Next, ", "After that, ", "This means ")
_GIVEN_OPENER = re.compile(r"^(?:So,?|Then|Thus,?|Therefore,?|Next,?|Now,?) +(?=\S)")
_UNCAPITALIZED = re.compile(
    r"^(?:The|There|He|She|It|They|We|His|Her|Their|Each|All|In|On|If|After|For|Since|With|From|Out|Add|Total|A|An)\b"
)
_KEPT_LINE = re.compile(r"^\s*(?:####|[-•*]|\d)")
_EQUATION = re.compile(r"(?<=[\d)]) ?([-+*/x=]) ?(?=[$€£¥]?[\d(])")
_ALTERNATIVES: dict[str, tuple[str, ...]] = {
    "in total": ("altogether", "in all"),
    "a total of": ("altogether", "all in all"),
    "number of": ("count of",),
    "amount of": ("sum of",),
    "there are": ("we have", "there will be"),
    "because": ("since", "as"),
    "left": ("remaining", "still there"),
    "find": ("work out", "compute"),
    "spent": ("paid out",),
    "bought": ("got",),
    "needs": ("has to have",),
    "has": ("now has", "has got"),
    "have": ("now have",),
    "will": ("is going to",),
    "means": ("tells us",),
    "more": ("additional",),
    "each": ("every single",),
    "per": ("for every",),
    "so": ("and so",),
    "therefore": ("hence", "for this reason"),
}
_CHOICE = re.compile(r"\b(" + "|".join(sorted(map(re.escape, _ALTERNATIVES), key=len, reverse=True)) + r")\b")


def reword(solution: str, random: Random) -> str:
    """A worked solution with its wording drawn anew; numbers and their order are kept."""
    return "\n".join(_reword_line(line, random) for line in solution.split("\n"))


def _reword_line(line: str, random: Random) -> str:
    if _KEPT_LINE.match(line) or not line.strip():
        return line
    line = _CHOICE.sub(lambda match: _draw(match[1], _ALTERNATIVES[match[1]], random), line)
    spacing = "" if random.random() < OTHER_WORDING else " "
    line = _EQUATION.sub(lambda match: f"{spacing}{_operator(match[1], random)}{spacing}", line)
    if random.random() >= OTHER_WORDING:
        return line
    body = _GIVEN_OPENER.sub("", line)
    if _UNCAPITALIZED.match(body):
        body = body[0].lower() + body[1:]
    return random.choice(_OPENERS) + body


def _operator(sign: str, random: Random) -> str:
    return ("x" if random.random() < OTHER_WORDING else "*") if sign in "*x" else sign


def _draw(words: str, others: Sequence[str], random: Random) -> str:
    return random.choice(others) if random.random() < OTHER_WORDING else words
