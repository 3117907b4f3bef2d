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


def limit_memory() -> None:
    """Where the system can."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def same(math_verify: Any, gold: str, answer: str, seconds: int) -> bool:
    r"""Whether an answer, of which the last ``\boxed{}`` counts most, equals a reference in ``\boxed{}``."""
    forms = (math_verify.LatexExtractionConfig(boxed_match_priority=0), math_verify.ExprExtractionConfig())
    expected = math_verify.parse(gold, extraction_config=forms, parsing_timeout=seconds)
    given = math_verify.parse(answer, extraction_config=forms, parsing_timeout=seconds)
    return bool(math_verify.verify(expected, given, timeout_seconds=seconds))


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
