"""Compiling functions of tensors ahead of time, for the CPU at hand.

A pass over a block of a small model is hundreds of operations of a few microseconds, most of which PyTorch spends on
getting to them. AOTInductor turns a chain of them into one call.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LIKELY = 32
"""Positions that a library is tuned for; it takes any number of them."""

Library = Callable[[list[Tensor]], list[Tensor]]


class CompileError(ValueError):
    """Nothing can be compiled here; the message says what is missing."""


@dataclass(frozen=True)
class Chain:
    """A function to compile, with tensors like those it will be given."""

    name: str
    function: Callable[..., Any]
    examples: tuple[Tensor, ...]
    """Contiguous."""
    varying: tuple[tuple[str, ...], ...]
    """Names of the leading dimensions that a call may have any size of, tensor by tensor."""


def compile_chain(chain: Chain, path: Path) -> None:
    """Compile one function into a library, a file that ends in ``.pt2``."""
    sizes = {name: torch.export.Dim(name, min=1) for names in chain.varying for name in names}
    shapes = tuple({at: sizes[name] for at, name in enumerate(names)} for names in chain.varying)
    # Oblivious: a size of 1 is a size like any other.
    oblivious = torch.fx.experimental._config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), warnings.catch_warnings(), oblivious:
        warnings.simplefilter("ignore")  # of PyTorch's own parts about each other
        exported = torch.export.export(_Module(chain.function), chain.examples, dynamic_shapes=(shapes,))
        torch._inductor.aoti_compile_and_package(
            exported, package_path=str(path), inductor_configs={"cpp.dynamic_threads": True}
        )


def load_library(path: Path) -> Library:
    """What was compiled into a file: a list of tensors like the examples -> a list of results."""
    # What torch._inductor.aoti_load_package wraps; the wrapper imports the compiler, which takes a second and a half.
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
    return loader.boxed_run


def require_compiler() -> str:
    """The C++ compiler.

    Raises:
        CompileError: there is none.
    """
    wanted = [name for name in (os.environ.get("CXX"), "g++", "clang++") if name]
    found = next((name for name in wanted if shutil.which(name)), None)
    if found is None:
        raise CompileError("there is no C++ compiler here; install g++ or clang++, or name one in CXX.")
    return found


class _Module(nn.Module):
    """A function as a module, which is what can be exported."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *tensors: Tensor) -> Any:
        found = self._function(*tensors)
        return tuple(found) if isinstance(found, tuple) else found  # no names, which cannot be exported
