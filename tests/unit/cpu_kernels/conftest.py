"""One compiled library for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmax.kernels.cpu.library import compile_library, set_team


@pytest.fixture(scope="session")
def cpu_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "kernels.so"
    compile_library(path)
    set_team(path, threads=3)
    return path
