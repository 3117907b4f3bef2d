"""A filter of system calls that a process lays on itself and cannot take off.

It lists what is refused rather than what is allowed: numpy and whatever else a program imports may use any ordinary
call. Calls newer than this file are answered "not implemented", and libraries then take the older way.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Sequence

from . import kernel

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NEWEST = 450

# name x86_64 aarch64; "-" where an architecture does not have the call
_NUMBERS = {
    name: {"x86_64": x86_64, "aarch64": aarch64}
    for name, x86_64, aarch64 in (
        line.split()
        for line in """
        bind 49 200; connect 42 203; listen 50 201; socketpair 53 199
        acct 163 89; add_key 248 217; adjtimex 159 171; bpf 321 280; chmod 90 -; chown 92 -; chroot 161 51
        clock_adjtime 305 266; clock_settime 227 112; clone 56 220; clone3 435 435; creat 85 -; delete_module 176 106
        execve 59 221; execveat 322 281; fanotify_init 300 262; fchmod 91 52; fchmodat 268 53; fchown 93 55
        fchownat 260 54; fcntl 72 25; finit_module 313 273; fork 57 -; fremovexattr 199 16; fsconfig 431 431
        fsetxattr 190 7; fsmount 432 432; fsopen 430 430; fspick 433 433; futimesat 261 -; init_module 175 105
        io_uring_enter 426 426; io_uring_register 427 427; io_uring_setup 425 425; ioctl 16 29; ioperm 173 -
        iopl 172 -; ioprio_set 251 30; kcmp 312 272; kexec_file_load 320 294; kexec_load 246 104; keyctl 250 219
        kill 62 129; lchown 94 -; link 86 -; linkat 265 37; lookup_dcookie 212 18; lremovexattr 198 15
        lsetxattr 189 6; memfd_create 319 279; memfd_secret 447 447; migrate_pages 256 238; mkdir 83 -
        mkdirat 258 34; mknod 133 -; mknodat 259 33; modify_ldt 154 -; mount 165 40; mount_setattr 442 442
        move_mount 429 429; move_pages 279 239; mq_open 240 180; msgget 68 186; name_to_handle_at 303 264
        nfsservctl 180 42; open 2 -; open_by_handle_at 304 265; open_tree 428 428; openat 257 56; openat2 437 437
        perf_event_open 298 241; personality 135 92; pidfd_getfd 438 438; pidfd_open 434 434
        pidfd_send_signal 424 424; pivot_root 155 41; prlimit64 302 261; process_madvise 440 440
        process_mrelease 448 448; process_vm_readv 310 270; process_vm_writev 311 271; ptrace 101 117
        quotactl 179 60; quotactl_fd 443 443; reboot 169 142; removexattr 197 14; rename 82 -; renameat 264 38
        renameat2 316 276; request_key 249 218; rmdir 84 -; rt_sigqueueinfo 129 138; rt_tgsigqueueinfo 297 240
        sched_setaffinity 203 122; sched_setattr 314 274; sched_setparam 142 118; sched_setscheduler 144 119
        semget 64 190; setdomainname 171 162; sethostname 170 161; setns 308 268; setpriority 141 140
        settimeofday 164 170; setxattr 188 5; shmget 29 194; socket 41 198; swapoff 168 225; swapon 167 224
        symlink 88 -; symlinkat 266 36; syslog 103 116; tgkill 234 131; tkill 200 130; truncate 76 45
        umount2 166 39; unlink 87 -; unlinkat 263 35; unshare 272 97; userfaultfd 323 282; uselib 134 -
        utime 132 -; utimensat 280 88; utimes 235 -; vfork 58 -; vhangup 153 58
        """.replace("\n", ";").split(";")
        if line.strip()
    )
}

_NETWORK = ("socket", "connect", "bind", "listen")
_STREAM_PAIRS = tuple(1 | flags for flags in (0, 0o4000, 0o2000000, 0o2004000))
"""SOCK_STREAM, alone and with SOCK_NONBLOCK or SOCK_CLOEXEC: a pair of another kind can be sent elsewhere."""
_OTHER_PROCESSES = (
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "kcmp"),
    *("pidfd_open", "pidfd_getfd", "pidfd_send_signal", "rt_sigqueueinfo", "rt_tgsigqueueinfo"),
    *("move_pages", "migrate_pages", "setpriority", "ioprio_set"),
    *("sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler"),
)
_MACHINE = (
    *("acct", "add_key", "adjtimex", "bpf", "chroot", "clock_adjtime", "clock_settime", "delete_module"),
    *("fanotify_init", "finit_module", "fsconfig", "fsmount", "fsopen", "fspick", "init_module", "io_uring_enter"),
    *("io_uring_register", "io_uring_setup", "ioperm", "iopl", "kexec_file_load", "kexec_load", "keyctl"),
    *("lookup_dcookie", "modify_ldt", "mount", "mount_setattr", "move_mount", "name_to_handle_at", "nfsservctl"),
    *("open_by_handle_at", "open_tree", "perf_event_open", "personality", "pivot_root", "quotactl", "quotactl_fd"),
    *("reboot", "request_key", "setdomainname", "sethostname", "setns", "settimeofday", "swapoff", "swapon"),
    *("syslog", "umount2", "unshare", "userfaultfd", "uselib", "vhangup"),
)
_MEMORY_OUTSIDE_THE_LIMIT = ("memfd_create", "memfd_secret", "mq_open", "msgget", "semget", "shmget")
_STARTING = ("fork", "vfork", "execve", "execveat")
_BEYOND_FILE_RULES = (
    *("truncate", "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"),
)
"""What changes a file and is not covered by Landlock, or was not by its first versions."""
_PRETENDED = (
    *("chmod", "fchmod", "fchmodat", "chown", "fchown", "fchownat", "lchown"),
    *("utime", "utimes", "futimesat", "utimensat"),
)
"""Likewise, but ``shutil.copy`` and others fail without: these do nothing and succeed."""
_FILE_NAMES = (
    *("creat", "link", "linkat", "mkdir", "mkdirat", "mknod", "mknodat", "rename", "renameat", "renameat2"),
    *("rmdir", "symlink", "symlinkat", "unlink", "unlinkat"),
)

_CLONE_THREAD, _CLONE_NAMESPACES = 0x10000, 0x7E020000
_FCNTL_OWNERS = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX: a signal of choice to a process of choice
_IOCTLS = (0x5412, 0x541C, 0x540E, 0x8901, 0x8902)  # TIOCSTI, TIOCLINUX, TIOCSCTTY, FIOSETOWN, SIOCSPGRP
_WRITING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2

_NUMBER = struct.pack("=HBBI", _LOAD, 0, 0, _NUMBER_AT)
_FORBID = struct.pack("=HBBI", _RETURN, 0, 0, _REFUSE | errno.EPERM)
_UNKNOWN = struct.pack("=HBBI", _RETURN, 0, 0, _REFUSE | errno.ENOSYS)
_PRETEND = struct.pack("=HBBI", _RETURN, 0, 0, _REFUSE)  # an error number of 0: the call returns 0


def restrict(*, subprocesses: bool, namespaces: bool, file_rules: bool) -> None:
    """Refuse this process and its children the network, each other, the machine and memory that is not counted.

    Args:
        subprocesses: whether processes may be started; threads always may.
        namespaces: without them, a process may send signals to itself only, and files keep their modes, owners and
            times.
        file_rules: without namespaces and Landlock nothing can be opened for writing or renamed at all.

    Raises:
        OSError: the kernel has no seccomp, or the processor is neither x86-64 nor 64-bit ARM.
    """
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    blocks = _always()
    if not subprocesses:
        blocks += [_refuse(name) for name in _STARTING]
        blocks.append(_test("clone", 0, [_CLONE_THREAD], _ANY_BIT, refuse=False))
    if not namespaces:
        blocks += [_refuse(name) for name in ("tkill", *_BEYOND_FILE_RULES)]
        blocks += [(name, [_PRETEND]) for name in _PRETENDED]
        blocks += [_test(name, 0, [os.getpid()], _EQUAL, refuse=False) for name in ("kill", "tgkill")]
    if not file_rules:
        blocks += [_refuse(name) for name in _FILE_NAMES]
        blocks += [_test(name, at, [_WRITING_FLAGS], _ANY_BIT) for name, at in (("open", 1), ("openat", 2))]
    _install(_assemble(machine, blocks))


_Block = tuple[str, Sequence[bytes]]
"""A system call's name, and what the filter does once it has met that call."""


def _always() -> list[_Block]:
    names = (*_NETWORK, *_OTHER_PROCESSES, *_MACHINE, *_MEMORY_OUTSIDE_THE_LIMIT)
    return [
        *(_refuse(name) for name in names),
        ("clone3", [_UNKNOWN]),  # its flags lie in memory, where a filter cannot look; clone takes its place
        ("openat2", [_UNKNOWN]),
        _only("socketpair", 1, _STREAM_PAIRS),
        _test("clone", 0, [_CLONE_NAMESPACES], _ANY_BIT),
        _test("fcntl", 1, _FCNTL_OWNERS, _EQUAL),
        _test("ioctl", 1, _IOCTLS, _EQUAL),
        _test("prlimit64", 0, [0], _EQUAL, refuse=False),  # limits of any process but itself
    ]


def _refuse(name: str) -> _Block:
    return name, [_FORBID]


def _test(name: str, argument: int, values: Iterable[int], test: int, *, refuse: bool = True) -> _Block:
    """Refuse a call where the low half of an argument meets a test for one of ``values``, or where it does not."""
    steps = [struct.pack("=HBBI", _LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument)]
    for value in values:
        steps.append(struct.pack("=HBBI", test, 0 if refuse else 1, 1 if refuse else 0, value))
        steps.append(_FORBID)
    return name, [*steps, _NUMBER]


def _only(name: str, argument: int, values: Sequence[int]) -> _Block:
    """Refuse a call where the low half of an argument is none of ``values``."""
    steps = [struct.pack("=HBBI", _LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument)]
    steps += [struct.pack("=HBBI", _EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
    return name, [*steps, _FORBID, _NUMBER]


def _assemble(machine: str, blocks: Sequence[_Block]) -> bytes:
    """Write the filter as the kernel takes it: instructions of 8 bytes, run from the top for every call."""
    filter_ = [
        struct.pack("=HBBI", _LOAD, 0, 0, _ARCHITECTURE_AT),
        struct.pack("=HBBI", _EQUAL, 1, 0, _ARCHITECTURES[machine]),
        struct.pack("=HBBI", _RETURN, 0, 0, _KILL),  # 32-bit calls, whose numbers mean something else
        _NUMBER,
        struct.pack("=HBBI", _GREATER, 0, 1, _NEWEST),
        _UNKNOWN,
    ]
    for name, steps in blocks:
        number = _NUMBERS[name][machine]
        if number != "-":
            filter_ += [struct.pack("=HBBI", _EQUAL, 0, len(steps), int(number)), *steps]
    return b"".join([*filter_, struct.pack("=HBBI", _RETURN, 0, 0, _ALLOW)])


def _install(filter_: bytes) -> None:
    buffer = ctypes.create_string_buffer(filter_, len(filter_))
    program = struct.pack("@HP", len(filter_) // 8, ctypes.addressof(buffer))
    kernel.prctl("PR_SET_SECCOMP", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program)
