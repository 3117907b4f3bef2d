"""What a test expects, and the same test expecting something else, which a right program fails."""

from __future__ import annotations

import ast
import random
import secrets
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


def false_expectation(statement: ast.stmt) -> Edit | None:
    """Return how to make a test expect another value; None where it is not plain what it expects."""
    literal = _expected(statement.test) if isinstance(statement, ast.Assert) else None
    if literal is None:
        return None
    value = ast.literal_eval(literal)
    try:
        other = _changed(value)
        if ast.literal_eval(repr(other)) != other or other == value:
            return None
    except (ValueError, SyntaxError, OverflowError, RecursionError):  # infinity cannot be written, nor a huge number
        return None
    assert literal.end_lineno is not None and literal.end_col_offset is not None
    lines = "\n" * (literal.end_lineno - literal.lineno)  # those behind it keep their numbers
    return Edit(
        (literal.lineno, literal.col_offset), (literal.end_lineno, literal.end_col_offset), f"({other!r}{lines})"
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


def _changed(value: Any) -> Any:
    """Another value of the same type, which nobody could foretell."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float | complex):
        return value + type(value)(int(2 * abs(value)) + 2 + secrets.randbelow(1000))
    if isinstance(value, str):
        return value + secrets.token_hex(4)
    if isinstance(value, bytes):
        return value + secrets.token_bytes(4)
    if isinstance(value, dict) and value:
        key = _random.choice(list(value))
        return {**value, key: _changed(value[key])}
    if isinstance(value, dict):
        return {_changed(None): None}
    if isinstance(value, list | tuple | set):
        members = list(value)
        place = _random.randrange(len(members)) if members else 0
        members[place : place + 1] = [_changed(members[place]) if members else _changed(None)]
        return type(value)(members)
    return secrets.token_hex(8)
