"""``dmax compile``; what it compiles is tested beside the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from dmax.kernels.cpu.library import kernels_folder


def test_kernels_that_are_there_are_left_alone(
    invoke: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = kernels_folder()
    folder.mkdir(parents=True)
    result = invoke("compile", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.stderr
    said = "".join(result.stderr.split())
    assert "weretherealready" in said and str(folder) in said
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dtype", "float16"), "float32 or bfloat16"),
        (("--model", "nowhere/at-all/deep"), "nowhere"),
        ((), "install g++"),
    ],
)
def test_what_cannot_be_compiled_ends_with_one_sentence(
    invoke: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    result = invoke("compile", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "cache").exists()
