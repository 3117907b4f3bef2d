"""Finding the program in an answer: the longest part that is Python, in and out of fences."""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator

from dmax.evaluation.grading.said import said

_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[ \t]*([\w+.-]*)[^\n`]*$|(?<=\S)(```)[ \t]*$", re.MULTILINE)
_PYTHON = re.compile(r"(?:i?python[0-9.]*|py[0-9]*|pycon|code|text|txt|plaintext)?", re.IGNORECASE)
_QUOTED = re.compile(r"^'''(?:python|py)[0-9]?\n(.*?)(?:^'''\s*$|\Z)", re.MULTILINE | re.DOTALL)
"""A fence of apostrophes."""
_MARKERS = re.compile(
    r"^[ \t]*\[/?(?:BEGIN|DONE|PYTHON|CODE|ANSWER|SOLUTION)\][ \t]*|^<s>|</?(?:code|answer|pre|python)(?:\s[^<>]*)?>",
    re.MULTILINE,
)
_DONE = re.compile(r"\[(?:DONE|/PYTHON|/CODE|/ANSWER|/SOLUTION)\]")
_END = re.compile(r"<\|[\w▁ ]+\|>|<｜[^｜]*｜>|</s>|<eos>|<EOS>|<end_of_turn>|<role>\w*</role>|\[(?:EOS|EOD|END|PAD)\]")
"""How models write that an answer ends, where it was not taken off."""
_CODE_LINE = re.compile(r"(?:async )?def \w|class \w+\s*[:(]|import \w|from [\w.]+ import |@\w|\w+ *(?::[^=]+)?= *\S")
_STATEMENT = re.compile(rf"{_CODE_LINE.pattern}|(?:return|if|for|while|with|try|raise|yield|assert|print)\b|[#'\"]")
_DEFINITION = re.compile(r"^[ \t]*(?:(?:async )?def \w|class \w)|^[ \t]+return\b", re.MULTILINE)
_INVISIBLE = re.compile("[\ufeff\u200b\u2060]")
_HARD_INDENT = re.compile("^[ \t\u00a0]*\u00a0[ \t\u00a0]*", re.MULTILINE)
_FUTURE = re.compile(r"^from __future__ import .*\n?", re.MULTILINE)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_WARNINGS = threading.Lock()
_MOST_TRIES = 2000
"""Parts that are compiled in search of the longest that is Python."""


def find_code(text: str, names: tuple[str, ...] = ()) -> str:
    """Return the Python code of an answer.

    The last block in a Python fence that defines one of ``names``, else what defines one outside of fences, else the
    first block. Of a block that is no Python as it stands, because it was cut off or because prose follows it, the
    longest part that compiles counts. A fence that is never closed reaches to the end, and what stands before a
    fence that only closes is a block too. Without any, the text as it is.
    """
    text = _with_plain_fences(said(text))
    blocks = [block for block, _ in _blocks(text)]
    fenced = [block for block, in_fence in _blocks(text) if in_fence]
    whole = [part for block in blocks if (part := python_part(block, names)) is not None]
    in_fences = [part for block in fenced if (part := python_part(block, names)) is not None]
    for parts in (in_fences, whole):
        defining = [part for part in parts if defines(part, names)]
        if defining:
            return _with_helpers(defining[-1], parts)
    if fenced:
        return next(iter(in_fences), fenced[0])
    plain = _without_markers(text).strip("\n").rstrip()
    if not whole or any(line[:1].isspace() for line in plain.splitlines()[:1]):  # a function's body
        return plain
    return max(whole, key=len)


def _with_plain_fences(text: str) -> str:
    """Return a text without invisible characters and the marks of a quotation, and with ordinary fences."""
    text = _HARD_INDENT.sub(lambda indent: " " * len(indent[0]), _INVISIBLE.sub("", text))
    if re.search(r"^> ?```", text, re.MULTILINE):
        text = re.sub(r"^> ?", "", text, flags=re.MULTILINE)
    return _QUOTED.sub(r"```python\n\1```", text)


def python_part(code: str, names: tuple[str, ...] = ()) -> str | None:
    """Return the longest run of whole lines that compiles, of those that define one of ``names`` where any does; None
    where nothing that looks like code compiles."""
    if re.search(r"^>>> (?:def|class|import|from|@)", code, re.MULTILINE):
        code = "".join(f"{line[4:]}\n" for line in code.splitlines() if line.startswith((">>> ", "... ", "...")))
    if compiles(code) and code.strip():
        return _without_remarks(code)
    if compiles("def body():\n" + textwrap.indent(_levelled(code), "    ")):
        return code
    lines = code.splitlines()
    best: str | None = None
    for part in _parts(lines):
        better = best is None or (defines(part, names), len(part)) > (defines(best, names), len(best))
        if better and compiles(part):
            best = part
    if best is None:
        return None
    before = lines[: next(at for at, line in enumerate(lines) if line.strip() == best.splitlines()[0].strip())]
    imports = [line for line in before if re.match(r"(?:import|from) ", line) and compiles(line)]
    return "\n".join([*imports, _without_remarks(best)])


def _with_helpers(code: str, parts: list[str]) -> str:
    """Add to code those of the parts before it that define names which it reads and nobody else defines."""
    before = parts[: parts.index(code)]
    if not before or not all(map(compiles, [code, *before])):
        return code
    tree = ast.parse(code)
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    missing = {name for name in read - _bound(tree) if not hasattr(builtins, name)}
    own = _defined(tree)
    helpers = [part for part in before if missing & _defined(ast.parse(part)) and not own & _defined(ast.parse(part))]
    return "\n\n".join([*helpers, code])


def _defined(tree: ast.Module) -> set[str]:
    """List names that some code binds for all of itself, outside of functions and classes."""
    return {name for node in tree.body for name in ([node.name] if isinstance(node, _DEFINITIONS) else _bound(node))}


def _bound(tree: ast.AST) -> set[str]:
    """List names that some code binds, wherever in it."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, _DEFINITIONS):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.arg):
            names.add(node.arg)
    return names


def _without_remarks(code: str) -> str:
    """Drop lines at the end that are prose by their looks and Python by chance, such as ``This is prose``."""
    tree = ast.parse(code)
    kept = list(tree.body)
    while len(kept) > 1 and isinstance(kept[-1], ast.Expr) and isinstance(kept[-1].value, ast.Name | ast.Compare):
        kept.pop()
    return code if len(kept) == len(tree.body) else "\n".join(code.splitlines()[: kept[-1].end_lineno])


def defines(code: str, names: tuple[str, ...]) -> bool:
    """Return whether code defines one of some names at its top level, by the look of it: it may not be whole."""
    either = "|".join(map(re.escape, names))
    return (
        bool(names)
        and re.search(rf"^(?:(?:async )?def|class) +(?:{either})\b|^(?:{either}) *(?::[^=\n]+)?=(?!=)", code, re.M)
        is not None
    )


def complete(prompt: str, code: str, name: str) -> str:
    """Return a program out of a function's beginning (imports, signature, docstring) and an answer's code.

    Code that defines the function stands for itself, after the imports and helpers that the prompt gives it; other
    code is taken for the function's body, indented by whatever or not at all, as far as it is Python.
    """
    if defines(code, (name,)):
        given = prompt[: _start_of(prompt, name)]
        return "".join(_FUTURE.findall(code)) + given + "\n" + _FUTURE.sub("", code) + "\n"
    head = prompt.rstrip() + "\n"
    indent = re.match(r"[ \t]*", head.rstrip("\n").rpartition("\n")[2])
    indent_text = (indent[0] if indent else "") or "    "
    forms: list[Callable[[str], str]] = [
        lambda body: head + textwrap.indent(body, indent_text),
        # A body whose first line lost its indentation, as happens where an answer is stripped.
        lambda body: head + indent_text + body,
        # The same, indented by tabs or by another number of spaces than the docstring.
        lambda body: head + textwrap.indent(_levelled(body), indent_text),
    ]
    if code[:1].isspace():
        forms.insert(0, lambda body: head + body)
    whole = [form(code) for form in forms]
    compiled = next(filter(compiles, whole), None)
    if compiled:
        return compiled
    lines = code.strip("\n").splitlines()
    while len(lines) > 1 and not (lines[0][:1].isspace() or _STATEMENT.match(lines[0])):  # "Here is the body:"
        del lines[0]
    parts = [part for form in (forms[-3], forms[-1]) if (part := _longest(lines, form))]
    return max(parts, key=len, default=whole[0])


def called_names(tests: list[str]) -> tuple[str, ...]:
    """Return the names that every one of some tests mentions; Python's own ones only where there are no others."""
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
    """Return whether Python can compile some code."""
    try:
        with _WARNINGS, warnings.catch_warnings():  # the lock, because the filters are the whole process's
            warnings.simplefilter("ignore")
            compile(code, "answer", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True


def _without_markers(text: str) -> str:
    """Drop what says that an answer begins or ends, and all behind the latter."""
    text = _END.split(text.lstrip("\n"), maxsplit=1)[0] if _END.split(text)[0].strip() else _END.sub("", text)
    return _MARKERS.sub("", text)


def _blocks(text: str) -> Iterator[tuple[str, bool]]:
    """Yield what stands between fences, in order, and whether that is inside one of Python or of no language."""
    end = _END.search(text)
    text = text[: end.start()] if end and text[: end.start()].strip() else _END.sub("", text)
    for stretch in _DONE.split(text):
        stretch = _MARKERS.sub("", stretch)
        fences = list(_FENCE.finditer(stretch))
        at, language = 0, None
        for number, fence in enumerate(fences):
            inner = stretch[at : fence.start()]
            opens = language is None and not _closes_alone(fence, inner, len(fences) - number)
            if inner.strip():
                in_fence = not opens and _PYTHON.fullmatch(language or "") is not None
                if in_fence or language is None:
                    yield _block(inner), in_fence
            at, language = fence.end(), (fence[1] or "") if opens else None
        if stretch[at:].strip() and _PYTHON.fullmatch(language or ""):
            yield _block(stretch[at:]), language is not None


def _block(text: str) -> str:
    return textwrap.dedent(text.removeprefix("\n"))


def _closes_alone(fence: re.Match[str], before: str, left: int) -> bool:
    """Tell whether a fence closes the code before it though none opened it.

    It does if it names no language, the number of those left is odd, and there is a definition before it.
    """
    return not fence[1] and left % 2 == 1 and _DEFINITION.search(before) is not None


def _parts(lines: list[str]) -> Iterator[str]:
    """Yield runs of lines that begin with code, the earliest first and of each beginning the longest first."""
    tries = 0
    starts = [number for number, line in enumerate(lines) if _CODE_LINE.match(line)]
    starts += [number for number, line in enumerate(lines) if line[:1].isspace() and _CODE_LINE.match(line.lstrip())]
    for start in starts:
        for end in range(len(lines), start, -1):
            if not lines[end - 1].strip():
                continue
            yield textwrap.dedent("\n".join(lines[start:end]))
            tries += 1
            if tries >= _MOST_TRIES:
                return


def _levelled(body: str) -> str:
    """Put spaces for the tabs of a body, and take its own indentation off."""
    lines = [re.sub(r"^[ \t]+", lambda indent: indent[0].expandtabs(4), line) for line in body.splitlines()]
    level = textwrap.dedent("\n".join(lines))
    if len(lines) < 2 or lines[0][:1].isspace():
        return level
    later = [len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()]
    first_lost = bool(later) and min(later) > 0 and not lines[0].rstrip().endswith(":")
    return lines[0] + "\n" + textwrap.dedent("\n".join(lines[1:])) if first_lost else level


def _start_of(prompt: str, name: str) -> int:
    found = list(re.finditer(rf"^(?:async )?def +{re.escape(name)}\b", prompt, re.MULTILINE))
    return found[-1].start() if found else len(prompt)


def _longest(lines: list[str], build: Callable[[str], str]) -> str | None:
    """Build from as many of the lines, from the first on, as make Python; what follows code is prose again."""
    programs = (build("\n".join(lines[:end])) for end in range(len(lines), 0, -1))
    return next(filter(compiles, programs), None)
