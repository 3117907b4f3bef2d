"""One compiled library for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmax.kernels.cpu.library import compile_library


@pytest.fixture(scope="session")
def cpu_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "kernels.so"
    compile_library(path)
    return path
