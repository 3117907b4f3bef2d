"""A test that expects something else: only where it is plain what it expects, and never what is right."""

from __future__ import annotations

import ast

import pytest

from dmax.evaluation.sandbox.checkpoints import with_checkpoints
from dmax.evaluation.sandbox.expectations import false_expectation


def changed(test: str) -> str | None:
    """The test with its other expectation."""
    edit = false_expectation(ast.parse(test).body[0])
    if edit is None:
        return None
    lines = test.encode().split(b"\n")
    (first, begin), (last, end) = edit.start, edit.end
    return (lines[first - 1][:begin] + edit.text.encode() + lines[last - 1][end:]).decode()


@pytest.mark.parametrize(
    ("test", "given"),
    [
        ("assert f() == 3", 3),
        ("assert 3 == f()", 3),
        ("assert f() == -0.5, 'not a half'", -0.5),
        ("assert f() == True", True),
        ("assert f() == None", None),
        ("assert f() == 'ä'", "ä"),
        ("assert f() == b'a'", b"a"),
        ("assert f() == []", []),
        ("assert f() == {}", {}),
        ("assert f() == [1, (2, 'b'), {'c': {3}}]", [1, (2, "b"), {"c": {3}}]),
        ("assert set(f()) == set([1, 2])", [1, 2]),
        ("assert tuple(f()) == tuple(sorted([2, 1]))", [1, 2]),
        ("assert abs(f() - 0.25) < 1e-6", 0.25),
        ("assert abs(0.25 - f()) <= 0.001", 0.25),
        ("assert math.isclose(f(), 2.5, rel_tol=0.001)", 2.5),
        ("assert f() == 1 + 2j", 1 + 2j),
        ("assert f() == len('abc')", 3),
        ("assert math == f()", __import__("math")),
    ],
)
def test_another_expectation_is_not_met(test: str, given: object) -> None:
    scope = {"f": lambda: given, "math": __import__("math")}
    exec(test, scope)
    for _ in range(20):
        other = changed(test)
        assert other is not None
        with pytest.raises(AssertionError):
            exec(other, scope)


def test_an_exact_test_expects_something_likely_instead() -> None:
    test = ast.parse("assert f() == 3").body[0]
    edits = [false_expectation(test, [3, 5, 3.0, "5", True]) for _ in range(60)]
    others = {ast.literal_eval(edit.text) for edit in edits if edit}
    assert len(edits) == 60 and 5 in others and len(others) > 4
    assert all(type(other) is int and other != 3 and -6 <= other <= 12 for other in others)


@pytest.mark.parametrize(
    "test",
    [
        "assert f()",
        "assert not f()",
        "assert f() != 3",
        "assert 3 == 3",
        "assert f() < 3",
        "assert abs(f() - 3) < 100",
        "assert 1 < f() < 3",
        "assert f() == 1e400",
        "assert f() in [1, 2]",
        "assert f() == 3 or True",
        "x = 3",
    ],
)
def test_what_is_not_plain_is_left_alone(test: str) -> None:
    assert changed(test) is None


def test_lines_keep_their_numbers() -> None:
    edit = false_expectation(ast.parse("assert f() == [\n    1,\n    2,\n]").body[0])
    assert edit is not None
    assert edit.text.count("\n") == 3


EVALPLUS = """
def assertion(out, exp, atol):
    assert out == exp
def check(candidate):
    inputs = [[7], [-1], [100]]
    results = [3, -1, 50]
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assertion(candidate(*inp), exp, 0)

check(halve)
"""
LOOPED = """
def check(candidate):
    for n in range(9):
        half = n // 2
        assert candidate(n) == half

check(halve)
"""


@pytest.mark.parametrize("tests", [EVALPLUS, LOOPED])
def test_what_a_list_or_a_loop_expects_is_changed_too(tests: str) -> None:
    class Equal:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    for _ in range(5):
        for number, halve in ((0, lambda n: n // 2), (1, lambda n: Equal())):
            exec(with_checkpoints(tests, "_marks", number), {"halve": halve, "_marks": []})
        with pytest.raises(AssertionError):
            exec(with_checkpoints(tests, "_marks", 1), {"halve": lambda n: n // 2, "_marks": []})
