"""Scenarios: word problems with free slots, one TOML file a theme (docs/guides/everyday-problems.md shows one).

A scenario is checked when it is read: every slot that a text uses has to be declared, and every expression may hold
numbers, names and ``+ - * / // %`` and parentheses only.
"""

from __future__ import annotations

import ast
import operator
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from importlib.resources import files
from typing import Any

SLOT = re.compile(r"\{(\w+)(?:\.(\w+))?\}")
"""A slot of a text: ``{name}`` or ``{name.form}``."""
RESULT = re.compile(r"(\$?)\{(\w+): ([^{}]+)\}")
"""An equation of a solution, ``{name: expression}``, and the currency sign in front of it."""

_PRONOUNS = ("he", "his", "him", "himself", "He", "His", "Him")
_NUMBER_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_KEYS = {"name", "numbers", "words", "people", "let", "where", "ask", "solve"}


class ScenarioError(ValueError):
    """A scenario that cannot be used; the message names the file, the scenario and the mend."""


@dataclass(frozen=True)
class Word:
    """A noun in both numbers; of words without a plural both are the same."""

    plural: str
    singular: str

    @classmethod
    def of(cls, text: str) -> Word:
        """Parse ``apples`` or ``loaves|loaf``."""
        plural, bar, singular = text.partition("|")
        return cls(plural, singular if bar else plural.removesuffix("s"))


@dataclass(frozen=True)
class Scenario:
    """One word problem with free slots."""

    theme: str
    name: str
    numbers: Mapping[str, Sequence[Fraction]]
    """What each number slot may be."""
    words: Mapping[str, tuple[str, Sequence[Word]]]
    """Name of the list that each word slot is drawn from, and its words."""
    people: tuple[str, ...]
    let: Mapping[str, ast.expr]
    """Numbers computed from others, in order."""
    where: tuple[ast.expr, ...]
    """Conditions that a draw has to meet."""
    ask: tuple[str, ...]
    """Phrasings of the question."""
    solve: tuple[str, ...]
    """Lines of the worked solution."""


def evaluate(node: ast.expr, values: Mapping[str, Fraction]) -> Fraction:
    """Return the exact value of an expression.

    Raises:
        ZeroDivisionError: it divides by 0.
    """
    if isinstance(node, ast.Constant):
        return Fraction(str(node.value))
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.UnaryOp):
        return -evaluate(node.operand, values)
    assert isinstance(node, ast.BinOp)
    return Fraction(_NUMBER_OPERATORS[type(node.op)](evaluate(node.left, values), evaluate(node.right, values)))


def holds(condition: ast.expr, values: Mapping[str, Fraction]) -> bool:
    """Return whether a condition is true: comparisons, ``and``, ``or`` and ``not`` over expressions."""
    if isinstance(condition, ast.BoolOp):
        every = isinstance(condition.op, ast.And)
        return (all if every else any)(holds(part, values) for part in condition.values)
    if isinstance(condition, ast.UnaryOp) and isinstance(condition.op, ast.Not):
        return not holds(condition.operand, values)
    assert isinstance(condition, ast.Compare)
    sides = [evaluate(side, values) for side in (condition.left, *condition.comparators)]
    return all(_COMPARISONS[type(op)](a, b) for op, a, b in zip(condition.ops, sides, sides[1:], strict=False))


@cache
def _words_file() -> Mapping[str, Any]:
    return tomllib.loads(files(__package__).joinpath("words.toml").read_text(encoding="utf-8"))


@cache
def word_lists() -> Mapping[str, tuple[Word, ...]]:
    """Read the shared word lists, by name."""
    return {name: tuple(map(Word.of, words)) for name, words in _words_file()["lists"].items()}


@cache
def first_names() -> Mapping[str, tuple[str, ...]]:
    """Read the first names, by the pronoun of those who bear them: ``she`` and ``he``."""
    return {pronoun: tuple(names) for pronoun, names in _words_file()["names"].items()}


@cache
def themes() -> tuple[str, ...]:
    """Return the themes that the package has, sorted."""
    folder = files(__package__).joinpath("scenarios")
    return tuple(sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml")))


@cache
def scenarios(*chosen: str) -> tuple[Scenario, ...]:
    """Read the scenarios of themes, all of them if none is named.

    Raises:
        ScenarioError: a file holds what is no scenario.
    """
    folder = files(__package__).joinpath("scenarios")
    found: list[Scenario] = []
    for theme in chosen or themes():
        found += parse(folder.joinpath(f"{theme}.toml").read_text(encoding="utf-8"), theme)
    return tuple(found)


def parse(text: str, theme: str) -> list[Scenario]:
    """Read the scenarios of a file.

    Args:
        text: TOML, a ``[[scenario]]`` table each.
        theme: what to call the file in errors.

    Raises:
        ScenarioError: it is not TOML, or a scenario has an unknown key, an undeclared slot or a bad expression.
    """
    try:
        tables = tomllib.loads(text).get("scenario", [])
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{theme}: not valid TOML ({error}).") from error
    found = [_scenario(table, theme) for table in tables]
    names = [scenario.name for scenario in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ScenarioError(f"{theme}: two scenarios are called {twice[0]!r}; give each a name of its own.")
    return found


def _scenario(table: Mapping[str, Any], theme: str) -> Scenario:
    where = f"{theme}/{table.get('name', '?')}"
    unknown = sorted(set(table) - _KEYS)
    if unknown:
        raise ScenarioError(f"{where}: unknown key {unknown[0]!r}; a scenario has {', '.join(sorted(_KEYS))}.")
    missing = [key for key in ("name", "ask", "solve") if not table.get(key)]
    if missing:
        raise ScenarioError(f"{where}: {missing[0]!r} is missing.")
    scenario = Scenario(
        theme=theme,
        name=table["name"],
        numbers={name: _choices(value, where) for name, value in table.get("numbers", {}).items()},
        words={name: _word_choices(value, where) for name, value in table.get("words", {}).items()},
        people=tuple(table.get("people", ())),
        let={name: _expression(text, where) for name, text in table.get("let", {}).items()},
        where=tuple(_condition(text, where) for text in table.get("where", ())),
        ask=tuple(table["ask"]),
        solve=tuple(table["solve"]),
    )
    _check_slots(scenario, where)
    return scenario


def _choices(value: Any, where: str) -> Sequence[Fraction]:
    """Read ``[lowest, highest]``, ``[lowest, highest, step]`` or ``"5|10|25"``."""
    if isinstance(value, str):
        return tuple(Fraction(part.strip()) for part in value.split("|"))
    if not isinstance(value, list) or len(value) not in (2, 3):
        raise ScenarioError(f'{where}: numbers are [lowest, highest], [lowest, highest, step] or "5|10|25".')
    lowest, highest, *step = (Fraction(str(part)) for part in value)
    stride = step[0] if step else Fraction(1)
    if stride <= 0 or lowest > highest:
        raise ScenarioError(f"{where}: {value} holds no number.")
    return tuple(lowest + stride * i for i in range(int((highest - lowest) / stride) + 1))


def _word_choices(value: Any, where: str) -> tuple[str, Sequence[Word]]:
    if isinstance(value, list):
        return ",".join(value), tuple(map(Word.of, value))
    if value not in word_lists():
        raise ScenarioError(f"{where}: there is no word list {value!r}; there are {', '.join(word_lists())}.")
    return value, word_lists()[value]


def _expression(text: str, where: str) -> ast.expr:
    node = _parsed(text, where)
    for part in ast.walk(node):
        number = isinstance(part, ast.Constant) and isinstance(part.value, int | float)
        sign = isinstance(part, ast.BinOp) and type(part.op) in _NUMBER_OPERATORS
        minus = isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.USub)
        if not (number or sign or minus or isinstance(part, ast.Name | ast.operator | ast.unaryop | ast.Load)):
            raise ScenarioError(f"{where}: {text!r} is more than numbers, names and + - * / // % ( ).")
    return node


def _condition(text: str, where: str) -> ast.expr:
    node = _parsed(text, where)
    allowed = (ast.BoolOp, ast.boolop, ast.Compare, ast.cmpop, ast.UnaryOp, ast.BinOp, ast.operator, ast.unaryop)
    leaves = (ast.Name, ast.Load, ast.Constant)
    if not isinstance(node, ast.BoolOp | ast.Compare | ast.UnaryOp) or not all(
        isinstance(part, allowed + leaves) for part in ast.walk(node)
    ):
        raise ScenarioError(f"{where}: the condition {text!r} is no comparison of numbers and names.")
    return node


def _parsed(text: str, where: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, TypeError) as error:
        raise ScenarioError(f"{where}: {text!r} is no expression.") from error


def _check_slots(scenario: Scenario, where: str) -> None:
    """Refuse texts and expressions that name what is not there, and equations that cannot be written out."""
    numbers = set(scenario.numbers)
    for name, expression in scenario.let.items():
        _check_names(expression, numbers, where)
        numbers.add(name)
    for condition in scenario.where:
        _check_names(condition, numbers, where)
    for text in scenario.ask:
        _check_text(text, scenario, numbers, where)
    known = set(numbers)
    for line in scenario.solve:
        for match in RESULT.finditer(line):
            expression = _expression(match[3], where)
            _check_names(expression, known, where)
            if any(isinstance(part, ast.FloorDiv | ast.Mod) for part in ast.walk(expression)):
                raise ScenarioError(f"{where}: {match[3]!r} uses // or %; compute that in let.")
            known.add(match[2])
        _check_text(RESULT.sub("", line), scenario, known, where)
    if not any(RESULT.search(line) for line in scenario.solve):
        raise ScenarioError(f"{where}: no line of solve names a result; write one as {{total: a + b}}.")


def _check_names(expression: ast.expr, known: set[str], where: str) -> None:
    for part in ast.walk(expression):
        if isinstance(part, ast.Name) and part.id not in known:
            raise ScenarioError(f"{where}: {part.id!r} is used before it has a value.")


def _check_text(text: str, scenario: Scenario, numbers: set[str], where: str) -> None:
    for match in SLOT.finditer(text):
        name, form = match.groups()
        allowed: tuple[str | None, ...]
        if name in scenario.people:
            allowed = (None, *_PRONOUNS)
        elif name in scenario.words:
            allowed = (None, "one")
        elif name in numbers:
            allowed = (None,)
        else:
            raise ScenarioError(f"{where}: the slot {match[0]} is not declared, in {text!r}.")
        if form not in allowed:
            raise ScenarioError(f"{where}: the slot {match[0]} has no form {form!r}, in {text!r}.")
    rest = SLOT.sub("", text)
    if "{" in rest or "}" in rest:
        raise ScenarioError(f"{where}: a brace that is no slot, in {text!r}.")


def written(number: Fraction) -> str:
    """Write a number with the decimals it has: ``12``, ``0.5``."""
    if number.denominator == 1:
        return str(number.numerator)
    return format((Decimal(number.numerator) / number.denominator).normalize(), "f")
