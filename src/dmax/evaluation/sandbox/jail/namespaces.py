"""A root folder, process ids, network, IPC and host name of its own for one sandbox.

Not bubblewrap, which works where it is installed: its ``--tmpfs`` bounds bytes but not the number of files, it gives
the sandboxes of root no user id each, by which their processes are counted, and pip does not bring it, so that this
file would stay for everyone else and every wall would have to be tested twice.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from . import kernel

_PRIVATE = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
_FIRST_OWN_USER = 1 << 30
"""User ids from here on belong to nobody. A sandbox takes this plus its process id: no two that run share one, so the
kernel counts each one's processes apart."""
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_ROOT_MIB = 1
_FILES = 4096


def enter(settings: dict[str, Any]) -> int | None:
    """Leave everything of this machine behind but the readable folders; the next child has process id 1.

    Args:
        settings: ``box``, ``readable`` and ``limits`` as the host gives them.

    Returns:
        The user id that the runner is to take; None where it keeps the present one.

    Raises:
        OSError: the machine does not provide what is needed. This process is then of no further use.
    """
    own_user = _FIRST_OWN_USER + os.getpid()
    if os.geteuid() == 0 and _is_mapped(own_user):
        kernel.unshare(_PRIVATE)
        _build_root(settings, own_user)
        return own_user
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(kernel.CLONE_NEWUSER | _PRIVATE)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")
    _build_root(settings, user)
    return None


def _is_mapped(user: int) -> bool:
    """Tell whether a user id exists where this process runs; in a container only some do."""
    with open("/proc/self/uid_map") as lines:
        ranges = [[int(word) for word in line.split()] for line in lines]
    return any(first <= user < first + count for first, _, count in ranges)


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _build_root(settings: dict[str, Any], user: int) -> None:
    """Make a small tmpfs the root, with read-only views of the readable folders, and the box a tmpfs of its own.

    The box serves as mount point for the new root, so that no other folder of the machine is needed for it.
    """
    box = settings["box"]
    readable = [(path, os.path.realpath(path)) for path in settings["readable"]]
    devices = [(path, path) for path in _DEVICES if os.path.exists(path)]
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("tmpfs", box, "tmpfs", flags, f"size={_ROOT_MIB}m,mode=755")
    old = os.path.join(box, "old")
    os.mkdir(old)
    kernel.pivot_root(box, old)
    os.chdir("/")
    views = sorted({view for path, real in readable for view in ((path, real), (real, real))})
    _bind_all([view for view in views if view[0] != box], kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV)
    # Read-only: a device can be written to all the same, but its mode cannot be changed, which would be the machine's.
    _bind_all(devices, kernel.MS_RDONLY | kernel.MS_NOSUID)
    os.makedirs(box, exist_ok=True)
    size = settings["limits"]["file_mib"]
    kernel.mount("tmpfs", box, "tmpfs", flags, f"size={size}m,nr_inodes={_FILES},mode=700,uid={user}")
    kernel.unmount("/old")
    os.rmdir("/old")
    kernel.set_mount_flags("/", kernel.MS_RDONLY, recursive=False)


def _bind_all(views: Sequence[tuple[str, str]], flags: int) -> None:
    """Show ``real`` of the old root at ``path`` for every (path, real), but for paths inside what is shown already."""
    shown: list[str] = []
    for path, real in views:
        if any(path == other or path.startswith(other + "/") for other in shown):
            continue
        if os.path.isdir("/old" + real):
            os.makedirs(path, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            open(path, "x").close()
        kernel.mount("/old" + real, path, None, kernel.MS_BIND | kernel.MS_REC)
        kernel.set_mount_flags(path, flags, recursive=True)
        shown.append(path)
