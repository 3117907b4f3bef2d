"""Finding the program in an answer."""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
import threading
import warnings
from collections.abc import Callable

_FENCE = re.compile(
    r"(?:```|~~~)[ \t]*([\w+.-]*)[^\n`]*\n(.*?)(?:^[ \t]*(?:```|~~~)|(?<=\S)```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)
_PYTHON = frozenset({"", "python", "python3", "py"})
_CODE_LINE = re.compile(r"(?:async )?def \w|class \w+\s*[:(]|import \w|from [\w.]+ import |@\w")
_FUTURE = re.compile(r"^from __future__ import .*\n?", re.MULTILINE)
_WARNINGS = threading.Lock()


def find_code(text: str, names: tuple[str, ...] = ()) -> str:
    """The Python code of an answer.

    The last block in a Python fence that defines one of ``names``, else the first block. Without fences, the whole
    text where it is Python, else the lines from the first definition or import on, up to where they stop being
    Python, else the text as it is.
    """
    blocks = [textwrap.dedent(code) for language, code in _FENCE.findall(text) if language.lower() in _PYTHON]
    if blocks:
        return next((block for block in reversed(blocks) if defines(block, names)), blocks[0])
    text = text.strip("\n").rstrip()
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if _CODE_LINE.match(line)), None)
    if start is None or compiles(text):
        return text
    return _longest(lines[start:], str) or "\n".join(lines[start:])


def defines(code: str, names: tuple[str, ...]) -> bool:
    """Whether code defines one of some names at its top level, by the look of it: it may not be whole."""
    either = "|".join(map(re.escape, names))
    return (
        bool(names)
        and re.search(rf"^(?:(?:async )?def|class) +(?:{either})\b|^(?:{either}) *=", code, re.M) is not None
    )


def complete(prompt: str, code: str, name: str) -> str:
    """A program out of a function's beginning (imports, signature, docstring) and an answer's code.

    Code that defines the function stands for itself, after the imports and helpers that the prompt gives it; other
    code is taken for the function's body, indented or not, as far as it is Python.
    """
    if defines(code, (name,)):
        given = prompt[: _start_of(prompt, name)]
        return "".join(_FUTURE.findall(code)) + given + "\n" + _FUTURE.sub("", code) + "\n"
    head = prompt.rstrip() + "\n"
    forms: list[Callable[[str], str]] = [
        lambda body: head + textwrap.indent(body, "    "),
        # A body whose first line lost its indentation, as happens where an answer is stripped.
        lambda body: head + "    " + body,
    ]
    if code[:1].isspace():
        forms.insert(0, lambda body: head + body)
    whole = [form(code) for form in forms]
    lines = code.strip("\n").splitlines()
    return next(filter(compiles, whole), None) or _longest(lines, forms[0]) or whole[0]


def called_names(tests: list[str]) -> tuple[str, ...]:
    """Names that every one of some tests mentions; Python's own ones only where there are no others."""
    shared: set[str] | None = None
    for test in tests:
        try:
            names = {node.id for node in ast.walk(ast.parse(test.strip())) if isinstance(node, ast.Name)}
        except SyntaxError:
            continue
        shared = names if shared is None else shared & names
    found = sorted(shared or ())
    return tuple([name for name in found if not hasattr(builtins, name)] or found)


def compiles(code: str) -> bool:
    """Whether Python can compile some code."""
    try:
        with _WARNINGS, warnings.catch_warnings():  # the lock, because the filters are the whole process's
            warnings.simplefilter("ignore")
            compile(code, "answer", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True


def _start_of(prompt: str, name: str) -> int:
    found = list(re.finditer(rf"^(?:async )?def +{re.escape(name)}\b", prompt, re.MULTILINE))
    return found[-1].start() if found else len(prompt)


def _longest(lines: list[str], build: Callable[[str], str]) -> str | None:
    """What is built from as many of the lines, from the first on, as make Python; what follows code is prose again."""
    programs = (build("\n".join(lines[:end])) for end in range(len(lines), 0, -1))
    return next(filter(compiles, programs), None)
