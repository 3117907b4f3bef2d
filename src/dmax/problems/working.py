"""Equations carried out in small steps, as one writes them on paper: ``206 - 137 = 106 - 37 = 76 - 7 = 69``.

A small model has to know by heart what it cannot work out. Step by step it needs no more than sums and products of
single digits at their places; the steps are part of the text, so they are read again by what follows.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from fractions import Fraction

MOST_STEPS = 12
"""An equation that would take more is left as it is."""

_PARTS = (Fraction(1, 2), Fraction(1, 4), Fraction(3, 4))
"""Decimals that one reads as parts of a whole."""
_POWERS_OF_TEN = tuple(10**power for power in range(13))
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
_SIGNS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}

Expression = Fraction | tuple[str, "Expression", "Expression"]


class _TooHard(Exception):
    """An equation that has no short way in decimal numbers."""


def working(expression: str) -> list[str]:
    """Return the steps between an expression and its value, both left out.

    Args:
        expression: numbers, ``+ - * /`` and parentheses.

    Returns:
        Expressions of the same value, each a small step from the one before; empty where none is needed, or where the
        way would be long or leave decimal numbers.
    """
    try:
        current = _parsed(ast.parse(expression, mode="eval").body)
        forms: list[str] = []
        while not isinstance(current, Fraction):
            current = _next(current)
            forms.append(_written(current))
            if len(forms) > MOST_STEPS:
                return []
    except (_TooHard, SyntaxError, ZeroDivisionError):
        return []
    return forms[:-1]


def _parsed(node: ast.expr) -> Expression:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Fraction(str(node.value))
    if isinstance(node, ast.BinOp) and type(node.op) in _SIGNS:
        return _SIGNS[type(node.op)], _parsed(node.left), _parsed(node.right)
    raise _TooHard


def _next(expression: Expression) -> Expression:
    """Take a small step on either side of an expression, or where both sides are numbers between them."""
    assert not isinstance(expression, Fraction)
    sign, left, right = expression
    if sign == "*" and isinstance(right, Fraction) and not isinstance(left, Fraction) and left[0] == "/":
        _, numerator, denominator = left  # a third of 129 is 129 / 3, and two thirds are 2 * 129 / 3
        if numerator == 1:
            return "/", right, denominator
        whole = isinstance(denominator, Fraction) and (right / denominator).denominator == 1
        return ("*", numerator, ("/", right, denominator)) if whole else ("/", ("*", right, numerator), denominator)
    match expression:
        case ("/", ("*", Fraction() as a, Fraction() as b), Fraction() as power) if power in _POWERS_OF_TEN:
            shorter = _without_zeros(a, b, power)
            if shorter is not None:
                return shorter
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return {"+": _add, "-": _subtract, "*": _multiply, "/": _divide}[sign](left, right)
    stepped = [side if isinstance(side, Fraction) else _next(side) for side in (left, right)]
    return sign, stepped[0], stepped[1]


def _without_zeros(a: Fraction, b: Fraction, power: Fraction) -> Expression | None:
    """Leave out the zeros that both sides of ``a * b / power`` end in; None where there are none."""
    left = power
    factors: list[Fraction] = []
    for factor in (a, b):
        while left > 1 and factor != 0 and (factor / 10).denominator == 1:
            factor, left = factor / 10, left / 10
        factors.append(factor)
    if left == power:
        return None
    product: Expression = ("*", factors[0], factors[1])
    return product if left == 1 else ("/", product, left)


def _add(a: Fraction, b: Fraction) -> Expression:
    more, fewer = (b, a) if len(_places(a)) < len(_places(b)) else (a, b)
    places = _places(fewer)
    return _value(a + b) if len(places) < 2 else ("+", more + places[0], fewer - places[0])


def _subtract(a: Fraction, b: Fraction) -> Expression:
    if b > a:
        raise _TooHard
    places = _places(b)
    return _value(a - b) if len(places) < 2 else ("-", a - places[0], b - places[0])


def _multiply(a: Fraction, b: Fraction) -> Expression:
    for part, whole in ((a, b), (b, a)):
        if part in _PARTS and whole >= 10:
            numerator, denominator = map(Fraction, part.as_integer_ratio())
            return "/", whole if numerator == 1 else ("*", whole, numerator), denominator
    more, fewer = (b, a) if len(_places(a)) < len(_places(b)) else (a, b)
    if len(_places(more)) < 2 or fewer in _POWERS_OF_TEN:
        return _value(a * b)
    shift = _scale(a) * _scale(b)
    if shift > 1:
        a, b, power = a * _scale(a), b * _scale(b), Fraction(shift)
        return _without_zeros(a, b, power) or ("/", ("*", a, b), power)
    if len(_places(fewer)) < 2:
        return _sum([place * fewer for place in _places(more)])
    return _sum([("*", more, place) for place in _places(fewer)])


def _divide(a: Fraction, b: Fraction) -> Expression:
    quotient = _value(a / b)
    scale = max(_scale(a), _scale(b))
    if b in _POWERS_OF_TEN:
        return quotient
    if scale > 1:
        return "/", a * scale, b * scale
    places = _places(quotient)
    if len(places) < 2 or quotient.denominator != 1:
        return quotient
    if len(_places(b)) > 1:  # not all at once: what is left is found by subtracting
        first = places[0] * b
        return "+", ("/", first, b), ("/", a - first, b)
    return _sum([("/", place * b, b) for place in places])


def _sum(terms: Sequence[Expression]) -> Expression:
    """Sum by halves, so that neighbours can be added in one step."""
    middle = (len(terms) + 1) // 2
    return terms[0] if len(terms) == 1 else ("+", _sum(terms[:middle]), _sum(terms[middle:]))


def _value(number: Fraction) -> Fraction:
    if number.denominator != 1 and (not _is_decimal(number) or _scale(number) > 1000):
        raise _TooHard
    return number


def _is_decimal(number: Fraction) -> bool:
    """Tell whether some power of ten makes it whole."""
    return _POWERS_OF_TEN[-1] % number.denominator == 0


def _scale(number: Fraction) -> int:
    """Return the smallest power of ten that makes it whole."""
    for scale in _POWERS_OF_TEN:
        if scale % number.denominator == 0:
            return scale
    raise _TooHard


def _places(number: Fraction) -> list[Fraction]:
    """Tell what each of its digits but zeros stands for, the greatest first: 206 -> 200, 6."""
    scale = _scale(number)
    digits = str(number.numerator * (scale // number.denominator))
    return [
        Fraction(int(digit) * 10 ** (len(digits) - 1 - place), scale)
        for place, digit in enumerate(digits)
        if digit not in "0-"
    ]


def _written(expression: Expression, parent: str = "+", is_right: bool = False) -> str:
    if isinstance(expression, Fraction):
        scale = _scale(expression)
        if scale == 1:
            return str(expression.numerator)
        return f"{float(expression):.{len(str(scale)) - 1}f}"
    sign, left, right = expression
    text = f"{_written(left, sign)} {sign} {_written(right, sign, True)}"
    level, outer = _PRECEDENCE[sign], _PRECEDENCE[parent]
    return f"({text})" if level < outer or (is_right and level == outer and parent in "-/") else text
