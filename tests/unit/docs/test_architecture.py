"""The files that the architecture's page names exist."""

from __future__ import annotations

import re
from pathlib import Path

import dmax

ROOT = Path(__file__).parents[3]
PACKAGE = Path(dmax.__file__).parent
PAGE = ROOT / "docs" / "concepts" / "architecture.md"

NOT_YET = {
    "cli/_common/",
    "decoding/soft_embeddings.py",
    "models/transformer.py",
    "training/objectives/",
    "training/objectives/oput.py",
}
"""Names of the layout that other branches bring; whoever merges them empties this set, or mends the page."""


def test_files_named_exist() -> None:
    named = set(re.findall(r"`([a-z_]+/(?:[a-z_]+/)*(?:[a-z_]+\.py)?)`", PAGE.read_text(encoding="utf-8")))
    assert len(named) > 40
    missing = {path for path in named if not (PACKAGE / path).exists() and not (ROOT / path).exists()}
    assert missing == NOT_YET
