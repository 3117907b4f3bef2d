"""The C++ sources of this folder, compiled into one library."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dmax.kernels.ahead import CompileError, require_compiler

_FOLDER = Path(__file__).parent
_UNIT = "library.cpp"
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC")
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
LANES = 16
"""Widths that kernels take are multiples of this."""


def source() -> str:
    """All of it; a library is only good for what it was made of."""
    return "".join(path.read_text(encoding="utf-8") for path in sorted([_FOLDER / _UNIT, *_FOLDER.glob("*.h")]))


def compile_library(path: Path) -> None:
    """Compile the library.

    Raises:
        CompileError: there is no compiler, or it cannot compile this; the message has its first complaint.
    """
    compiler = require_compiler()
    command = [compiler, *_FLAGS, str(_FOLDER / _UNIT), "-o", str(path)]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    if made.returncode:
        complaint = next((line for line in made.stderr.splitlines() if "error" in line), made.stderr[:200])
        raise CompileError(f"{compiler} cannot compile the kernels for this CPU: {complaint}")


class Function:
    """A function of a compiled library: takes addresses and sizes.

    Args:
        path: what :func:`compile_library` wrote.
        name: of the function, without the dtype.
        dtype: of the tensors it reads.
    """

    def __init__(self, path: Path, name: str, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._run: Any = getattr(ctypes.CDLL(str(path)), f"dmax_{name}_{DTYPES[dtype]}")
        self._run.restype = None

    def __call__(self, numbers: Sequence[int]) -> None:
        """Run it, without Python's lock."""
        self._run((ctypes.c_int64 * len(numbers))(*numbers))
