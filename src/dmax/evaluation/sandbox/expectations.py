"""What a test expects, and the same test expecting something else, which a right program fails."""

from __future__ import annotations

import ast
import random
import secrets
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_AROUND = frozenset({"set", "tuple", "list", "sorted", "frozenset"})
"""Calls around a literal that leave its members what they are."""
_CLOSE = frozenset({"isclose", "allclose", "array_equal"})
_random = random.SystemRandom()


@dataclass(frozen=True)
class Edit:
    """A stretch of source, in lines from 1 and columns in bytes, and what is to stand there."""

    start: tuple[int, int]
    end: tuple[int, int]
    text: str


def false_expectation(statement: ast.stmt, plausible: Sequence[Any] = (), *, listed: bool = False) -> Edit | None:
    """Return how to make a test expect another value; None where it is not plain what it expects.

    Args:
        statement: the test.
        plausible: what the other tests expect. Where the test is exact, one of these may be taken: a result that is
            equal to whatever looks likely is equal to them too.
        listed: whether the tests expect what a list named ``results`` holds, as those of EvalPlus do.
    """
    literal = _listed(statement) if listed else None
    if isinstance(statement, ast.Assert):
        literal = _expected(statement.test)
        if literal is None:
            return _beside(statement.test)
    if literal is None:
        return None
    value = ast.literal_eval(literal)
    exact = _is_exact(statement, literal)
    others = [other for other in plausible if exact and type(other) is type(value) and other != value]
    try:
        other = _random.choice(others) if others and secrets.randbelow(2) else _changed(value, exact=exact)
        if ast.literal_eval(repr(other)) != other or other == value:
            return None
    except (ValueError, SyntaxError, OverflowError, RecursionError):  # infinity cannot be written, nor a huge number
        return None
    return _replaced(literal, repr(other))


def _replaced(node: ast.expr, text: str) -> Edit:
    assert node.end_lineno is not None and node.end_col_offset is not None
    lines = "\n" * (node.end_lineno - node.lineno)  # those behind it keep their numbers
    return Edit((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset), f"({text}{lines})")


def _listed(statement: ast.stmt) -> ast.expr | None:
    """Draw one of the literals of a list that is named ``results``."""
    if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.List):
        return None
    named = [_name(target) for target in statement.targets] == ["results"]
    literals = [literal for element in statement.value.elts if (literal := _literal(element))] if named else []
    return _random.choice(literals) if literals else None


def _beside(test: ast.expr) -> Edit | None:
    """Make a test of two computed values expect a pair that holds what it expected, the simpler of them."""
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq):
        return None
    [right] = test.comparators
    expected = test.left if isinstance(test.left, ast.Name) else right
    return None if _literal(test.left) or _literal(right) else _replaced(expected, f"({ast.unparse(expected)}), 0")


def expected_values(statements: Iterable[ast.stmt]) -> list[Any]:
    """List the values that tests plainly expect."""
    literals = [_expected(statement.test) for statement in statements if isinstance(statement, ast.Assert)]
    return [ast.literal_eval(literal) for literal in literals if literal is not None]


def _is_exact(statement: ast.stmt, literal: ast.expr) -> bool:
    """Tell whether a test compares the literal itself by ``==``, so that the least change fails it."""
    test = statement.test if isinstance(statement, ast.Assert) else None
    return (
        isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Eq) and literal in (test.left, *test.comparators)
    )


def _expected(test: ast.expr) -> ast.expr | None:
    """Find the literal that something computed is compared with."""
    if isinstance(test, ast.Call) and len(test.args) >= 2 and _name(test.func) in _CLOSE:
        return _only_literal(test.args[0], test.args[1])
    if not isinstance(test, ast.Compare) or len(test.ops) != 1:
        return None
    [operator], [right] = test.ops, test.comparators
    if isinstance(operator, ast.Eq):
        return _only_literal(test.left, right)
    within = test.left  # abs(f(x) - 0.5) < 1e-6
    bound = _literal(right)
    if isinstance(operator, ast.Lt | ast.LtE) and bound is not None and isinstance(within, ast.Call):
        small = ast.literal_eval(bound)
        difference = within.args[0] if len(within.args) == 1 and _name(within.func) in ("abs", "fabs") else None
        if isinstance(difference, ast.BinOp) and isinstance(difference.op, ast.Sub) and isinstance(small, int | float):
            return _only_literal(difference.left, difference.right) if small <= 1 else None
    return None


def _only_literal(left: ast.expr, right: ast.expr) -> ast.expr | None:
    """Return the one of two expressions that is a literal, where the other is not."""
    found = [_literal(left), _literal(right)]
    return (found[0] or found[1]) if (found[0] is None) != (found[1] is None) else None


def _literal(node: ast.expr) -> ast.expr | None:
    if isinstance(node, ast.Call) and _name(node.func) in _AROUND and len(node.args) == 1 and not node.keywords:
        return _literal(node.args[0])
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return node


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _changed(value: Any, *, exact: bool) -> Any:
    """Return another value of the same type, which cannot be foretold: a likely one where the least change counts."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float | complex):
        small = exact and abs(value) < 2**50  # a float takes in no small change of a large one
        away = 1 + secrets.randbelow(9) if small else int(2 * abs(value)) + 2 + secrets.randbelow(1000)
        return value + type(value)(_random.choice((away, -away)) if exact else away)
    if isinstance(value, str) and exact and value:
        place = _random.randrange(len(value))
        letter = _random.choice([letter for letter in string.ascii_lowercase if letter != value[place].lower()])
        return value[:place] + (letter.upper() if value[place].isupper() else letter) + value[place + 1 :]
    if isinstance(value, str):
        return value + secrets.token_hex(4)
    if isinstance(value, bytes):
        return value + secrets.token_bytes(4)
    if isinstance(value, dict) and value:
        key = _random.choice(list(value))
        return {**value, key: _changed(value[key], exact=exact)}
    if isinstance(value, dict):
        return {secrets.token_hex(8): None}
    if isinstance(value, list | tuple | set):
        members = list(value)
        place = _random.randrange(len(members)) if members else 0
        members[place : place + 1] = [_changed(members[place] if members else None, exact=exact)]
        return type(value)(members)
    return secrets.token_hex(8)
