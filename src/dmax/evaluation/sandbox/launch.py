"""Starting one sandbox process, talking to it, and leaving nothing of it behind."""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

STARTUP_SECONDS = 60
"""Longest that a machine under load may take to start an interpreter and to clear it away, on top of the wall time."""

_FLAGS = ("-s", "-P", "-S", "-X", "utf8")
"""No user packages, no script folder and no ``site`` on the path, no byte code written. The environment is one of
ours, so that ``PYTHON*`` variables need not be ignored, and the hash seed can be fixed."""
_BOOT = "import sys; sys.path.insert(0, sys.argv.pop(1)); from jail.warden import main; main()"
"""The jail is imported under a name of its own: importing it as a part of dmax would import torch."""
_SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store"),
    *("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime"),
)
"""What shared libraries, time zones and the loader need besides Python's own folders."""


class SandboxError(ValueError):
    """Limits that cannot be set, or a machine on which no sandbox can be set up; it says nothing about a program."""


@dataclass(frozen=True)
class Limits:
    """What a program may use up. Values are checked when the object is made.

    Raises:
        SandboxError: a limit is not a positive number, or not a whole one where only whole ones count.
    """

    cpu_seconds: float = 10.0
    """Processor time of one process, rounded up to whole seconds."""
    wall_seconds: float = 15.0
    """Time from the start of the program to the end of its tests."""
    memory_mib: int = 1024
    """Address space of one process, the interpreter's own included."""
    file_mib: int = 16
    """Size of one file; with namespaces also of all files together."""
    processes: int = 32
    """Processes and threads at one time, where the kernel can count them for one sandbox."""
    subprocesses: bool = False
    """Whether other processes may be started at all. Refused nevertheless where they could not be counted."""

    def __post_init__(self) -> None:
        for name in ("cpu_seconds", "wall_seconds", "memory_mib", "file_mib", "processes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise SandboxError(f"{name} is {value!r}; it must be a finite number above 0.")
            if name not in ("cpu_seconds", "wall_seconds") and not isinstance(value, int):
                raise SandboxError(f"{name} is {value!r}; it must be a whole number.")


def launch(program: str, tests: str, limits: Limits, *, namespaces: bool, marks: str = "") -> dict[str, Any] | None:
    """Run a program and its tests in a sandbox of their own.

    Args:
        program: Python source, run first.
        tests: Python source, run in the program's namespace once the program has run to its end.
        limits: what they may use up.
        namespaces: whether to build the sandbox on Linux namespaces.
        marks: name of the list in which the tests mark what they have run; none where empty.

    Returns:
        The judge's report (``jail/judge.py`` lists its keys); None where the judge itself was killed.

    Raises:
        SandboxError: the sandbox could not be set up as asked.
    """
    box = Path(tempfile.mkdtemp(prefix="dmax-sandbox-"))
    try:
        return _report(*_talk((program, tests, marks), _settings(limits, box, namespaces), box, limits.wall_seconds))
    finally:
        remove_tree(box)


def _settings(limits: Limits, box: Path, namespaces: bool) -> dict[str, Any]:
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    readable = {sys.prefix, sys.base_prefix, sys.exec_prefix, *packages, *libraries, *_SYSTEM}
    return {
        "limits": asdict(limits),
        "box": str(box.resolve()),
        "namespaces": namespaces,
        "packages": packages,
        "readable": sorted(path for path in readable if path.startswith("/") and path != "/" and os.path.exists(path)),
        "parent": os.getpid(),
    }


def _environment() -> dict[str, str]:
    """Return the environment of the interpreter that starts: nothing of ours but where its shared libraries lie."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}
    return {"PYTHONHASHSEED": "0", **kept}  # a fixed seed: the order of a set must not decide a verdict


def _talk(
    sources: tuple[str, str, str], settings: dict[str, Any], box: Path, wall_seconds: float
) -> tuple[int, bytes, bytes]:
    """Return exit code, standard output and standard error of one sandbox."""
    jail = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, *_FLAGS, "-c", _BOOT, jail, json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=box,
        env=_environment(),
        start_new_session=True,
    )
    request = json.dumps(dict(zip(("program", "tests", "marks"), sources, strict=True))).encode()
    try:
        output, errors = process.communicate(request, timeout=wall_seconds + STARTUP_SECONDS)
    except subprocess.TimeoutExpired:
        raise SandboxError(f"The sandbox gave no answer within {wall_seconds + STARTUP_SECONDS:.0f} seconds.") from None
    finally:
        if process.returncode != 0:  # the judge did not get to clear up
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, output, errors


def _report(code: int, output: bytes, errors: bytes) -> dict[str, Any] | None:
    if code < 0 or code == 128 + signal.SIGKILL:
        return None
    try:
        report: dict[str, Any] = json.loads(output)
    except ValueError:
        lines = errors.decode(errors="replace").strip().splitlines() or ["no message"]
        raise SandboxError(f"The sandbox ended with exit code {code}: {lines[-1]}.") from None
    if "error" in report:
        raise SandboxError(report["error"])
    return report


def remove_tree(folder: Path) -> None:
    """Remove a folder that an untrusted program filled.

    Folders are emptied into their top folder level by level, because a tree may be deeper than a path can be long, and
    deeper than Python can recurse.
    """
    os.chmod(folder, 0o700)
    while subfolders := [entry.path for entry in os.scandir(folder) if _is_folder_once_unlinked(entry)]:
        for subfolder in subfolders:
            os.chmod(subfolder, 0o700)
            for entry in list(os.scandir(subfolder)):
                if _is_folder_once_unlinked(entry):
                    os.chmod(entry.path, 0o700)  # to move a folder, its ".." must be writable
                    os.rename(entry.path, folder / secrets.token_hex(8))
            os.rmdir(subfolder)
    os.rmdir(folder)


def _is_folder_once_unlinked(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder; anything else is deleted."""
    if entry.is_dir(follow_symlinks=False):
        return True
    os.unlink(entry.path)
    return False
