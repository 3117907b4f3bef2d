"""Tests that notice when a program skips some of them: marks at every statement that surely runs, counted last."""

from __future__ import annotations

import ast
import random
from collections import Counter

_LEAVES = (ast.Return, ast.Raise, ast.Yield, ast.YieldFrom, ast.Await, ast.Break, ast.Continue)
_COMPOUND = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If, ast.For, ast.AsyncFor, ast.While),
    *(ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match),
)


def with_checkpoints(tests: str, name: str, number: int) -> str:
    """Return tests that pass where the given ones do and every statement that surely runs did, if ``number`` is even.

    Lines keep their numbers; ``jail/runner.py`` leaves the marks out where it quotes one.
    An odd number is found out at a random place, an even one at none.

    Args:
        tests: Python source.
        name: of a global variable that nothing else uses.
        number: the program can tell its parity only by looking at the tests.
    """
    places = _places(tests)
    lines = tests.encode(errors="surrogatepass").split(b"\n")
    last = random.SystemRandom().randrange(len(places) + 1)
    for at, (line, column) in sorted(enumerate(places), key=lambda place: place[1], reverse=True):
        passed = f"1 // (1 - {number} % 2)" if at == last else "0"
        lines[line - 1] = lines[line - 1][:column] + f"{name}.append({passed});".encode() + lines[line - 1][column:]
    marked = b"\n".join(lines).decode(errors="surrogatepass")
    return f"{marked}\nassert len({name}) == {len(places)} and {number} % 2 == 0, 'not every test was run'\n"


def _places(tests: str) -> list[tuple[int, int]]:
    """Line and column of every simple statement that surely runs exactly once, where the tests pass."""
    try:
        tree = ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    calls = Counter(
        node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    )
    mentions = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    once = {
        statement.value.func.id
        for statement in tree.body
        if isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Call)
        and isinstance(statement.value.func, ast.Name)
        and calls[statement.value.func.id] == mentions[statement.value.func.id] == 1
    }
    defined = Counter(node.name for node in tree.body if isinstance(node, ast.FunctionDef))
    found = _straight(tree.body)
    for node in tree.body:
        plain = isinstance(node, ast.FunctionDef) and not node.decorator_list
        if plain and isinstance(node, ast.FunctionDef) and node.name in once and defined[node.name] == 1:
            inner = _straight(node.body)
            generator = any(isinstance(part, ast.Yield | ast.YieldFrom) for part in ast.walk(node))
            found += [] if generator else inner
    return found


def _straight(body: list[ast.stmt]) -> list[tuple[int, int]]:
    """List simple statements of a block up to the first that may leave it."""
    found = []
    for number, statement in enumerate(body):
        future = isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
        docstring = number == 0 and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not isinstance(statement, _COMPOUND) and not future and not docstring:
            found.append((statement.lineno, statement.col_offset))
        definition = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if not definition and any(isinstance(part, _LEAVES) for part in ast.walk(statement)):
            break
    return found
