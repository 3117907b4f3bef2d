"""The process that watches a runner and says what became of it. It never runs anything of the program's."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from typing import Any, NoReturn

from . import runner

_SETUP_SECONDS = 45
"""Longest that a runner may take to confine itself on a machine under load."""
_LONGEST_TALK = 1 << 16
_KEPT_ERRORS = 1 << 14
_CHUNK = 1 << 16


class Exam:
    """Which line a runner may say next, and what it is told once it has."""

    def __init__(self, program: str, tests: str, marks: str) -> None:
        first, second, half = (os.urandom(runner.HALF_TICKET // 2).hex() for _ in range(3))
        self.facts: dict[str, Any] | None = None
        """What the runner stated about its confinement, before it was sent anything."""
        self.tampered = False
        """Whether anything came that had no place."""
        self.to_send = bytearray()
        self._heard = bytearray()
        self._messages = [
            runner.frame(program, first, marks),
            runner.frame(tests, second, marks) + half.encode(),
        ]
        self._expected = [first, second + half]

    @property
    def attested(self) -> bool:
        """Whether both tickets came back, and nothing else."""
        return self.facts is not None and not self._expected and not self._heard and not self.tampered

    def hear(self, data: bytes) -> None:
        """Take what the runner's pipe held."""
        self._heard += data
        while not self.tampered and b"\n" in self._heard:
            line, _, rest = bytes(self._heard).partition(b"\n")
            self._heard = bytearray(rest)
            self._hear_line(line)
        if len(self._heard) > _LONGEST_TALK:
            self.tampered = True

    def _hear_line(self, line: bytes) -> None:
        if self.facts is None:
            self.facts = json.loads(line)
        elif self._expected and line == self._expected[0].encode():
            del self._expected[0]
        else:
            self.tampered = True
            return
        if self._messages:
            self.to_send += self._messages.pop(0)


class Watch:
    """One runner, its pipes and its clock.

    Args:
        settings: as the host gives them.
        own_user: the user id that the runner is to take, None for the present one.
    """

    def __init__(self, settings: dict[str, Any], own_user: int | None) -> None:
        self._settings = settings
        self._inbox, self._outbox, self._errors, self._wake = (os.pipe() for _ in range(4))
        self._runner = os.fork()
        if self._runner == 0:
            self._become_runner(own_user)
        for end in (self._inbox[0], self._outbox[1], self._errors[1]):
            os.close(end)
        for end in (self._inbox[1], self._outbox[0], self._errors[0], *self._wake):
            os.set_blocking(end, False)
        _ignore_signals()
        signal.set_wakeup_fd(self._wake[1])
        signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler of ours nothing is written to the pipe
        self._said = bytearray()
        self._silent: set[int] = set()
        self._timed_out = False
        self._code: int | None = None
        self._cpu_seconds = 0.0

    def _become_runner(self, own_user: int | None) -> NoReturn:
        """Keep five files open and nothing else, in the child, and never come back."""
        try:
            nothing = os.open("/dev/null", os.O_RDWR)
            inbox, outbox = os.dup(self._inbox[0]), os.dup(self._outbox[1])
            for source, target in ((nothing, 0), (nothing, 1), (self._errors[1], 2), (inbox, 3), (outbox, 4)):
                os.dup2(source, target)
            os.closerange(5, os.sysconf("SC_OPEN_MAX") if sys.platform != "linux" else 1 << 16)
            runner.run(self._settings, own_user, 3, 4)
        finally:
            os._exit(1)

    def run(self) -> dict[str, Any]:
        """Let the program and its tests run, and report when every process of theirs is gone.

        Returns:
            ``facts`` (see ``confine``), or else ``error``; ``attested``, ``tampered``, ``timed_out``; ``exit_code`` of
            the runner, negative for a signal; ``cpu_seconds``, ``seconds`` and the end of ``stderr``.
        """
        request = json.load(sys.stdin)  # only now: what the runner's memory was copied from must not hold the tests
        exam = Exam(request["program"], request["tests"], request["marks"])
        started = time.monotonic()
        deadline = started + _SETUP_SECONDS
        while self._runs() and not exam.tampered:
            ready = exam.facts is not None
            left = deadline - time.monotonic()
            if left <= 0:
                self._timed_out = True
                break
            self._exchange(exam, left)
            if exam.facts is not None and not ready:
                started = time.monotonic()
                deadline = started + float(self._settings["limits"]["wall_seconds"])
        seconds = time.monotonic() - started
        self._kill_all()
        self._listen(self._outbox[0], exam)
        self._listen(self._errors[0], exam)
        if exam.facts is None or "error" in exam.facts:
            return exam.facts or {"error": "The sandbox could not be closed in time or broke down while it was."}
        return {
            "facts": exam.facts,
            "attested": exam.attested,
            "tampered": exam.tampered,
            "timed_out": self._timed_out,
            "exit_code": self._code,
            "cpu_seconds": self._cpu_seconds,
            "seconds": seconds,
            "stderr": self._said[-_KEPT_ERRORS:].decode(errors="replace"),
        }

    def _exchange(self, exam: Exam, seconds: float) -> None:
        """Wait until a pipe has something or the runner ends, and read and write what can be at once."""
        readable = [end for end in (self._outbox[0], self._errors[0]) if end not in self._silent]
        writable = [self._inbox[1]] if exam.to_send and self._inbox[1] not in self._silent else []
        ready, free, _ = select.select([*readable, self._wake[0]], writable, [], seconds)
        for end in ready:
            if end == self._wake[0]:
                os.read(end, _CHUNK)
            else:
                self._listen(end, exam, once=True)
        if free:
            try:
                del exam.to_send[: os.write(self._inbox[1], exam.to_send[:_CHUNK])]
            except BlockingIOError:
                pass
            except BrokenPipeError:
                self._silent.add(self._inbox[1])

    def _listen(self, end: int, exam: Exam, *, once: bool = False) -> None:
        """Read what a pipe holds: one piece of it, or all."""
        with suppress(BlockingIOError):
            while data := os.read(end, _CHUNK):
                if end == self._outbox[0]:
                    exam.hear(data)
                else:
                    self._said = (self._said + data)[-_KEPT_ERRORS:]
                if once:
                    return
            self._silent.add(end)

    def _runs(self) -> bool:
        self._reap()
        return self._code is None

    def _reap(self) -> bool:
        """Collect what has ended. Returns whether any child is left."""
        while True:
            try:
                process, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if process == 0:
                return True
            if process == self._runner:
                self._code = os.waitstatus_to_exitcode(status)
                self._cpu_seconds = usage.ru_utime + usage.ru_stime

    def _kill_all(self) -> None:
        """Kill every process that the program started and wait until the last is gone."""
        while self._reap():
            for process in self._children():
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.002)

    def _children(self) -> list[int]:
        """List process ids to kill. Orphans become children of this process, so their turn comes."""
        if os.getpid() == 1:
            return [-1]  # everything in the process namespace but this process
        alone = [self._runner] if self._code is None else []
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as children:
                return [int(word) for word in children.read().split()]
        except OSError:
            return alone


def _ignore_signals() -> None:
    """Die of SIGKILL and of faults of one's own only: the program may be able to send anything else."""
    needed = {
        signal.SIGKILL,
        signal.SIGSTOP,
        signal.SIGCHLD,
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGILL,
        signal.SIGFPE,
    }
    for number in signal.valid_signals() - needed:
        with suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
