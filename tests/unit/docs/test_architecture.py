"""The files that the architecture's page names exist."""

from __future__ import annotations

import re
from pathlib import Path

import dmax

ROOT = Path(__file__).parents[3]
PACKAGE = Path(dmax.__file__).parent
PAGE = ROOT / "docs" / "concepts" / "architecture.md"


def test_files_named_exist() -> None:
    named = set(re.findall(r"`([a-z_]+/(?:[a-z_]+/)*(?:[a-z_]+\.py)?)`", PAGE.read_text(encoding="utf-8")))
    assert len(named) > 40
    missing = {path for path in named if not (PACKAGE / path).exists() and not (ROOT / path).exists()}
    assert not missing


def test_rooms_start_where_they_say() -> None:
    rows = re.findall(r"^\| `([a-z_]+)/` \| .* \| (`.*`) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 8
    starts = [PACKAGE / room / name for room, names in rows for name in re.findall(r"`([a-z_]+\.py)`", names)]
    assert starts and not [path for path in starts if not path.is_file()]
    assert {room for room, _ in rows} == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
