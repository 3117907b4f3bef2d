"""Grade-school word problems and the arithmetic inside them, from ``reasoning-gym``.

``reasoning-gym`` seeds item ``i`` of a dataset with ``seed + i``.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from dmax.problems.splits import SPLIT_SEEDS, Split

CHUNK = 4096
"""Problems per underlying dataset; ``reasoning-gym`` draws the templates of a whole dataset at once."""

_INSTRUCTION = " Give the result as your final answer. Do not include units."
_TOKEN = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|[-+*/()×÷%]|(?<=[\d )])x(?= ?[\d$€£¥])")
_RESULT = re.compile(r"= ?[$€£¥]?(\d+(?:\.\d+)?)(?![\d.,]*\d)")
_SPELLING = {"x": "*", "×": "*", "÷": "/", "%": "/100"}
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def problem(split: Split, index: int, seed: int = 0) -> dict[str, str]:
    """Problem ``index`` of a split: ``question`` (without the trailing instruction), ``solution`` and ``answer``."""
    row = _chunk(SPLIT_SEEDS[split] + seed * 10**9 + index // CHUNK * CHUNK)[index % CHUNK]
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


def equations(solution: str) -> list[tuple[str, str]]:
    """The true ``expression = number`` steps of a worked solution, each as (text up to the number, number).

    The expression is the longest run of text before the equals sign whose numbers and operators, read past currency
    signs and units, have that value; steps that state anything else are left out.
    """
    found = []
    for line in solution.splitlines():
        start = 0
        for match in _RESULT.finditer(line):
            tokens = list(_TOKEN.finditer(line, start, match.start()))
            value = float(match[1])
            for first, token in enumerate(tokens[:-1]):
                if token[0][0].isdigit() and _equals(tokens[first:], value):
                    found.append((line[token.start() : match.start(1)], match[1]))
                    break
            start = match.start()
    return found


def _equals(tokens: list[re.Match[str]], value: float) -> bool:
    text = "".join(_SPELLING.get(token[0], token[0].replace(",", "")) for token in tokens)
    try:
        node = ast.parse(text, mode="eval").body
        return isinstance(node, ast.BinOp) and abs(_evaluate(node) - value) < 1e-6 * max(1.0, abs(value))
    except (SyntaxError, ValueError, ZeroDivisionError):
        return False


def _evaluate(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    raise ValueError("not arithmetic")
