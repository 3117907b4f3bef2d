"""Where answers end."""

from __future__ import annotations

from dmax.engine.stopping import Ending, StopRule

EOS = 2
LETTERS = {3: "a", 4: "b", 5: "c", 6: "bc", 7: "é"}


def decode(token_ids: list[int]) -> str:
    return "".join(LETTERS.get(token_id, "") for token_id in token_ids)


def test_goes_on_until_there_is_a_reason_to_end() -> None:
    assert StopRule((EOS,), gen_length=5).ending([3, 4, 5, 3]) is None
    assert StopRule((EOS,), gen_length=5, strings=("x",), decode=decode).ending([3, 4]) is None


def test_ends_at_the_first_eos_and_does_not_count_it() -> None:
    ending = StopRule((EOS,), gen_length=8, decode=decode).ending([3, EOS, 4, EOS])
    assert ending == Ending([3, EOS], 1, "a", "stop")


def test_an_answer_may_be_nothing_but_eos() -> None:
    assert StopRule((EOS,), gen_length=8, decode=decode).ending([EOS, EOS]) == Ending([EOS], 0, "", "stop")


def test_is_cut_to_its_greatest_length() -> None:
    assert StopRule((EOS,), gen_length=3).ending([3, 4, 5, 3]) == Ending([3, 4, 5], 3, None, "length")


def test_any_of_several_eos_ends_an_answer() -> None:
    rule = StopRule((EOS, 6), gen_length=8)
    assert rule.ending([3, 6, EOS, 4]) == Ending([3, 6], 1, None, "stop")
    assert rule.ending([3, EOS, 6, 4]) == Ending([3, EOS], 1, None, "stop")
    assert StopRule((EOS, 6), gen_length=8, min_tokens=2).ending([6, 3, 6]) == Ending([6, 3, 6], 2, None, "stop")


def test_an_eos_beyond_the_greatest_length_is_not_the_answers() -> None:
    rule = StopRule((EOS,), gen_length=3)
    assert rule.ending([3, 4, 5, EOS]) == Ending([3, 4, 5], 3, None, "length")
    assert rule.ending([3, 4, EOS, 5]) == Ending([3, 4, EOS], 2, None, "stop")


def test_ends_before_the_first_of_several_stop_strings() -> None:
    rule = StopRule((EOS,), gen_length=9, strings=("ca", "b"), decode=decode)
    assert rule.ending([3, 4, 5, 3]) == Ending([3], 1, "a", "stop")


def test_a_stop_string_may_spread_over_tokens_and_blocks() -> None:
    rule = StopRule((EOS,), gen_length=9, strings=("bca",), decode=decode)
    assert rule.ending([3, 4, 5]) is None
    assert rule.ending([3, 4, 5, 3, 3]) == Ending([3], 1, "a", "stop")


def test_a_token_that_reaches_into_the_stop_string_is_kept_and_its_text_cut() -> None:
    rule = StopRule((EOS,), gen_length=9, strings=("c",), decode=decode)
    assert rule.ending([3, 6, 3]) == Ending([3, 6], 2, "ab", "stop")


def test_a_stop_string_at_the_very_start_leaves_nothing() -> None:
    assert StopRule((EOS,), gen_length=9, strings=("a",), decode=decode).ending([3, 4]) == Ending([], 0, "", "stop")


def test_a_stop_string_behind_the_end_does_not_count() -> None:
    assert StopRule((EOS,), gen_length=2, strings=("c",), decode=decode).ending([3, 4, 5]) == Ending(
        [3, 4], 2, "ab", "length"
    )
    assert StopRule((EOS,), gen_length=9, strings=("c",), decode=decode).ending([3, EOS, 5]) == Ending(
        [3, EOS], 1, "a", "stop"
    )


def test_an_end_before_the_fewest_tokens_does_not_count() -> None:
    rule = StopRule((EOS,), gen_length=6, strings=("c",), decode=decode, min_tokens=2)
    assert rule.ending([3, EOS, 4]) is None
    ending = rule.ending([3, 4, EOS])
    assert ending is not None
    assert (ending.token_ids, ending.num_tokens, ending.reason) == ([3, 4, EOS], 2, "stop")


def test_without_an_eos_the_answer_has_its_greatest_length() -> None:
    rule = StopRule((), gen_length=4)
    assert rule.ending([EOS, 3]) is None
    ending = rule.ending([EOS, 3, EOS, 4, 5])
    assert ending is not None
    assert (ending.token_ids, ending.num_tokens, ending.reason) == ([EOS, 3, EOS, 4], 4, "length")
