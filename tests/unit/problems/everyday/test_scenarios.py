"""Every scenario of the package can be drawn, is worked out rightly, and asks for what it works out."""

from __future__ import annotations

import ast
import re
from random import Random

import pytest

from dmax.problems import equations
from dmax.problems.everyday import Scenario, ScenarioError, draw, everyday_problem, parse, scenarios, themes
from dmax.problems.everyday.scenario import RESULT, SLOT

SMALLEST = """
[[scenario]]
name = "bags"
numbers = {{ bags = [2, 9], each = [3, 20] }}
{more}
ask = ["{ask}"]
solve = ["They hold {{total: {expression}}}."]
"""


def scenario(ask: str = "{bags} bags of {each}?", expression: str = "bags * each", more: str = "") -> Scenario:
    [found] = parse(SMALLEST.format(ask=ask, expression=expression, more=more), "test")
    return found


def test_there_are_at_least_600_scenarios_of_12_themes_with_5_phrasings_on_average() -> None:
    assert len(scenarios()) >= 600
    assert len(themes()) >= 12
    assert sum(len(found.ask) for found in scenarios()) >= 5 * len(scenarios())


@pytest.mark.parametrize("theme", themes())
def test_every_phrasing_can_be_drawn_and_its_equations_are_true(theme: str) -> None:
    for found in scenarios(theme):
        for phrasing in range(len(found.ask)):
            problem = draw(found, Random(f"{found.name} {phrasing}"), worked=False, phrasing=phrasing)
            assert "{" not in problem.question + problem.solution
            steps = sum(len(RESULT.findall(line)) for line in found.solve)
            assert len(equations(problem.solution)) == steps, problem.solution
            assert problem.solution.endswith(f"#### {problem.answer}")


@pytest.mark.parametrize("theme", themes())
def test_every_phrasing_says_what_its_solution_needs(theme: str) -> None:
    for found in scenarios(theme):
        needed, written = _named(found)
        for ask in found.ask:
            slots = {match[1] for match in SLOT.finditer(ask)}
            assert (written & (set(found.people) | set(found.words))) <= slots, f"{found.name}: {ask}"
            computed = any(slots & {name} for name in found.let)  # what is given hangs on the rest
            assert computed or needed <= slots, f"{found.name}: {ask}"


def _named(found: Scenario) -> tuple[set[str], set[str]]:
    """Return the numbers and the words that a solution takes from its question."""
    results = {match[2] for line in found.solve for match in RESULT.finditer(line)}
    expressions = [ast.parse(match[3]) for line in found.solve for match in RESULT.finditer(line)]
    names = {node.id for tree in expressions for node in ast.walk(tree) if isinstance(node, ast.Name)}
    written = {match[1] for line in found.solve for match in SLOT.finditer(RESULT.sub("", line))}
    return names - results - set(found.let), written


def test_problems_are_a_function_of_split_seed_and_index() -> None:
    assert everyday_problem("train", 7, worked=True) == everyday_problem("train", 7, worked=True)
    drawn = {everyday_problem(split, 7, seed).question for split in ("train", "test") for seed in (0, 1)}
    assert len(drawn) == 4


def test_a_round_holds_every_scenario_once() -> None:
    number = len(scenarios())
    drawn = [everyday_problem("test", number + i) for i in range(number)]
    assert len({(problem.theme, problem.scenario) for problem in drawn}) == number


def test_equations_are_written_out_in_small_steps_where_asked_for() -> None:
    problem = draw(scenario(more='where = ["bags == 7", "each == 16"]'), Random(0), worked=True, phrasing=0)
    assert problem.question == "7 bags of 16?"
    assert problem.solution == "They hold 7 * 16 = 70 + 42 = 112.\n#### 112"


def test_articles_and_sentences_agree_with_what_fills_a_slot() -> None:
    found = scenario(
        ask="a {thing.one} holds {bags}. {who} has a {each}-page book.",
        more='words = { thing = ["apples"] }\npeople = ["who"]\nwhere = ["each == 8"]',
    )
    question = draw(found, Random(1), phrasing=0).question
    assert re.fullmatch(r"an apple holds \d\. .+ has an 8-page book\.", question)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ask": "{bgas} bags of {each}?"}, r"the slot \{bgas\} is not declared"),
        ({"expression": "bags * eahc"}, "'eahc' is used before it has a value"),
        ({"expression": "bags // each"}, "uses // or %; compute that in let"),
        ({"expression": "__import__('os')"}, "is more than numbers, names and"),
        ({"more": 'werhe = ["bags > 2"]'}, "unknown key 'werhe'; a scenario has ask, let, name"),
        ({"more": 'where = ["open(1)"]'}, "is no comparison"),
        ({"more": 'words = { thing = "fruits" }'}, "there is no word list 'fruits'"),
        ({"ask": "{bags.one} bags of {each}?"}, "has no form 'one'"),
    ],
)
def test_what_is_wrong_with_a_scenario_is_named(change: dict[str, str], named: str) -> None:
    with pytest.raises(ScenarioError, match=named):
        scenario(**change)


def test_numbers_that_cannot_be_met_are_named() -> None:
    impossible = scenario(more='where = ["bags > 9"]')
    with pytest.raises(ScenarioError, match="test/bags: none of 200 draws"):
        draw(impossible, Random(0))
