"""The verdict on one untrusted program."""

from __future__ import annotations

import secrets
import signal
from dataclasses import dataclass, replace
from typing import Any

from dmax.evaluation.sandbox.checkpoints import with_checkpoints
from dmax.evaluation.sandbox.isolation import namespaces_work, require_protection
from dmax.evaluation.sandbox.launch import Limits, launch

_LONGEST_DETAIL = 200
_EXIT_REASONS = {81: "failed", 82: "memory"}
"""Exit codes with which ``jail/runner.py`` says why it gave up. A program can use them too; none of them passes."""


@dataclass(frozen=True)
class SandboxResult:
    """What became of a program."""

    passed: bool
    """Whether the program and all its tests ran to their end."""
    reason: str
    """``passed``; ``failed`` (an exception or a failed test), ``timeout``, ``memory``, ``crashed`` (killed by a
    signal), ``exited early`` (ended before its tests were through) or ``forged`` (claimed to have passed what cannot
    be passed)."""
    detail: str
    """One printable line of at most 200 characters, mostly in the program's own words; empty where it passed."""
    seconds: float
    """Wall time from the start of the program to its end, the interpreter's start not counted."""


def run_program(program: str, tests: str, limits: Limits | None = None, *, unprotected: bool = False) -> SandboxResult:
    """Run a program and then its tests in a sandbox, in a process of their own that nothing outlives.

    The tests see what the program defined, and pass where they run to their end. ``__name__`` is not ``"__main__"``.
    May be called from several threads at once. What the sandbox keeps out depends on the machine:
    :func:`~dmax.evaluation.sandbox.available_isolation` says it.

    Args:
        program: Python source that is not trusted.
        tests: Python source that is.
        limits: what both together may use up; ``Limits()`` where None.
        unprotected: whether to run it where nothing keeps it from this machine's files and network.

    Returns:
        The verdict. A program that passes has run twice: the second time one of the tests cannot be passed, and a
        program that passes nevertheless has ``forged`` its result.

    Raises:
        SandboxError: the sandbox could not be set up, or would protect nothing.
    """
    limits = limits or Limits()
    if not unprotected:
        require_protection()
    number = 2 * secrets.randbits(62)
    result = _run(program, tests, number, limits)
    if result.passed and _run(program, tests, number + 1, limits).passed:
        detail = "it also passes tests that no program can pass"
        return replace(result, passed=False, reason="forged", detail=detail)
    return result


def _run(program: str, tests: str, number: int, limits: Limits) -> SandboxResult:
    """Run the program with tests that can be passed where ``number`` is even."""
    name = f"_{secrets.token_hex(8)}"
    report = launch(program, with_checkpoints(tests, name, number), limits, namespaces=namespaces_work(), marks=name)
    if report is None:
        return SandboxResult(False, "crashed", "the sandbox was killed from outside", 0.0)
    reason, detail = _verdict(report, limits)
    return SandboxResult(reason == "passed", reason, detail, report["seconds"])


def _verdict(report: dict[str, Any], limits: Limits) -> tuple[str, str]:
    """Return reason and detail. For a pass only the judge's word counts; the program's own describe a failure."""
    last_words, code = _last_line(report["stderr"]), report["exit_code"]
    if report["tampered"]:
        return "forged", "it wrote to the judge's channel"
    if report["timed_out"]:
        return "timeout", f"more than {limits.wall_seconds:g} s"
    if report["attested"] and code == 0:
        return "passed", ""
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and report["cpu_seconds"] >= limits.cpu_seconds - 0.5):
        return "timeout", f"more than {limits.cpu_seconds:g} s of processor time"
    if code < 0:
        return "crashed", f"{_signal_name(-code)} {last_words}".strip()
    if code in _EXIT_REASONS:
        return _EXIT_REASONS[code], last_words
    return "exited early", last_words or f"exit code {code} before the tests were through"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_line(text: str) -> str:
    """Return the last line that is not blank, without anything that a terminal would act on."""
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    return "".join(c if c.isprintable() else "?" for c in lines[-1].strip())[:_LONGEST_DETAIL]
