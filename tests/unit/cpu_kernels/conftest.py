"""One compiled library for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmax.kernels.cpu.library import compile_library, set_team


def _flags() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    return next((line for line in lines if line.startswith("flags")), "")


@pytest.fixture(scope="session")
def cpu_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With everything that the processor has."""
    path = tmp_path_factory.mktemp("library") / "kernels.so"
    compile_library(path, "native")
    set_team(path, threads=3)
    return path


@pytest.fixture(scope="session")
def narrow_libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """With less than that, by processor: AVX2, and neither that nor multiplying and adding at once."""
    if not {"avx2", "fma", "bmi2"} <= set(_flags().split()):
        pytest.skip("libraries for lesser x86 processors run where there is AVX2")
    folder = tmp_path_factory.mktemp("narrow")
    paths = {name: folder / f"{name}.so" for name in ("haswell", "x86-64-v2")}
    for name, path in paths.items():
        compile_library(path, name)
        set_team(path, threads=2)
    return paths
