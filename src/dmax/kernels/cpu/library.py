"""The C++ sources of this folder, compiled into one library in a folder of the user's cache.

:func:`compile_kernels` does the work; :func:`compiled_kernels` takes what is there, if anything is: nothing is ever
compiled while someone waits for an answer. The folder's name tells everything that the library depends on, so none is
taken for a processor or a version of the sources that it was not made for.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

_SOURCES = Path(__file__).parent
_UNIT = "library.cpp"
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-pthread", "-shared", "-fPIC")
PROCESSOR = "DMAX_PROCESSOR"
"""The environment variable that names, as the compiler's ``-march`` does, what a library may use: ``haswell`` for AVX2
without more. Without it that is everything the processor at hand has."""
_CPU_LISTING = Path("/proc/cpuinfo")
_KERNELS = "kernels.so"
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
SPIN_MICROSECONDS = 60.0
"""About as long as Python needs between two calls of a pass."""
LANES = 16
"""Widths that kernels take are multiples of this."""


class CompileError(ValueError):
    """Nothing can be compiled here; the message says what is missing."""


def kernels_folder() -> Path:
    """Return where the library for this machine and these sources is or would be."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # never raises, unlike Path.home
    return Path(folder) / "dmax" / "compiled" / _digest(_target())


def compiled_kernels(dtype: torch.dtype) -> Path | None:
    """Return the library that is compiled for this machine; None where there is none, or it does not know the dtype."""
    path = kernels_folder() / _KERNELS
    return path if dtype in DTYPES and path.is_file() else None


def compile_kernels() -> Path:
    """Compile what :func:`compiled_kernels` will find, and return its folder; a folder that is there is left alone.

    Raises:
        CompileError: there is no C++ compiler, or it cannot compile this.
        OSError: the cache cannot be written.
    """
    folder = kernels_folder()
    if folder.is_dir():
        return folder
    _require_compiler()
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        compile_library(making / _KERNELS)
        try:
            making.rename(folder)
        except OSError:
            if not folder.is_dir():  # if it is, somebody else was quicker
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def compile_library(path: Path, processor: str | None = None) -> None:
    """Compile the library into a file.

    Args:
        path: of the file.
        processor: that it is for, by its name for the compiler's ``-march``; see :data:`PROCESSOR`.

    Raises:
        CompileError: there is no compiler, or it cannot compile this; the message has its first complaint.
    """
    compiler = _require_compiler()
    command = [compiler, *_FLAGS, f"-march={processor or _target()}", str(_SOURCES / _UNIT), "-o", str(path)]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    if made.returncode:
        complaint = next((line for line in made.stderr.splitlines() if "error" in line), made.stderr[:200])
        raise CompileError(f"{compiler} cannot compile the kernels for this CPU: {complaint}")


def _require_compiler() -> str:
    """Return the C++ compiler's name."""
    wanted = [name for name in (os.environ.get("CXX"), "g++", "clang++") if name]
    found = next((name for name in wanted if shutil.which(name)), None)
    if found is None:
        raise CompileError("there is no C++ compiler here; install g++ or clang++, or name one in CXX.")
    return found


def _target() -> str:
    return os.environ.get(PROCESSOR) or "native"


@cache
def _digest(target: str) -> str:
    """Tell everything that the library depends on; nothing of it changes while a process runs."""
    sources = [path.read_text(encoding="utf-8") for path in sorted([_SOURCES / _UNIT, *_SOURCES.glob("*.h")])]
    return hashlib.sha256("\0".join([*sources, *_FLAGS, target, _processor()]).encode()).hexdigest()[:16]


def _processor() -> str:
    """Return what a library compiled for the processor at hand may use of it."""
    listing = _CPU_LISTING.read_text(encoding="utf-8") if _CPU_LISTING.is_file() else ""
    flags = next((line for line in listing.splitlines() if line.startswith(("flags", "Features"))), "")
    return torch.backends.cpu.get_cpu_capability() + flags.partition(":")[2]


def fields(**kinds: str) -> list[tuple[str, Any]]:
    """List fields of a struct by kind: names of addresses, of whole numbers and of fractions, in this order."""
    types = {"addresses": ctypes.c_void_p, "numbers": ctypes.c_int64, "fractions": ctypes.c_float}
    return [(name, types[kind]) for kind, names in kinds.items() for name in names.split()]


def set_team(path: Path, threads: int, spin_microseconds: float = SPIN_MICROSECONDS) -> None:
    """Say how many threads share the loops of a compiled library, in all of this process (``team.h``).

    Args:
        path: what :func:`compile_library` wrote.
        threads: the calling one included.
        spin_microseconds: that a thread waits actively before it sleeps.
    """
    team = ctypes.CDLL(str(path)).dmax_team
    team.argtypes, team.restype = [ctypes.c_int64, ctypes.c_int64], None
    team(threads, int(1000 * spin_microseconds))


class Function:
    """A function of a compiled library: takes a struct of addresses and sizes.

    Args:
        path: what :func:`compile_library` wrote.
        name: of the function, without the dtype.
        dtype: of the tensors it reads.
    """

    def __init__(self, path: Path, name: str, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._run: Any = getattr(ctypes.CDLL(str(path)), f"dmax_{name}_{DTYPES[dtype]}")
        self._run.restype = None

    def __call__(self, arguments: ctypes.Structure) -> None:
        """Run it, without Python's lock."""
        self._run(ctypes.byref(arguments))
