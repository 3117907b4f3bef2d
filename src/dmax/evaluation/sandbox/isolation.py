"""What stands between a program and this machine, as the sandbox itself reports it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from dmax.evaluation.sandbox.launch import Limits, SandboxError, launch

_PROBE = "import _ctypes, decimal, json, os, random, sys; os.listdir(sys.path[-1])"
"""Reads from the folders that a sandbox must keep readable; the last on the path holds the installed packages."""


@dataclass(frozen=True)
class Isolation:
    """The layers of a sandbox on this machine. ``dataclasses.asdict`` gives a JSON object of it."""

    system: str
    """Operating system, its version and the processor."""
    namespaces: bool
    """Own process ids, mounts, network, IPC and host name."""
    own_user: bool
    """The program runs as a user id of its own; only root can give it one."""
    landlock: int
    """ABI version of the file rules in force, 0 without."""
    seccomp: bool
    """System calls are filtered."""
    file_system: str
    """What a program can reach: ``private`` (a root of its own), ``rules`` (Landlock), ``read-only`` (nothing can be
    written, everything can be read) or ``open``."""
    network: str
    """``none`` or ``open``."""
    limits: tuple[str, ...]
    """The fields of :class:`Limits` that are in force."""
    missing: tuple[str, ...]
    """One sentence for everything that this machine does not provide, empty on a machine that provides all."""

    def __str__(self) -> str:
        layers = [
            "namespaces" if self.namespaces else "",
            "own user id" if self.own_user else "",
            f"Landlock (ABI {self.landlock})" if self.landlock else "",
            "seccomp" if self.seccomp else "",
            "resource limits" if self.limits else "",
        ]
        return " ".join([f"Sandbox on {self.system}: {', '.join(filter(None, layers))}.", *self.missing])


@cache
def available_isolation() -> Isolation:
    """Tell what this machine provides, found out once a process by running a program that does nothing.

    Raises:
        SandboxError: no sandbox can be set up on this machine.
    """
    if sys.platform == "win32":
        raise SandboxError("Untrusted programs can be run on Linux and macOS only; use a Linux container.")
    reason = "only Linux has them"
    if sys.platform == "linux":
        try:
            return _isolation(_facts(namespaces=True), "")
        except SandboxError as error:
            reason = str(error).rstrip(".")
    return _isolation(_facts(namespaces=False), reason)


def require_protection() -> None:
    """Make sure that something keeps a program from this machine.

    Raises:
        SandboxError: it could write every file that its user can.
    """
    isolation = available_isolation()
    if isolation.file_system == "open":
        raise SandboxError(
            f"Programs would run unprotected on this machine. {' '.join(isolation.missing)} Use a container, or ask "
            "for it by name: --unprotected."
        )


def namespaces_work() -> bool:
    """Tell whether sandboxes on this machine are built on namespaces."""
    return available_isolation().namespaces


def _facts(*, namespaces: bool) -> dict[str, Any]:
    report = launch(_PROBE, "", Limits(), namespaces=namespaces)
    if report is None:
        raise SandboxError("The sandbox was killed while it was set up.")
    if not report["attested"]:
        raise SandboxError(f"A sandbox cannot run Python here: {report['stderr'].strip() or 'no message'}.")
    facts: dict[str, Any] = report["facts"]
    return facts


def _isolation(facts: dict[str, Any], no_namespaces: str) -> Isolation:
    """Read the facts that a runner stated before it ran anything, with a sentence for all that is not there."""
    namespaces, landlock, seccomp = not no_namespaces, int(facts["landlock"]), bool(facts["seccomp"])
    if namespaces:
        file_system = "private"
    elif landlock:
        file_system = "rules"
    else:
        file_system = "read-only" if seccomp else "open"
    return Isolation(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        namespaces=namespaces,
        own_user=bool(facts["own_user"]),
        landlock=landlock,
        seccomp=seccomp,
        file_system=file_system,
        network="none" if namespaces or seccomp else "open",
        limits=tuple(facts["limited"]),
        missing=tuple(_missing(facts, file_system, no_namespaces)),
    )


_REACH = {
    "private": "only its namespaces keep a program from files",
    "read-only": "a program can read every file that its user can read, and write none",
    "open": "a program can read and write every file that its user can",
}


def _missing(facts: dict[str, Any], file_system: str, no_namespaces: str) -> Iterator[str]:
    if no_namespaces:
        yield f"No namespaces ({no_namespaces}): a program sees the process ids of the machine."
    if not facts["landlock"]:
        yield f"No Landlock ({facts['no_landlock']}): {_REACH[file_system]}."
    if not facts["seccomp"]:
        yield f"No seccomp ({facts['no_seccomp']}): a program can make every system call."
    if file_system == "rules":
        yield "The temporary folder is an ordinary one: the number of files in it is not limited."
    if file_system == "open" and no_namespaces:
        yield "The network is open, and a program can send signals to every process of its user."
    if not facts["counted"]:
        yield "Processes cannot be counted for one sandbox: a program may not start any."
    for name in facts["unlimited"]:
        yield f"The limit {name} has no effect."
