"""The process that runs the program. From the program's first line on, nothing it says can be trusted.

The judge believes a pass when it gets back two tickets. The first is shown when the program has run to its end. The
second has one half that comes with the tests and one half that stays unread in the pipe until the tests have run to
theirs, so that neither what can be found in memory nor what can be read from files suffices.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, ModuleType, TracebackType
from typing import Any, NoReturn

from .confine import confine

FAILED, OUT_OF_MEMORY = 81, 82
"""Exit codes; 0 is a program whose tests all ran."""
HALF_TICKET = 16
"""Characters of the half that stays in the pipe."""
_LENGTH_BYTES = 8
_LONGEST_MESSAGE = 1000


def frame(source: str, ticket: str, marks: str) -> bytes:
    """Return a message to the runner: lengths, the ticket, the name of the list of marks, the source.

    No JSON, whose functions the program may have replaced by the time the tests are read.
    """
    parts = [part.encode(errors="surrogatepass") for part in (ticket, marks, source)]
    return b"".join([*(len(part).to_bytes(_LENGTH_BYTES, "big") for part in parts), *parts])


def run(settings: dict[str, Any], own_user: int | None, inbox: int, outbox: int) -> NoReturn:
    """Confine this process, then run what the judge sends.

    Args:
        settings: as the host gives them.
        own_user: the user id to take, None for the present one.
        inbox: pipe from the judge.
        outbox: pipe to the judge: one line of facts, then one ticket a line.
    """
    leave = os._exit  # the program may replace the name in ``os``, but not what is in this frame without looking for it
    code = 1
    try:
        facts = _confine(settings, own_user)
        os.write(outbox, json.dumps(facts).encode() + b"\n")
        if "error" not in facts:
            code = _examine(inbox, outbox)
    except MemoryError:
        code = OUT_OF_MEMORY
    finally:
        leave(code)  # without ``atexit`` or waiting for threads: what the program left behind is not to run


def _confine(settings: dict[str, Any], own_user: int | None) -> dict[str, Any]:
    try:
        facts = confine(settings, own_user)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        return {"error": f"The sandbox could not be closed: {reason}."}
    for name in [name for name in sys.modules if name.partition(".")[0] == "jail"]:
        del sys.modules[name]
    sys.path[:] = [*sys.path[1:], *settings["packages"]]  # the first is where the jail lies
    sys.argv[:] = [""]
    sys.orig_argv[:] = [""]  # it names the sandbox's folder and dmax's own
    sys.dont_write_bytecode = True
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # an interpreter without ``site`` lacks them
    return facts


def _examine(inbox: int, outbox: int) -> int:
    """Run program and tests, showing the tickets. Returns the exit code."""
    # Whatever the runner still needs after the program is bound here, and taken from no module that it may change.
    read, write, execute, compiled, close_eyes = os.read, os.write, exec, compile, _without_tracing()
    builtin, originals = vars(builtins), dict(vars(builtins))
    module = ModuleType("program")  # dataclasses and pickle look for the module of a class by its name
    sys.modules["program"] = module
    for name in ("program", "tests"):
        lengths = [int.from_bytes(_receive(read, inbox, _LENGTH_BYTES), "big") for _ in range(3)]
        ticket, marks, source = (_receive(read, inbox, length).decode(errors="surrogatepass") for length in lengths)
        if name == "tests" and marks:
            module.__dict__[marks] = []
        try:
            execute(compiled(source, f"<{name}>", "exec", dont_inherit=True), module.__dict__)
        except SystemExit as exit_:
            _say(f"SystemExit: {exit_.code!r:.80} before the tests were through")
            return exit_.code if isinstance(exit_.code, int) and 0 <= exit_.code < FAILED else 1
        except MemoryError:
            _say("MemoryError")
            return OUT_OF_MEMORY
        except BaseException as error:
            _say(_describe(error, name, source, marks))
            return FAILED
        builtin.update(originals)
        close_eyes()
        half = _receive(read, inbox, HALF_TICKET) if name == "tests" else b""
        write(outbox, ticket.encode() + half + b"\n")
    return 0


def _without_tracing() -> Callable[[], None]:
    """Return a function that ends what the program may use to be told of, and to jump over, lines of the tests."""
    frame_of, trace, profile, threads = sys._getframe, sys.settrace, sys.setprofile, vars(threading)
    monitoring = getattr(sys, "monitoring", None)
    events, free = (monitoring.set_events, monitoring.free_tool_id) if monitoring else (None, None)

    def close_eyes() -> None:
        trace(None)
        profile(None)
        threads.update(_trace_hook=None, _profile_hook=None)
        place: FrameType | None = frame_of()
        while place is not None:
            place.f_trace = None
            place = place.f_back
        if events is not None and free is not None:
            for tool in range(6):
                with suppress(ValueError):
                    events(tool, 0)
                free(tool)

    return close_eyes


def _receive(read: Any, inbox: int, size: int) -> bytes:
    """Receive exactly ``size`` bytes, and none beyond them."""
    data = bytearray()
    while len(data) < size:
        piece = read(inbox, size - len(data))
        if not piece:
            raise EOFError("the judge is gone")
        data += piece
    return bytes(data)


def _describe(error: BaseException, name: str, source: str, marks: str) -> str:
    """Describe the error in one line, with the line of the program or its tests that it came through last."""
    try:
        message = " ".join(str(error).split())[:_LONGEST_MESSAGE]
    except BaseException as another:
        message = f"(its text cannot be made: {type(another).__name__})"
    line = _last_line_in(error.__traceback__, f"<{name}>")
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if not line:
        return text
    lines = source.splitlines()
    code = lines[line - 1].strip() if line <= len(lines) else ""
    mark = f"{marks}.append("
    while marks and mark in code:  # "marks.append(0);" before the statement
        before, _, behind = code.partition(mark)
        code = before + behind.partition(";")[2]
    return f"{text} ({name} line {line}: {code[:80]})"


def _last_line_in(traceback: TracebackType | None, file: str) -> int:
    line = 0
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == file:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _say(text: str) -> None:
    os.write(2, text.encode(errors="replace") + b"\n")
