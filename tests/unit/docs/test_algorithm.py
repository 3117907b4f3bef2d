"""The algorithm's page shows the code that runs."""

from __future__ import annotations

import inspect
from pathlib import Path

from dmax.decoding import decode

PAGE = Path(__file__).parents[3] / "docs" / "concepts" / "algorithm.md"


def test_the_listing_is_the_reference_loop() -> None:
    section = PAGE.read_text(encoding="utf-8").split("### The whole loop")[1]
    listing = section.split("```python\n")[1].split("```")[0]
    assert listing == inspect.getsource(decode)
