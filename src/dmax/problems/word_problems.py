"""Grade-school word problems and the arithmetic inside them, from ``reasoning-gym``.

``reasoning-gym`` seeds item ``i`` of a dataset with ``seed + i``.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from dmax.problems.splits import Split, first_number
from dmax.problems.working import working

CHUNK = 4096
"""Problems per underlying dataset; ``reasoning-gym`` draws the templates of a whole dataset at once."""

LARGEST_DENOMINATOR = 60
"""Of a fraction that a long decimal is written as: minutes are parts of an hour."""

_INSTRUCTION = " Give the result as your final answer. Do not include units."
_NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"
_TOKEN = re.compile(rf"{_NUMBER}|half(?= \*)|[()%]|(?:[-+*/×÷]|(?<=[\d )])x)(?=\s*[$€£¥]?[\d(])")
"""Numbers, and the signs between them; the slash of ``$12/hour`` is none."""
_RESULT = re.compile(rf"= ?([$€£¥]?({_NUMBER}))(?![\d.,]*\d)(%?)")
_UNKNOWN = re.compile(r"\s*[-+]\s*[A-Za-z]\b")
_LONG_DECIMAL = re.compile(r"\d+\.\d{6,}")
_CLAIM_FIRST = re.compile(rf"^(.+) because (.+= ?[$€£¥]?{_NUMBER})$", re.MULTILINE)
_SIGN_BETWEEN = re.compile(r"(?<=[\d)]) ?([-+*/x=]) ?(?=[$€£¥]?[\d(])")
"""A sign between numbers or parentheses, and the spaces that it has."""
_SPELLING = {"x": "*", "×": "*", "÷": "/", "%": "/100", "half": "1/2"}
_SIGNS = frozenset("-+*/x×÷)%")
"""What an expression does not begin with."""
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def problem(split: Split, index: int, seed: int = 0) -> dict[str, str]:
    """Draw problem ``index`` of a split: ``question`` (without the trailing instruction), ``solution`` and ``answer``.

    Raises:
        SeedError: the split has no such seed.
    """
    row = _chunk(first_number(split, seed) + index // CHUNK * CHUNK)[index % CHUNK]
    return {
        "question": row["question"].removesuffix(_INSTRUCTION),
        "solution": row["metadata"]["answer_cot"],
        "answer": row["answer"],
    }


@lru_cache(maxsize=8)
def _chunk(seed: int) -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise ImportError("gsm-symbolic needs reasoning-gym: pip install 'dmax-llm[train]'.") from error
    return reasoning_gym.create_dataset("gsm_symbolic", seed=seed, size=CHUNK)


class Equation(NamedTuple):
    """A true ``expression = number`` of a worked solution."""

    start: int
    """Where in the text its expression begins."""
    result: int
    """Where its result begins: a currency sign, or the number."""
    end: int
    """One past the number."""
    expression: str
    """Its numbers and signs alone, as Python spells them."""
    unknown: str
    """What is added to both sides, such as `` + T``; mostly nothing."""

    @property
    def steps(self) -> list[str]:
        """The small steps between its two sides (see :func:`dmax.problems.working`)."""
        return [f"{step}{self.unknown}" for step in working(self.expression)]


def equations(text: str) -> list[Equation]:
    """Find the true steps of a worked solution; those that state anything else are left out.

    The expression is the longest run of text before the equals sign whose numbers and operators, read past currency
    signs and units, have the value of the number, or, where that is whole, its value with the decimals cut off.
    """
    found = []
    at = 0
    for line in text.splitlines(keepends=True):
        start = 0
        for match in _RESULT.finditer(line):
            tokens = list(_TOKEN.finditer(line, start, match.start()))
            value = float(match[2].replace(",", ""))
            for first, token in enumerate(tokens[:-1]):
                expression = _spelt([t[0] for t in tokens[first:]], percent=bool(match[3]))
                if token[0] not in _SIGNS and _equals(expression, value):
                    unknown = _UNKNOWN.match(line, tokens[-1].end(), match.start())
                    sides = at + token.start(), at + match.start(1), at + match.end(2)
                    found.append(Equation(*sides, expression, unknown[0] if unknown else ""))
                    break
            start = match.start()
        at += len(line)
    return found


def show_working(solution: str) -> str:
    """Write a worked solution with the small steps of every equation, and every sign between spaces.

    Nothing is stated before it is worked out: *A because B* becomes *Since B: A*. Decimals of many places become
    fractions, or are cut to two.
    """
    solution = _CLAIM_FIRST.sub(r"Since \2: \1", _LONG_DECIMAL.sub(_shortened, solution))
    parts, at = [], 0
    for equation in equations(solution):
        parts += [solution[at : equation.result], *(f"{step} = " for step in equation.steps)]
        at = equation.result
    body, mark, answer = "".join([*parts, solution[at:]]).partition("####")
    return _SIGN_BETWEEN.sub(r" \1 ", body) + mark + answer


def _shortened(decimal: re.Match[str]) -> str:
    """Write a decimal as the whole number or simple fraction that it misses by rounding, else with two places."""
    value = float(decimal[0])
    fraction = Fraction(value).limit_denominator(LARGEST_DENOMINATOR)
    near = abs(fraction - value) < 1e-9
    return str(fraction) if near and (value < 1 or fraction.denominator == 1) else f"{value:.2f}"


def _spelt(tokens: list[str], percent: bool) -> str:
    """Spell an expression as Python does; where the result is a percentage, so are the operands."""
    spelling = _SPELLING | {"%": ""} if percent else _SPELLING
    joined = "".join(spelling.get(token, token.replace(",", "")) for token in tokens)
    return re.sub(r"(?<=[\d)])\(", "*(", joined)


def _equals(expression: str, value: float) -> bool:
    try:
        node = ast.parse(expression, mode="eval").body
        if not isinstance(node, ast.BinOp):
            return False
        found = _evaluate(node)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return False
    return abs(found - value) < 1e-6 * max(1.0, abs(value)) or (found > 1 and math.floor(found) == value)


def _evaluate(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    raise ValueError("not arithmetic")
