"""From a scenario and a random source to a question, its worked solution and the answer."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from random import Random

from dmax.problems.everyday.rewording import ROLE_SHARE, reword, role
from dmax.problems.everyday.scenario import (
    RESULT,
    SLOT,
    Scenario,
    ScenarioError,
    Word,
    evaluate,
    first_names,
    holds,
    written,
)
from dmax.problems.everyday.wording import as_typed, number_word
from dmax.problems.working import working

MOST_TRIES = 200
"""Draws of a scenario's numbers before it is given up as one that cannot be met."""
_SHE = {"he": "she", "his": "her", "him": "her", "himself": "herself"}
_SMALL = 20
"""Numbers up to this are sometimes written as words."""
_VOWEL = re.compile(r"(?!one|uni|eu|use)[aeiou]|8|11\b|18\b", re.IGNORECASE)


@dataclass(frozen=True)
class Drawn:
    """The slots of one problem, filled."""

    numbers: dict[str, Fraction]
    results: tuple[Fraction, ...]
    """Of the solution, in its order."""
    words: dict[str, Word]
    people: dict[str, tuple[str, str]]
    """Name and pronoun, ``he`` or ``she``."""


@dataclass(frozen=True)
class Problem:
    """One word problem."""

    theme: str
    scenario: str
    question: str
    solution: str
    """Lines of text, each equation written out, and ``#### answer``."""
    answer: str


def draw(
    scenario: Scenario, random: Random, *, worked: bool = False, phrasing: int | None = None, reworded: float = 0.0
) -> Problem:
    """Draw a problem from a scenario.

    Args:
        scenario: what to draw from.
        random: decides everything that is free.
        worked: carry equations out in small steps (see :mod:`dmax.problems.working`).
        phrasing: index into ``scenario.ask``; drawn if None. A phrasing that is asked for is left as it is written.
        reworded: share of problems that are told in other words (see :mod:`dmax.problems.everyday.rewording`).

    Raises:
        ScenarioError: no draw met its conditions.
    """
    is_reworded = reworded > 0 and random.random() < reworded
    drawn = _fill(scenario, random, with_roles=is_reworded)
    ask = random.choice(scenario.ask) if phrasing is None else scenario.ask[phrasing]
    in_words = phrasing is None and random.random() < 0.12
    question = _render(ask, drawn, random if in_words else None)
    lines, answer = _solve(scenario, drawn, worked)
    solution = "\n".join([*lines, f"#### {answer}"])
    if is_reworded:
        question, solution = reword(question, solution, random)
    if phrasing is None:
        question = as_typed(question, random)
    return Problem(scenario.theme, scenario.name, question, solution, answer)


def _fill(scenario: Scenario, random: Random, *, with_roles: bool) -> Drawn:
    words = _draw_words(scenario, random)
    people = _draw_people(scenario, random)
    if with_roles:
        people = {slot: _in_a_role(person, people, random) for slot, person in people.items()}
    for _ in range(MOST_TRIES):
        numbers = {name: random.choice(choices) for name, choices in scenario.numbers.items()}
        try:
            for name, expression in scenario.let.items():
                numbers[name] = evaluate(expression, numbers)
        except ZeroDivisionError:
            continue
        if all(holds(condition, numbers) for condition in scenario.where):
            results = _sensible_results(scenario, numbers)
            if results is not None:
                return Drawn(numbers, results, words, people)
    raise ScenarioError(
        f"{scenario.theme}/{scenario.name}: none of {MOST_TRIES} draws gave results that are at least 0 with at most "
        "2 decimals and met its conditions; narrow its numbers, or build them up in let."
    )


def _draw_words(scenario: Scenario, random: Random) -> dict[str, Word]:
    taken: dict[str, list[Word]] = {}
    words = {}
    for name, (list_name, choices) in scenario.words.items():
        before = taken.setdefault(list_name, [])
        words[name] = random.choice([word for word in choices if word not in before])
        before.append(words[name])
    return words


def _draw_people(scenario: Scenario, random: Random) -> dict[str, tuple[str, str]]:
    people: dict[str, tuple[str, str]] = {}
    for slot in scenario.people:
        pronoun = random.choice(("he", "she"))
        taken = {name for name, _ in people.values()}
        people[slot] = random.choice([name for name in first_names()[pronoun] if name not in taken]), pronoun
    return people


def _in_a_role(person: tuple[str, str], people: Mapping[str, tuple[str, str]], random: Random) -> tuple[str, str]:
    if random.random() > ROLE_SHARE:
        return person
    return role(person[1], random, {name for name, _ in people.values()}), person[1]


def _sensible_results(scenario: Scenario, numbers: Mapping[str, Fraction]) -> tuple[Fraction, ...] | None:
    """Return the results of the solution; None where a number is below 0 or has more than two decimals."""
    values, results = dict(numbers), []
    try:
        for match in _result_slots(scenario):
            values[match[2]] = evaluate(_parsed(match[3]), values)
            results.append(values[match[2]])
    except ZeroDivisionError:
        return None
    are_sensible = all(value >= 0 and (value * 100).denominator == 1 for value in values.values())
    return tuple(results) if are_sensible else None


@cache
def _parsed(expression: str) -> ast.expr:
    """Parse the expression of a result; there are a few thousand, each drawn many times."""
    return ast.parse(expression, mode="eval").body


def _result_slots(scenario: Scenario) -> Iterator[re.Match[str]]:
    return (match for line in scenario.solve for match in RESULT.finditer(line))


def _solve(scenario: Scenario, drawn: Drawn, worked: bool) -> tuple[list[str], str]:
    """Return the lines of the solution, and the answer."""
    values = dict(drawn.numbers)
    now = replace(drawn, numbers=values)
    results = iter(drawn.results)
    lines, answer = [], ""
    for line in scenario.solve:
        parts, at = [], 0
        for match in RESULT.finditer(line):
            before = _render(line[at : match.start()], now)
            values[match[2]] = next(results)
            answer = written(values[match[2]])
            expression = _with_numbers(match[3], values)
            steps = working(expression) if worked else []
            parts += [before, " = ".join([expression, *steps, match[1] + answer])]
            at = match.end()
        parts.append(_render(line[at:], now, start=at == 0))
        lines.append("".join(parts))
    return lines, answer


def _with_numbers(expression: str, values: Mapping[str, Fraction]) -> str:
    filled = re.sub(r"[A-Za-z_]\w*", lambda name: written(values[name[0]]), expression)
    return re.sub(r"\s*([-+*/])\s*", r" \1 ", filled)


def _render(text: str, drawn: Drawn, in_words: Random | None = None, *, start: bool = True) -> str:
    """Fill the slots of a text; sentences that begin with one begin with a capital, and articles agree with them."""
    out, at = "", 0
    for match in SLOT.finditer(text):
        out += text[at : match.start()]
        filled = _filled(match, drawn, out, text[match.end() : match.end() + 1], in_words)
        if (not out and start and at == 0) or re.search(r"[.?!]\s+$", out):
            filled = filled[:1].upper() + filled[1:]
        article = re.search(r"\b([Aa])n? $", out)
        if article:
            out = out[: article.start()] + article[1] + ("n " if _VOWEL.match(filled) else " ")
        out += filled
        at = match.end()
    return out + text[at:]


def _filled(match: re.Match[str], drawn: Drawn, before: str, after: str, in_words: Random | None) -> str:
    name, form = match.groups()
    if name in drawn.people:
        person, pronoun = drawn.people[name]
        if form is None:
            return person
        word = form.lower() if pronoun == "he" else _SHE[form.lower()]
        return word.capitalize() if form[0].isupper() else word
    if name in drawn.words:
        return drawn.words[name].singular if form == "one" else drawn.words[name].plural
    return _number(drawn.numbers[name], before, after, in_words)


def _number(number: Fraction, before: str, after: str, in_words: Random | None) -> str:
    is_price = before.endswith(("$", "€", "£"))
    if number.denominator != 1:
        return f"{float(number):.2f}" if is_price else written(number)
    alone = not is_price and after not in ("%", ":", "/", "-", "°") and before[-1:] not in (":", "/", "-")
    if in_words is not None and alone and number <= _SMALL and in_words.random() < 0.8:
        return number_word(int(number))
    is_year = 1900 <= number <= 2100
    return f"{int(number):,}" if in_words is not None and number >= 1000 and not is_year else str(int(number))
