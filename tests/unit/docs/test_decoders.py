"""Every decoder of the package is named where users choose one."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmax.decoding.registry import BUILT_IN
from dmax.engine.params import PARAMS

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_decoder_is_named_in_help_and_docs(name: str) -> None:
    assert name in PARAMS["decoder"].help.replace(";", ",").split(", ")
    assert f"\n| `{name}` |" in (REFERENCE / "decoding.md").read_text(encoding="utf-8")
    options = (REFERENCE / "command-line.md").read_text(encoding="utf-8").splitlines()
    assert f"`{name}`" in next(line for line in options if line.startswith("| `--decoder`"))
