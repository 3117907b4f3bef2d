"""Whether two LaTeX answers are equal, asked of ``math-verify`` in a process that can be ended."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import weakref
from importlib.util import find_spec
from pathlib import Path

from dmax.evaluation.grading import boxed
from dmax.evaluation.grading.latex import comparable, same_words, stated_forms, tidy
from dmax.evaluation.grading.said import said
from dmax.evaluation.tasks.base import TaskError

_START_SECONDS = 120.0
"""More than the libraries take to import on a busy machine."""


class MathVerifier:
    """Compares answers one at a time, from whatever thread; its process starts with the first comparison.

    ``math-verify`` itself bounds a comparison with signals, which work in main threads only. Its process has one, and
    is killed where that bound fails.

    Args:
        seconds: how long ``math-verify`` may take for each step of a comparison.
    """

    def __init__(self, seconds: int = 5) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    @staticmethod
    def require() -> None:
        """Make sure that ``math-verify`` is installed.

        Raises:
            TaskError: it is not.
        """
        if find_spec("math_verify") is None:
            raise TaskError("grading this task needs math-verify: pip install 'dmax-llm[eval]'.")

    def same(self, gold: str, answer: str) -> bool:
        r"""Tell whether an answer states what a reference does.

        Args:
            gold: the reference, in ``\boxed{}``.
            answer: a whole answer; its ``\boxed{}`` counts, and without one its last expression.

        Returns:
            False also where the comparison takes too long or too much memory.

        Raises:
            TaskError: ``math-verify`` is missing or does not start.
        """
        expected = tidy(boxed(gold)[-1])
        for form in stated_forms(answer):
            same = same_words(expected, form)
            if same is not None:
                return same
            forms = comparable(expected, form)
            if self._equal(*forms) or (form.endswith("%") and self._equal(forms[0], form.rstrip("\\%"))):
                return True
        return not boxed(said(answer)) and self._ask(gold, said(answer))

    def _equal(self, gold: str, given: str) -> bool:
        return gold == given or self._ask(rf"\boxed{{{gold}}}", rf"\boxed{{{given}}}")

    def _ask(self, gold: str, answer: str) -> bool:
        request = {"gold": gold, "answer": answer, "seconds": self._seconds}
        with self._lock:
            process = self._running()
            reply = _ask(process, json.dumps(request), 4.0 * self._seconds)
            if reply is None:
                self._process = None
        return reply == "true"

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.require()
        # -P: the modules beside the script must not be taken for those that it imports.
        command = [sys.executable, "-P", str(Path(__file__).with_name("math_worker.py"))]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, text=True, encoding="utf-8")
        weakref.finalize(self, process.kill)
        if _ask(process, None, _START_SECONDS) != "ready":
            raise TaskError("math-verify is installed but cannot be imported; install it again.")
        self._process = process
        return process


def _ask(process: subprocess.Popen[str], request: str | None, seconds: float) -> str | None:
    """Send a process a line and read its next one; None where it died or had to be killed."""
    assert process.stdin is not None and process.stdout is not None
    killer = threading.Timer(seconds, process.kill)
    killer.start()
    try:
        if request is not None:
            process.stdin.write(request + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
    except OSError:
        line = ""
    finally:
        killer.cancel()
    if line:
        return line.strip()
    process.kill()
    process.wait()
    return None
