"""The numbers of a question: which may become others, of what kind they are, and what they are drawn from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from dmax.problems.gsm8k_variants.expressions import RESIDUES
from dmax.problems.gsm8k_variants.numbers import (
    FRACTION,
    LARGE,
    LARGE_WORDS,
    PARTS,
    RUN,
    SCALED,
    SCALES,
    WORD_PART,
    WORDS,
    Number,
    Unfit,
    Written,
    numbers_in,
    simplified,
    to_number,
)
from dmax.problems.gsm8k_variants.template import Range

_FIXED_BEFORE = re.compile(
    r"(?:[\dA-Za-z]|[:/#'.]|\d ?[-–]|\d to |\b(?:grade|chapter|room|size|version|level|route|highway|day|week|month|"
    r"year|quarter|step|floor|number|no\.|jan\w*|feb\w*|mar(?:ch)?|apr\w*|may|june?|july?|aug\w*|sept?\w*|oct\w*|nov\w*|"
    r"dec\w*|team|train|stage|phase|class|between(?: [$\d,.]+ and)?) )$",
    re.IGNORECASE,
)
_FIXED_AFTER = re.compile(
    r"(?:[:/'\"°]|st\b|nd\b|rd\b|th\b|[.,]\d|x\b|k\b|m\b| ?[-–] ?\d| to \d| ?(?:[ap]\.?m\b|o'clock)"
    r"|[- ](?:dollar[- ])?(?:bill|note)s?\b"
    r"|[- ](?:sided|wheeler|karat|inning|digit|star|way|piece set)|[- ](?:hundred|thousand|million|billion)\b"
    r"|[- ](?:of them\b|different\b|kinds? of|types? of|sets? of twins)|[\w '-]{0,40}:)",
    re.IGNORECASE,
)
"""What follows a number that stays: times, ordinals, bills, and counts of what is listed after them."""
_LISTED = re.compile(r"(?: [\w']+){1,3},? (?:named |called |namely )?[A-Z]\w+(?:, [A-Z]\w+)*,? and [A-Z]")
_FIXED_WORD_BEFORE = re.compile(r"\b(?:the|these|those|all|other|of|every|at|its|only) $", re.IGNORECASE)
_TOLD_APART = re.compile(
    r"\b(?:the (?:first|second|third|fourth|fifth|sixth|other|last|next|remaining|final)|another|one of)\b",
)
"""Where things are told apart one by one, their number stays."""
_MOST_TOLD_APART = 6
_OF_A = "(?:a|per|each|every|of the|in a|out of the)"
_CAPS: tuple[tuple[re.Pattern[str], int], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), most)
    for pattern, most in (
        (rf"(?:[\w-]+ ){{0,3}}(?:days?|times|nights?|mornings|evenings) {_OF_A} week", 7),
        (rf"(?:[\w-]+ ){{0,3}}hours? (?:\w+ ){{0,3}}{_OF_A} (?:\w+ )?(?:day|night|morning|evening|weekday|shift)", 12),
        (r"(?:-hour|hours? of sleep|hour (?:shift|day|workday))", 14),
        (rf"(?:days?|times) {_OF_A} month", 28),
        (rf"(?:[\w-]+ )?months? {_OF_A} year", 12),
        (rf"weeks? {_OF_A} month", 4),
        (rf"weeks? {_OF_A} year", 52),
        (r"minutes? (?:a|per|each|every|of each|of every|out of every) hour", 59),
        (r"[- ]years?[- ]old|years of age", 95),
        (r"(?:of|out of)(?: the| every| all)? (?:7|12|24|30)\b", 11),
    )
)
"""The most that a number can be, from what follows it."""


@dataclass
class Variable:
    """A number of the question, with all its occurrences."""

    value: Number
    kind: str = "plain"
    places: int = 0
    most: int | None = None
    fixed: bool = False
    spelled: bool = False
    cents: bool = False
    occurrences: list[Written] = field(default_factory=list)


def question_numbers(question: str) -> tuple[list[Variable], set[Number]]:
    """Find the numbers of a question that may change, by value, and the constants that its fractions bring in."""
    constants, spans = _constant_spans(question)
    told_apart = bool(_TOLD_APART.search(question.lower()))
    variables: dict[Number, Variable] = {}
    for number in numbers_in(question):
        if any(start < number.end and number.start < end for start, end in spans):
            continue
        variable = variables.setdefault(number.value, Variable(number.value))
        variable.occurrences.append(number)
        before, after = question[max(0, number.start - 30) : number.start], question[number.end : number.end + 60]
        _note_context(variable, number, before, after)
        if told_apart and variable.kind == "plain" and number.value <= _MOST_TOLD_APART:
            variable.fixed = True
    for constant in constants & set(variables):
        variables[constant].fixed = True
    if len(variables) > len(RESIDUES):
        raise Unfit("too many numbers")
    return list(variables.values()), constants


def _note_context(variable: Variable, number: Written, before: str, after: str) -> None:
    """Tell from the text around an occurrence what kind of number it is, and whether it may change."""
    spelled = not number.text[0].isdigit()
    if _stays(number, before, after, spelled):
        variable.fixed = True
    if re.match(r" ?(?:%|percent\b)", after):
        variable.kind = "percent"
    elif variable.kind == "plain" and (before.endswith("$") or re.match(r" (?:dollars?|cents?)\b", after)):
        variable.kind = "money"
    variable.cents |= bool(re.match(r" ?(?:cents?\b|¢)", after))
    variable.spelled |= spelled
    _, _, decimals = number.text.partition(".")
    variable.places = max(variable.places, len(decimals))
    for pattern, most in _CAPS:
        if pattern.match(after.lstrip()):
            variable.most = min(most, variable.most or most)


def _stays(number: Written, before: str, after: str, spelled: bool) -> bool:
    if number.value in (0, 1) or _FIXED_BEFORE.search(before) or _FIXED_AFTER.match(after):
        return True
    if spelled and _FIXED_WORD_BEFORE.search(before):
        return True
    small = number.value <= _MOST_TOLD_APART and not before.endswith("$")
    if small and _LISTED.match(after):
        return True
    return bool(re.fullmatch(r"(?:19|20)\d\d", number.text)) and not before.endswith("$")


def _constant_spans(question: str) -> tuple[set[Number], list[tuple[int, int]]]:
    """Find the fractions and long number words of a question: constants, and where they stand."""
    question = question.lower()
    constants: set[Number] = set()
    spans = []
    for match in FRACTION.finditer(question):
        constants |= _parts_of_fraction(int(match[2]), int(match[3]), int(match[1] or 0))
        spans.append(match.span())
    for match in WORD_PART.finditer(question) if any(word in question for word in PARTS) else ():
        constants |= _parts_of_fraction(WORDS.get(match[1], 1), PARTS[match[2]], 0)
        spans.append(match.span())
    for match in RUN.finditer(question) if any(word in question for word in LARGE) else ():
        words = re.split(r"[- ]", match[0])
        if not LARGE.isdisjoint(words):
            constants |= _parts_of_run(words)
            spans.append(match.span())
    for match in SCALED.finditer(question):
        scale = SCALES[match[2]]
        constants |= {to_number(match[1]), scale, to_number(match[1]) * scale}
        spans.append(match.span())
    return constants, spans


def _parts_of_fraction(numerator: int, denominator: int, whole: int) -> set[Number]:
    if not denominator:
        return set()
    fraction = Fraction(numerator, denominator)
    numbers = {numerator, denominator, denominator - numerator, whole}
    fractions = {fraction, 1 - fraction, 1 + fraction, whole + fraction}
    return {simplified(Fraction(number)) for number in numbers | fractions}


def _parts_of_run(words: Sequence[str]) -> set[Number]:
    """Return the value of number words such as three hundred and five, and those of its words."""
    total = current = 0
    parts: set[Number] = set()
    for word in words:
        if word in SCALES:
            current = max(current, 1) * SCALES[word]
            if word != "hundred":
                total, current = total + current, 0
        elif word != "and":
            current += 1 if word == "one" else WORDS.get(word) or LARGE_WORDS[word]
        parts.add(total + current)
    return parts


def range_of(variable: Variable) -> Range:
    """Tell what a number is drawn from: about half to twice of it, as round as it is."""
    scale = 1 if isinstance(variable.value, int) else 10**variable.places
    value = int(variable.value * scale)
    step = _step(value, scale)
    low, high = max(value // 2, 2 * step if value > 2 * step else min(value, step)), value * 9 // 5 + 1
    if scale == 1:
        low, high = max(low, 2), max(high, min(5, 2 * value + 1))
    if variable.kind == "percent":
        high = min(high, 95 * scale) if variable.value <= 100 else high
    if variable.most is not None:
        high = min(high, max(variable.most, value))
    if variable.spelled:
        high = min(high, 20)
    low = max(-(-low // step), 1) * step
    return Range(low, step, max((high - low) // step + 1, 1), scale)


def _step(value: int, scale: int) -> int:
    """Return the roundness of a number, and of those that may take its place."""
    if scale > 1:
        return next(step for step in (25, 10, 5, 1) if value % step == 0)
    for least, round_to, step in ((10_000, 1000, 500), (1000, 100, 100), (200, 50, 25), (100, 10, 10), (15, 5, 5)):
        if value >= least and value % round_to == 0:
            return step
    return 1
