"""Compares LaTeX answers with ``math-verify``, in a process of its own: one JSON object a line in, one a line out.

Run by its path and importing nothing of dmax, so that it starts fast. ``math-verify`` bounds its work with signals,
which only a main thread may use, and some expressions (towers of powers) escape it inside one call into C or fill the
memory: so :mod:`dmax.evaluation.tasks.math_verifier` can end this process, and its memory is limited here.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout, suppress
from importlib import import_module
from typing import Any

MEMORY = 4 * 2**30
"""Bytes of address space; the libraries take about a quarter of it."""

_EXACT = 1e-15
_ROUNDED = 2e-6
"""Relative distance at which a decimal still stands for a number that has no end: six digits, as math-verify has it."""


def limit_memory() -> None:
    """Limit the memory, where the system can."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def same(math_verify: Any, gold: str, answer: str, seconds: int) -> bool:
    r"""Return whether an answer, of which the last ``\boxed{}`` counts most, equals a reference in ``\boxed{}``."""
    forms = (math_verify.LatexExtractionConfig(boxed_match_priority=0), math_verify.ExprExtractionConfig())
    expected = math_verify.parse(gold, extraction_config=forms, parsing_timeout=seconds)
    given = math_verify.parse(answer, extraction_config=forms, parsing_timeout=seconds)
    if not math_verify.verify(expected, given, timeout_seconds=seconds):
        return False
    # What math-verify takes for equal may be two small numbers that both round to 0.
    pairs = [
        (mine, its) for mine in expected for its in given if not isinstance(mine, str) and not isinstance(its, str)
    ]
    return not pairs or any(not apart(*pair) for pair in pairs)


def apart(gold: Any, given: Any) -> bool:
    """Return whether two expressions that are taken for equal differ in a number after all."""
    sympy = import_module("sympy")

    parts = _parts(gold), _parts(given)
    if parts[0] and len(parts[0]) == len(parts[1]) and type(gold) is type(given):
        return any(apart(mine, its) for mine, its in zip(*parts, strict=True))
    if not isinstance(gold, sympy.Expr) or not isinstance(given, sympy.Expr) or gold.free_symbols != given.free_symbols:
        return False
    values = {symbol: 3 + number * 2 for number, symbol in enumerate(sorted(gold.free_symbols, key=str))}
    return _differ(gold.subs(values), given.subs(values))


def _parts(expression: Any) -> list[Any]:
    """List the members of a tuple, set, interval or matrix, in an order that equal ones share."""
    sympy = import_module("sympy")

    if isinstance(expression, sympy.MatrixBase):
        return list(expression.flat())
    if isinstance(expression, sympy.FiniteSet):
        return sorted(expression.args, key=lambda member: sympy.default_sort_key(member.evalf()))
    if isinstance(expression, sympy.Interval):
        return [expression.start, expression.end]
    return list(expression.args) if isinstance(expression, sympy.Tuple | sympy.Union) else []


def _differ(gold: Any, given: Any) -> bool:
    sympy = import_module("sympy")

    percent = [number.atoms(sympy.UnevaluatedExpr) for number in (gold, given)]
    rounded = any(number.atoms(sympy.Float) for number in (gold, given))
    # A decimal means what it shows, not the nearest binary number.
    mine, its = (
        number.xreplace({part: sympy.Rational(str(part)) for part in number.atoms(sympy.Float)}).doit()
        for number in (gold, given)
    )
    if bool(percent[0]) != bool(percent[1]):  # 9 % is taken for 9
        return False
    if mine == its:
        return False
    if mine.is_Rational and its.is_Rational and (not rounded or (_ends(mine) and _ends(its))):
        return True
    distance, size = sympy.Abs(mine - its).evalf(50), max(sympy.Abs(mine).evalf(50), sympy.Abs(its).evalf(50))
    return bool(distance > (_ROUNDED if rounded else _EXACT) * size)


def _ends(value: Any) -> bool:
    """Tell whether a fraction can be written as a decimal."""
    below = value.q
    for prime in (2, 5):
        while below % prime == 0:
            below //= prime
    return bool(below == 1)


def main() -> None:
    limit_memory()
    replies = sys.stdout
    math_verify = import_module("math_verify")
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        right = False
        # Whatever an answer makes the libraries raise, it was not shown to be right.
        with suppress(Exception), redirect_stdout(sys.stderr):
            right = same(math_verify, request["gold"], request["answer"], request["seconds"])
        print(json.dumps(right), file=replies, flush=True)


if __name__ == "__main__":
    main()
