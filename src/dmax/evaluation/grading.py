"""Reading the number a worked solution ends with (SPEC section 7)."""

from __future__ import annotations

import re

_NUMBER = r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?"
_MARKED = re.compile(rf"####\s*[$€£¥]?\s*({_NUMBER})")
_BOXED = re.compile(rf"\\boxed\{{\s*[$€£¥]?\s*({_NUMBER})")
_ANY = re.compile(_NUMBER)


def final_number(text: str) -> float | None:
    """The last number after ``####``, else in ``\\boxed{}``, else the last number at all; None where there is none."""
    for pattern in (_MARKED, _BOXED, _ANY):
        found = pattern.findall(text)
        if found:
            return float(found[-1].replace(",", ""))
    return None


def same_number(text: str, reference: str) -> bool:
    """Whether an answer ends with the reference's number."""
    given, expected = final_number(text), final_number(reference)
    return given is not None and expected is not None and abs(given - expected) <= 1e-6 * max(1.0, abs(expected))
