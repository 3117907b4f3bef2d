"""The verdict on one untrusted program."""

from __future__ import annotations

import secrets
import signal
from dataclasses import dataclass, replace
from typing import Any

from dmax.evaluation.sandbox.isolation import namespaces_work
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


def run_program(program: str, tests: str, limits: Limits | None = None) -> SandboxResult:
    """Run a program and then its tests in a sandbox, in a process of their own that nothing outlives.

    The tests see what the program defined, and pass where they run to their end. ``__name__`` is not ``"__main__"``.
    May be called from several threads at once. What the sandbox keeps out depends on the machine:
    :func:`~dmax.evaluation.sandbox.available_isolation` says it.

    Args:
        program: Python source that is not trusted.
        tests: Python source that is.
        limits: what both together may use up; ``Limits()`` where None.

    Returns:
        The verdict. A program that passes has run twice: the second time the last of the tests cannot be passed, and
        a program that passes nevertheless has ``forged`` its result.

    Raises:
        SandboxError: the sandbox could not be set up.
    """
    limits = limits or Limits()
    number = 2 * secrets.randbits(62)
    result = _run(program, _with_parity_test(tests, number), limits)
    if result.passed and _run(program, _with_parity_test(tests, number + 1), limits).passed:
        detail = "it also passes tests that no program can pass"
        return replace(result, passed=False, reason="forged", detail=detail)
    return result


def _with_parity_test(tests: str, number: int) -> str:
    """The tests and one more; the program can tell the number's parity only by looking at the tests."""
    return f"{tests}\nassert {number} % 2 == 0\n"


def _run(program: str, tests: str, limits: Limits) -> SandboxResult:
    report = launch(program, tests, limits, namespaces=namespaces_work())
    if report is None:
        return SandboxResult(False, "crashed", "the sandbox was killed from outside", 0.0)
    reason, detail = _verdict(report, limits)
    return SandboxResult(reason == "passed", reason, detail, report["seconds"])


def _verdict(report: dict[str, Any], limits: Limits) -> tuple[str, str]:
    """Reason and detail. For a pass only the judge's word counts; the program's own words only describe a failure."""
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
    """The last line that is not blank, without anything that a terminal would act on."""
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    return "".join(c if c.isprintable() else "?" for c in lines[-1].strip())[:_LONGEST_DETAIL]
