"""What a runner takes away from itself before it reads the program."""

from __future__ import annotations

import errno
import math
import os
import resource
import sys
from typing import Any

_OPEN_FILES = 128
_READ_WRITE = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_MIB = 1 << 20


def confine(settings: dict[str, Any], own_user: int | None) -> dict[str, Any]:
    """Lay every restriction on this process that the machine provides.

    Args:
        settings: as the host gives them.
        own_user: the user id to take, None for the present one.

    Returns:
        What is in force: ``limited`` and ``unlimited`` (fields of the host's ``Limits``), ``counted`` (whether
        processes are counted for this sandbox alone), ``own_user``, ``landlock`` (ABI version) with ``no_landlock``
        and ``seccomp`` with ``no_seccomp`` (why not).

    Raises:
        OSError: the kernel refused what it should grant, or nothing would keep a program from starting processes
            without end.
    """
    _set_environment(settings["box"])
    counted = _counted(settings, own_user)
    facts: dict[str, Any] = {"counted": counted, "own_user": own_user is not None}
    facts |= _limit(settings["limits"], counted=counted)
    if own_user is not None:
        os.setgroups([])
        os.setresgid(own_user, own_user, own_user)
        os.setresuid(own_user, own_user, own_user)
    if sys.platform != "linux":
        reason = "only Linux has it"
        facts |= {"landlock": 0, "no_landlock": reason, "seccomp": False, "no_seccomp": reason}
    else:
        facts |= _lock(settings, counted=counted)
    if not facts["seccomp"] and not counted:
        if os.geteuid() == 0:
            reason = "without namespaces and seccomp nothing limits the processes of root; run as an ordinary user"
            raise OSError(errno.EPERM, reason)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    return facts


def _set_environment(box: str) -> None:
    """Set a working folder and variables that say nothing about the machine."""
    os.chdir(box)
    os.umask(0o077)
    os.environ.clear()
    os.environ.update(HOME=box, TMPDIR=box, PATH="/usr/local/bin:/usr/bin:/bin", LANG="C.UTF-8")
    # numpy's libraries otherwise start one thread a core, each of which takes address space
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")


def _counted(settings: dict[str, Any], own_user: int | None) -> bool:
    """Tell whether the kernel counts this sandbox's processes apart from all others of the same user.

    It does for a user id of its own; in a user namespace it does from Linux 5.14 on, and never for root.
    """
    if own_user is not None:
        return True
    if not settings["namespaces"] or os.geteuid() == 0:
        return False
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int("".join(filter(str.isdigit, minor)))) >= (5, 14)


def _limit(limits: dict[str, Any], *, counted: bool) -> dict[str, list[str]]:
    """Set resource limits, hard and soft, by the fields they come from."""
    cpu = math.ceil(limits["cpu_seconds"])
    wanted = {
        "cpu_seconds": (resource.RLIMIT_CPU, cpu),
        "memory_mib": (resource.RLIMIT_AS, limits["memory_mib"] * _MIB),
        "file_mib": (resource.RLIMIT_FSIZE, limits["file_mib"] * _MIB),
    }
    if counted:
        # the warden and the judge count too where all three are the same user
        wanted["processes"] = (resource.RLIMIT_NPROC, limits["processes"] + 2)
    done: dict[str, list[str]] = {"limited": ["wall_seconds"], "unlimited": []}
    for name, (which, value) in wanted.items():
        try:
            resource.setrlimit(which, (value, value))
        except (ValueError, OSError):
            held = False
        else:
            held = name != "memory_mib" or sys.platform == "linux"  # macOS takes the limit and ignores it
        done["limited" if held else "unlimited"].append(name)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    return done


def _lock(settings: dict[str, Any], *, counted: bool) -> dict[str, Any]:
    """Lock privileges, file rules and the filter of system calls, in the order in which each permits the next."""
    facts: dict[str, Any] = {"landlock": 0, "no_landlock": "", "seccomp": False, "no_seccomp": ""}
    try:
        from . import kernel, landlock, seccomp
    except ImportError as error:
        return facts | {"no_landlock": str(error), "no_seccomp": str(error)}
    kernel.drop_capabilities()
    kernel.gain_no_privileges()
    kernel.die_with_parent()
    try:
        facts["landlock"] = landlock.restrict(settings["readable"], _READ_WRITE, settings["box"])
    except OSError as error:
        facts["no_landlock"] = str(error.strerror)
    try:
        seccomp.restrict(
            subprocesses=settings["limits"]["subprocesses"] and counted,
            namespaces=settings["namespaces"],
            file_rules=settings["namespaces"] or facts["landlock"] > 0,
        )
        facts["seccomp"] = True
    except OSError as error:
        facts["no_seccomp"] = str(error.strerror)
    return facts
