"""Equations in small steps: every step true, every one small, the solution otherwise as it was."""

from __future__ import annotations

import re
from fractions import Fraction
from random import Random

import pytest

from dmax.problems import equations, problem, show_working, working


def value(expression: str) -> Fraction:
    """Exact, with every number a fraction."""
    return Fraction(eval(re.sub(r"\d+(\.\d+)?", lambda number: f"Fraction('{number[0]}')", expression)))


@pytest.mark.parametrize(
    ("expression", "steps"),
    [
        ("206-137", ["106 - 37", "76 - 7"]),
        ("97+8", []),
        ("32-5-10", ["27 - 10"]),
        ("79*4", ["280 + 36", "310 + 6"]),
        ("43*20", ["800 + 60"]),
        ("38*100", []),
        ("16*0.25", ["16 / 4"]),
        ("100*3/4", ["300 / 4", "280 / 4 + 20 / 4", "70 + 5"]),
        ("1/3*129", ["129 / 3", "120 / 3 + 9 / 3", "40 + 3"]),
        ("52.86-17.86", ["42.86 - 7.86", "35.86 - 0.86", "35.06 - 0.06"]),
        ("20*30/100", ["2 * 3"]),
        ("7*(2+31)", ["7 * 33", "210 + 21", "230 + 1"]),
        ("10/3+1", []),
        ("20.416666666666668-7", []),
        ("3-5", []),
        ("1/0", []),
        ("3+", []),
    ],
)
def test_an_equation_is_carried_out_place_by_place(expression: str, steps: list[str]) -> None:
    assert working(expression) == steps


def test_every_step_of_random_equations_is_true() -> None:
    random = Random(4)
    shown = 0
    for _ in range(400):
        numbers = [str(random.randint(1, 999) / random.choice([1, 1, 1, 10, 100])).removesuffix(".0") for _ in range(3)]
        expression = "".join(f"{number}{random.choice('+-*/')}" for number in numbers)[:-1]
        steps = working(expression)
        shown += bool(steps)
        assert all(value(step) == value(expression) for step in steps)
        assert len({expression, *steps}) == len(steps) + 1
    assert shown > 60


def test_a_shown_solution_ends_in_the_same_answer_and_states_only_what_is_true() -> None:
    longer = 0
    for index in range(60):
        solution = problem("train", index, 8)["solution"]
        shown = show_working(solution)
        longer += len(shown) > len(solution)
        assert shown.splitlines()[-1] == solution.splitlines()[-1]
        if not re.search(r"\.\d{6}", solution):
            assert [shown[e.result : e.end] for e in equations(shown)][-1:] == [
                solution[e.result : e.end] for e in equations(solution)
            ][-1:]
    assert longer > 40


@pytest.mark.parametrize(
    ("solution", "shown"),
    [
        ("He pays $61 + $48 = $109", "He pays $61 + $48 = 101 + 8 = $109"),
        ("$4,500 + $1,700 = $6,200.", "$4,500 + $1,700 = 5500 + 700 = $6,200."),
        ("$12/hour * 7 hours = $84", "$12/hour * 7 hours = 70 + 14 = $84"),
        ("100% - 25% = 75% of it", "100% - 25% = 80 - 5 = 75% of it"),
        ("half * 26 bees = 13", "half * 26 bees = 26 / 2 = 20 / 2 + 6 / 2 = 10 + 3 = 13"),
        ("2(40+18) = 116", "2(40 + 18) = 2 * 58 = 100 + 16 = 116"),
        ("72 + 36 + T = 108 + T = 182", "72 + 36 + T = 102 + 6 + T = 108 + T = 182"),
        ("It costs $37 because 16 + 21 = 37", "Since 16 + 21 = 36 + 1 = 37: It costs $37"),
        ("7*8=56 and 7* 8 =56", "7 * 8 = 56 and 7 * 8 = 56"),
        (
            "$260,000 x 13/100 = $33,800",
            "$260,000 x 13 / 100 = 2600 * 13 = 2600 * 10 + 2600 * 3 = 26000 + 6000 + 1800 = 26000 + 7800 "
            "= 33000 + 800 = $33,800",
        ),
        (
            "148/196*1764 = 1332",
            "148 / 196 * 1764 = 148 * 1764 / 196 = 148 * 9 = 900 + 360 + 72 = 1260 + 72 = 1330 + 2 = 1332",
        ),
        ("0.27*80 = 21 of them", "0.27 * 80 = 27 * 8 / 10 = (160 + 56) / 10 = (210 + 6) / 10 = 216 / 10 = 21 of them"),
        ("2925 / 39 = 75", "2925 / 39 = 2730 / 39 + 195 / 39 = 70 + 5 = 75"),
        ("He left because it was 9", "He left because it was 9"),
        ("18 * 0.6666666666666666 = 12", "18 * 2 / 3 = (20 + 16) / 3 = 36 / 3 = 30 / 3 + 6 / 3 = 10 + 2 = 12"),
        ("28.833333333333336 - 7 = 21.833333333333336", "28.83 - 7 = 21.83"),
        ("8.833333333333334 - 3.8333333333333335 = 4.9999999999999964", "8.83 - 3.83 = 5.83 - 0.83 = 5.03 - 0.03 = 5"),
    ],
)
def test_solutions_read_on_in_their_own_terms(solution: str, shown: str) -> None:
    """Units, percentages, unknowns and currency stay; nothing is claimed before it is worked out."""
    assert show_working(solution) == shown
