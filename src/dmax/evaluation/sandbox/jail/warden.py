"""The first process of a sandbox: builds the walls, then judges, or with namespaces has a child of it judge."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import Any, NoReturn


def main() -> NoReturn:
    """Read the settings from the command line and the program from standard input; report on standard output."""
    settings = json.loads(sys.argv.pop(1))
    os.umask(0o022)  # the folders of a new root must be open to the runner's user
    own_user = None
    try:
        if sys.platform == "linux":
            own_user = _prepare(settings)
    except OSError as error:
        _reply({"error": f"{error.strerror or error}."})
        sys.exit(0)
    except (ImportError, KeyError) as error:  # no ctypes, or a processor whose system calls are not known here
        _reply({"error": f"{error}."})
        sys.exit(0)
    from .judge import Watch

    _reply(Watch(settings, own_user).run())
    sys.exit(0)


def _prepare(settings: dict[str, Any]) -> int | None:
    """Set up what only the judge's process can. With namespaces, go on in their first process.

    Returns:
        The user id that the runner is to take; None where it keeps the present one.
    """
    if not settings["namespaces"]:
        with suppress(ImportError):  # without ctypes there is nothing of this
            from . import kernel

            kernel.die_with_parent()
            kernel.adopt_orphans()
            kernel.hide_memory()
        _leave_if_orphaned(settings["parent"])
        return None
    from . import judge, kernel, landlock, namespaces, seccomp  # noqa: F401 -- before their files are out of reach

    kernel.die_with_parent()
    _leave_if_orphaned(settings["parent"])
    own_user = namespaces.enter(settings)
    first = os.fork()
    if first:
        code = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
    kernel.die_with_parent()
    kernel.hide_memory()
    os.setsid()  # a signal to the program's process group must not reach the warden outside
    return own_user


def _leave_if_orphaned(parent: int) -> None:
    """Leave if the parent ended before it could take this process with it."""
    if os.getppid() != parent:
        sys.exit(1)


def _reply(report: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(report))
    sys.stdout.flush()
