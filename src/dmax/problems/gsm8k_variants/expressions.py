"""Results as functions of other numbers: trees, their values, and fingerprints that tell two functions apart."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random

from dmax.problems.gsm8k_variants.numbers import Node, Number, simplified

_PRIME = 2**61 - 1
RESIDUES = tuple(Random("gsm8k-variants fingerprints").sample(range(2, _PRIME), 64))
"""Stand for the free numbers of a question: two results that agree in them are the same function of these."""
_SIGNS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


@dataclass
class Value:
    """A number that operands can come from."""

    value: Number
    fingerprint: int
    hangs_on: frozenset[int]
    """The free numbers of the question that it is worked out from."""
    node: Node | None = None


def tree_of(node: ast.expr, leaves: Iterable[int]) -> Node:
    if isinstance(node, ast.BinOp):
        left = tree_of(node.left, leaves)
        return _SIGNS[type(node.op)], left, tree_of(node.right, leaves)
    return next(iter(leaves))


def leaves_of(node: Node) -> list[int]:
    return [node] if isinstance(node, int) else leaves_of(node[1]) + leaves_of(node[2])


def evaluated(node: Node, values: Sequence[Number]) -> Number:
    if isinstance(node, int):
        return values[node]
    sign, left, right = node
    a = values[left] if isinstance(left, int) else evaluated(left, values)
    b = values[right] if isinstance(right, int) else evaluated(right, values)
    if sign == "*":
        value = a * b
    elif sign == "+":
        value = a + b
    elif sign == "-":
        value = a - b
    elif b == 0:
        return -1  # never sensible
    else:
        value = a // b if isinstance(a, int) and isinstance(b, int) and a % b == 0 else Fraction(a) / b
    return value if isinstance(value, int) else simplified(value)


def constant_fingerprint(value: Number) -> int:
    if isinstance(value, int):
        return value % _PRIME
    return value.numerator * pow(value.denominator, -1, _PRIME) % _PRIME


def fingerprint_of(node: Node, values: Sequence[Value]) -> int:
    if isinstance(node, int):
        return values[node].fingerprint
    sign, left, right = node
    a, b = fingerprint_of(left, values), fingerprint_of(right, values)
    if sign == "/":
        return a * pow(b, -1, _PRIME) % _PRIME if b else 0
    return {"+": a + b, "-": a - b, "*": a * b}[sign] % _PRIME
