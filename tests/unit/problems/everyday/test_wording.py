"""How people type a question: the words stay theirs, numbers keep their values."""

from __future__ import annotations

from random import Random

from dmax.problems.everyday import OTHER_ANSWER, other_request
from dmax.problems.everyday.wording import as_typed, number_word

QUESTION = "There are 7 bags with 16 apples each. How many apples are there altogether?"


def test_numbers_are_spelt() -> None:
    assert [number_word(n) for n in (0, 12, 20, 42, 99)] == ["zero", "twelve", "twenty", "forty-two", "ninety-nine"]


def test_most_questions_stay_as_they_are_and_none_loses_a_number() -> None:
    typed = [as_typed(QUESTION, Random(i)) for i in range(500)]
    assert 0.7 < sum(text == QUESTION for text in typed) / len(typed) < 0.9
    assert all("7" in text and "16" in text for text in typed)
    assert any(text.islower() for text in typed)


def test_other_requests_are_many_and_answered_by_one_sentence() -> None:
    requests = {other_request("train", i).lower().rstrip("?.!") for i in range(3000)}
    assert len(requests) > 400
    assert len(OTHER_ANSWER) < 120
