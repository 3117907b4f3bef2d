"""When a generated answer to a row of somebody's own is right."""

from __future__ import annotations

import pytest

from dmax.evaluation.validation import same_answer


@pytest.mark.parametrize(
    ("text", "reference", "right"),
    [
        ("7 and 5 are\n#### 12", "5 + 7 = 12\n#### 12", True),
        ("#### 13", "5 + 7 = 12\n#### 12", False),
        (r"So \boxed{12}", r"It is \boxed{12}.", True),
        (r"\boxed{x + y}", r"\boxed{x+y}", False),
        (r"\boxed{x+y}", r"\boxed{x+y}", True),
        ("Paris,  of course.", "Paris, of course.", True),
        ("Paris", "Paris, of course.", False),
        ("There are 12.", "12", False),
    ],
)
def test_marked_numbers_or_else_words_decide(text: str, reference: str, right: bool) -> None:
    assert same_answer(text, reference) is right
