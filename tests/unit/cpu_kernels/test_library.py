"""Compiling the kernels of a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmax.kernels.cpu.library import CompileError, compile_library


def test_a_compiler_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\necho 'x.cpp:1: error: no such thing' >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(CompileError, match=r"broken-c\+\+ cannot compile the kernels for this CPU: .*no such thing"):
        compile_library(tmp_path / "kernels.so")
