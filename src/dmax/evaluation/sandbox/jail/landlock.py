"""File rules of the Linux kernel that a process lays on itself and cannot take off; they bind root too."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable

from . import kernel

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_ONLY = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_OF_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of file rights, counted from the lowest bit, that each ABI version knows; later ones added none."""
_TCP = 0b11
_SCOPES = 0b11
"""Abstract sockets and signals to processes outside."""


def restrict(readable: Iterable[str], devices: Iterable[str], writable: str) -> int:
    """Let this process and its children open nothing but the given folders and files from now on.

    Args:
        readable: folders and files that can be read and executed.
        devices: files that can be read and written.
        writable: a folder in which everything is allowed.

    Returns:
        The version of the kernel's ABI, which decides what is covered beyond files: TCP from 4, signals from 6.

    Raises:
        OSError: the kernel has no Landlock, or it is switched off.
    """
    version = kernel.syscall("landlock_create_ruleset", _CREATE_RULESET, None, 0, _VERSION_ONLY)
    everything = (1 << _RIGHTS[min(version, max(_RIGHTS))]) - 1
    attributes = struct.pack("=3Q", everything, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24  # an older kernel refuses fields that it does not know
    rules = kernel.syscall("landlock_create_ruleset", _CREATE_RULESET, attributes[:size], size, 0)
    for path in readable:
        _allow(rules, path, everything & (_EXECUTE | _READ_FILE | _READ_DIR))
    for path in devices:
        _allow(rules, path, everything & (_READ_FILE | _WRITE_FILE))
    _allow(rules, writable, everything)
    kernel.syscall("landlock_restrict_self", _RESTRICT_SELF, rules, 0)
    os.close(rules)
    return version


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rights &= rights if os.path.isdir(path) else _OF_A_FILE
        kernel.syscall("landlock_add_rule", _ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", rights, opened), 0)
    finally:
        os.close(opened)
