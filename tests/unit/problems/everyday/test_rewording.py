"""Rewording changes how a problem is told, and neither its numbers nor its answer."""

from __future__ import annotations

import re
from random import Random

import pytest

from dmax.problems.everyday import draw, everyday_problem, scenarios
from dmax.problems.everyday.rewording import _lists, reword
from dmax.problems.everyday.wording import number_word

EQUATIONS = re.compile(r"[\d.,/*+= -]{3,}")
SPELLED = {number_word(number): str(number) for number in range(100)}


def _numbers(text: str) -> list[str]:
    """Return the numbers of a text in ascending order, spelled out or not."""
    words = re.findall(r"[a-z]+-[a-z]+|[a-z]+|\d[\d,]*(?:\.\d+)?", text.lower())
    found = [SPELLED.get(word, word.replace(",", "")) for word in words]
    return sorted(word for word in found if word[0].isdigit())


def test_solutions_keep_their_equations_and_answer() -> None:
    for index, scenario in enumerate(scenarios()):
        told = draw(scenario, Random(index), phrasing=index % len(scenario.ask))
        _, solution = reword(told.question, told.solution, Random(index))
        assert EQUATIONS.findall(solution) == EQUATIONS.findall(told.solution)


def test_questions_keep_their_numbers() -> None:
    """But for what says a number itself: "half" as "50%", "twice" as "2 times", "the first one"."""
    changed = 0
    for index, scenario in enumerate(scenarios()):
        told = draw(scenario, Random(index), phrasing=index % len(scenario.ask))
        question, _ = reword(told.question, told.solution, Random(index))
        added = {"1", "2", "25", "50", "4", "3"}
        missing = [n for n in set(_numbers(told.question)) - set(_numbers(question)) if n not in added]
        assert not missing, (told.question, question)
        new = set(_numbers(question)) - set(_numbers(told.question)) - added
        assert not new, (told.question, question)
        changed += question != told.question
    assert changed > len(scenarios()) / 2


def test_nouns_change_in_question_and_solution_alike() -> None:
    question = "Ana has 3 apples and an orange. How many apples are left if she eats 1?"
    solution = "There are 3 - 1 = 2 apples left.\n#### 2"
    pairs = [reword(question, solution, Random(index)) for index in range(300)]
    changed = [(asked, solved) for asked, solved in pairs if "apples" not in asked]
    assert len(changed) > 60
    for asked, solved in changed:
        assert solved.removeprefix("There are 3 - 1 = 2 ").removesuffix(" left.\n#### 2") in asked
        assert not re.search(r"\ban? (?:an?|[aeiou]?s)\b", asked)


def test_the_question_comes_first_where_sentences_allow_it() -> None:
    question = "There are 7 bags. Each bag holds 6 apples. How many apples are there?"
    asked = {reword(question, "7 * 6 = 42\n#### 42", Random(index))[0] for index in range(400)}
    assert any(re.match(r".*[Hh]ow many \w+ are there if there are .* and each ", text) for text in asked)


@pytest.mark.parametrize("pattern", _lists()["phrases"])
def test_every_phrase_occurs_and_its_others_fit(pattern: str) -> None:
    told = (scenario.ask[0] for scenario in scenarios())
    asked = (
        draw(scenario, Random(0), phrasing=at).question for scenario in scenarios() for at in range(len(scenario.ask))
    )
    assert any(re.search(pattern, text) for source in (told, asked) for text in source)
    for other in _lists()["phrases"][pattern]:
        re.compile(pattern).sub(other, "")


def test_a_share_is_reworded() -> None:
    plain = [everyday_problem("train", index).question for index in range(400)]
    assert plain == [everyday_problem("train", index, reworded=0.0).question for index in range(400)]
    always = [everyday_problem("train", index, reworded=1.0) for index in range(400)]
    assert always == [everyday_problem("train", index, reworded=1.0) for index in range(400)]
    assert len({problem.question for problem in always} & set(plain)) < 40
