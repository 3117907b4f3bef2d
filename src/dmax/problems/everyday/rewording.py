"""Rewording: one problem in other words, so that a model learns what is asked rather than how scenarios are told.

Nouns are exchanged in question and solution alike, names give way to people by their part ("my uncle", "the nurse"),
phrases of the question to others that mean the same; sentences that do not matter are added, the question comes first,
numbers are spelled out. The numbers and the answer stay.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any

from dmax.problems.everyday.wording import number_word

_NOUN_SHARE, _PHRASE_SHARE, _ASIDE_SHARE, _FIRST_SHARE, _SPELLED_SHARE, ROLE_SHARE = 0.5, 0.3, 0.1, 0.12, 0.2, 0.3
_SAME_KIND = 0.7
"""Share of exchanged nouns that stay in their class; people, containers and places always do."""
_FREE = ("things", "food", "animals", "growing", "vehicles")
"""Classes whose nouns can stand for each other."""
_ASKED = re.compile(r"(How (?:many|much|long|old|far)|What)\b[^.?!]*\?$")
_STARTS = frozenset(
    (
        "There",
        "The",
        "A",
        "An",
        "Each",
        "Every",
        "He",
        "She",
        "They",
        "We",
        "My",
        "Our",
        "In",
        "On",
        "At",
        "One",
        "Half",
        "It",
        "This",
    )
)
_UNIT = r" ?(?:cm|km|kg|mm|ml|m|g|l|h|am|pm|a\.m|p\.m|min|mins|hrs|ct|dollar bill|USD)\b"
_ALONE = re.compile(rf"(?<![\w$€£.,:/°-])(?<!USD )(?<!EUR )(\d{{1,2}})(?![\w%:/°$€¢-]|[.,]\d|{_UNIT}| [€%])")
# Facts about these are needed to answer; another noun has others.
_FACTS = re.compile(r"\b(?:legs?|wheels?|sides?|corners?|wings?|strings?|eyes?|arms?|dozens?|deck|alphabet|keys)\b")


@cache
def _lists() -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath("rewording.toml").read_text(encoding="utf-8"))


@cache
def _nouns() -> dict[str, tuple[str, str, str]]:
    """Return class, plural and singular of every noun, by each of its two forms."""
    found: dict[str, tuple[str, str, str]] = {}
    for kind, words in _lists()["nouns"].items():
        for word in words:
            plural, bar, singular = word.partition("|")
            entry = kind, plural, singular if bar else plural.removesuffix("s")
            for form in entry[1:]:
                found.setdefault(form, entry)
    return found


@cache
def _noun_pattern() -> re.Pattern[str]:
    return re.compile(rf"\b(?:(an?) )?({'|'.join(sorted(_nouns(), key=len, reverse=True))})\b", re.IGNORECASE)


@cache
def _phrases() -> list[tuple[re.Pattern[str], list[str]]]:
    return [(re.compile(pattern), others) for pattern, others in _lists()["phrases"].items()]


def role(pronoun: str, random: Random, taken: set[str]) -> str:
    """Draw who stands where a name would: ``my aunt`` for ``she``."""
    return random.choice([part for part in _lists()["roles"][pronoun] if part not in taken])


def reword(question: str, solution: str, random: Random) -> tuple[str, str]:
    """Return question and solution in other words; the numbers and the answer are the same."""
    if random.random() < _NOUN_SHARE and not _FACTS.search(question):
        question, solution = _with_other_nouns(question, solution, random)
    question = _with_other_phrases(question, random)
    if random.random() < _ASIDE_SHARE:
        question = _with_aside(question, random)
    elif random.random() < _FIRST_SHARE:
        question = _question_first(question)
    if random.random() < _SPELLED_SHARE:
        question = _spelled_out(question, random)
    return question, solution


def _with_other_nouns(question: str, solution: str, random: Random) -> tuple[str, str]:
    instead: dict[str, tuple[str, str, str]] = {}
    for match in _noun_pattern().finditer(question):
        noun = _nouns()[match[2].lower()]
        if noun[1] not in instead:
            instead[noun[1]] = _another(noun, random, {other[1] for other in instead.values()} | set(instead))

    def exchanged(match: re.Match[str]) -> str:
        noun = _nouns()[match[2].lower()]
        other = instead.get(noun[1])
        if other is None:
            return match[0]
        # Where both forms of a noun are the same, the article tells which it is.
        is_plural = match[2].lower() == noun[1] and not match[1]
        word = other[1] if is_plural else other[2]
        word = word[:1].upper() + word[1:] if match[2][0].isupper() else word
        if not match[1]:
            return word
        article = match[1][0] + ("n" if word[0].lower() in "aeiou" else "")
        return f"{article} {word}"

    return _noun_pattern().sub(exchanged, question), _noun_pattern().sub(exchanged, solution)


def _another(noun: tuple[str, str, str], random: Random, taken: set[str]) -> tuple[str, str, str]:
    kind = noun[0]
    if kind in _FREE and random.random() > _SAME_KIND:
        kind = random.choice(_FREE)
    choices = [entry for entry in _of_kind(kind) if entry[1] not in taken]
    return random.choice(choices) if choices else noun


@cache
def _of_kind(kind: str) -> list[tuple[str, str, str]]:
    return sorted({entry for entry in _nouns().values() if entry[0] == kind})


def _with_other_phrases(question: str, random: Random) -> str:
    for pattern, others in _phrases():
        if random.random() < _PHRASE_SHARE and pattern.search(question):
            question = pattern.sub(random.choice(others), question)
    return question


def _with_aside(question: str, random: Random) -> str:
    """Put a sentence without a number in front, or before the question."""
    asides = _lists()["asides"]
    at = question.rfind(". ")
    if at > 0 and random.random() < 0.5:
        return f"{question[: at + 2]}{random.choice(asides['between'])} {question[at + 2 :]}"
    return f"{random.choice(asides['before'])} {question}"


def _question_first(question: str) -> str:
    """Turn "A. B. How many?" into "How many if A and B?", where the sentences allow it."""
    asked = _ASKED.search(question)
    before = question[: asked.start()].strip() if asked else ""
    if asked is None or not before.endswith(".") or re.search(r"[?!:]|\bif\b", before):
        return question
    told = re.split(r"(?<=[a-z\d%])\.\s+", before.removesuffix("."))
    told = [part[0].lower() + part[1:] if part.split()[0] in _STARTS else part for part in told if part]
    return f"{asked[0][:-1]} if {' and '.join(told)}?" if 1 <= len(told) <= 3 else question


def _spelled_out(question: str, random: Random) -> str:
    def spelled(match: re.Match[str]) -> str:
        word = number_word(int(match[1]))
        begins = match.start() == 0 or question[: match.start()].endswith((". ", "? ", "! "))
        return match[0] if random.random() < 0.3 else word.capitalize() if begins else word

    return _ALONE.sub(spelled, question)
