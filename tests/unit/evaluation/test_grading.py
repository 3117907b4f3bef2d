from __future__ import annotations

import pytest

from dmax.evaluation.grading import final_number, same_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3+4=7\n#### 7", 7),
        ("#### $1,234.50", 1234.5),
        ("#### -12", -12),
        ("first #### 3 then #### 5.", 5),
        (r"therefore \boxed{42} and 17 more words", 42),
        (r"#### 3 and \boxed{4}", 3),
        ("She pays 1,250 dollars.", 1250),
        ("He has 36.0 left.", 36),
        ("The answer is 18.", 18),
        ("no number here", None),
        ("", None),
    ],
)
def test_the_final_number_of_a_solution(text: str, number: float | None) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("text", "reference", "same"),
    [
        ("#### 36.0", "36", True),
        ("#### 1,000", "1000", True),
        ("#### 36", "37", False),
        ("#### 0.5", "0.5", True),
        ("nothing", "0", False),
        ("#### 1687.5", "1687.5", True),
    ],
)
def test_numbers_are_compared_by_value(text: str, reference: str, same: bool) -> None:
    assert same_number(text, reference) is same
