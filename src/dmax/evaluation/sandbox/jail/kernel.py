"""Linux system calls that Python's standard library does not have. Importing this fails without ``ctypes``.

Every function raises ``OSError`` with the name of the call where the kernel refuses.
"""

from __future__ import annotations

import ctypes
import os
import struct

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 0x1000, 0x4000, 0x40000

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
_SIGKILL = 9
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def syscall(name: str, number: int, *arguments: int | bytes | None) -> int:
    """Make a system call by number; integers are passed as machine words."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(name, _libc.syscall(ctypes.c_long(number), *words))


def _checked(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Move this process, or with ``CLONE_NEWPID`` its next children, into namespaces of their own."""
    _checked("unshare", _libc.unshare(flags))


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mount or bind; see mount(2)."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    _checked(f"mount {target}", _libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]))


def set_mount_flags(target: str, flags: int, *, recursive: bool) -> None:
    """Add ``MS_RDONLY``, ``MS_NOSUID`` or ``MS_NODEV`` to a mount, and to the mounts below it where ``recursive``."""
    attributes = struct.pack("=4Q", flags, 0, 0, 0)  # for these three, MOUNT_ATTR_* has the values of MS_*
    at = _AT_RECURSIVE if recursive else 0
    syscall("mount_setattr", _MOUNT_SETATTR, _AT_FDCWD, os.fsencode(target), at, attributes, len(attributes))


def pivot_root(new_root: str, old_root: str) -> None:
    """Make a mount the root of this mount namespace; the root as it was appears at ``old_root``."""
    syscall("pivot_root", _PIVOT_ROOT[os.uname().machine], os.fsencode(new_root), os.fsencode(old_root))


def unmount(target: str) -> None:
    """Detach a mount and everything below it."""
    _checked("umount", _libc.umount2(os.fsencode(target), _MNT_DETACH))


def prctl(name: str, option: int, value: int, pointer: bytes | None = None) -> None:
    """Set an attribute of this process; ``name`` is for the error message."""
    zero = ctypes.c_ulong(0)
    _checked(name, _libc.prctl(option, ctypes.c_ulong(value), zero if pointer is None else pointer, zero, zero))


def die_with_parent() -> None:
    """Have this process killed when its parent ends. A change of user id undoes it."""
    prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, _SIGKILL)


def hide_memory() -> None:
    """Keep other processes of the same user from reading or tracing this one."""
    prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 0)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, 1)


def gain_no_privileges() -> None:
    """Let no program that this process starts gain privileges, as Landlock and seccomp ask of users but root."""
    prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Give up every capability for good (with :func:`gain_no_privileges`)."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _checked("capset", _libc.capset(header, struct.pack("=6I", *[0] * 6)))
