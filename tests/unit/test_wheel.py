"""What ``pip install`` brings: the package with all its files, and nothing that is for a clone of the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
OF_A_CLONE = re.compile(r"^\s*(?:from|import) (?:benchmarks|examples|tests)\b", re.MULTILINE)


@pytest.fixture(scope="module")
def shipped() -> set[str]:
    return {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}


def test_the_wheel_is_the_package(shipped: set[str]) -> None:
    source = ROOT / "src"
    files = {path.relative_to(source).as_posix() for path in (source / "dmax").rglob("*") if path.is_file()}
    assert shipped == {name for name in files if "__pycache__" not in name}
    assert {"dmax/py.typed", "dmax/serving/web/index.html", "dmax/kernels/cpu/library.cpp"} <= shipped
    assert not [name for name in shipped if "reproduction" in name]


def test_nothing_in_it_needs_a_clone(shipped: set[str]) -> None:
    modules = [ROOT / "src" / name for name in shipped if name.endswith(".py")]
    assert not [path.name for path in modules if OF_A_CLONE.search(path.read_text(encoding="utf-8"))]
