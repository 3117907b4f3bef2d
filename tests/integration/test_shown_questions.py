"""Every question that README, docs, page, command line or an example shows has a known answer, and the model gives it.

``examples.json`` of the page is the one list of them: ``page`` is for those that the page offers, ``settings`` for how
one is asked beside the defaults. ``known_wrong`` says why the embedded model fails at an entry today; an entry that it
gets right may not have it.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dmax import LLM, GenerationOutput, GenerationParams
from dmax.evaluation.grading import same_number

ROOT = Path(__file__).parents[2]
LIST: dict[str, Any] = json.loads((ROOT / "src/dmax/serving/web/examples.json").read_text(encoding="utf-8"))
QUESTIONS: list[dict[str, Any]] = LIST["questions"]
SHOWN_IN = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/*.*"),
        *ROOT.glob("benchmarks/*_picture*.py"),
        *ROOT.glob("src/dmax/cli/**/*.py"),
        *ROOT.glob("src/dmax/serving/web/*.[hj]*"),
        ROOT / ".ci" / "run",
    ]
)
JOINED = re.compile(r'"\s*\n\s*f?"')
"""Between two parts of a string that Python puts together."""
QUOTED = re.compile(r'"([^"\n{}]{20,})"')
ASKS = re.compile(r"\?$|\b[Hh]ow (many|much)\b|\b[Cc]alculate\b")


def questions_in(path: Path) -> set[str]:
    """The texts between quotes that ask for a number and hold one."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    quoted = QUOTED.findall(JOINED.sub("", text))
    return {each for each in quoted if ASKS.search(each) and re.search(r"\d", each)}


@pytest.mark.parametrize("path", SHOWN_IN, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_question_that_is_shown_is_in_the_list(path: Path) -> None:
    assert questions_in(path) <= {each["question"] for each in QUESTIONS}


def test_every_question_of_the_list_is_shown() -> None:
    shown = {question for path in SHOWN_IN if path.name != "examples.json" for question in questions_in(path)}
    on_the_page = {each["question"] for each in QUESTIONS if each.get("page")} | {LIST["comparison"]["question"]}
    assert {each["question"] for each in QUESTIONS} == shown | on_the_page


def test_the_page_has_two_questions_to_show() -> None:
    assert len([each for each in QUESTIONS if each.get("page") and "known_wrong" not in each]) >= 2


def _case(entry: dict[str, Any], name: str) -> Any:
    reason = entry.get("known_wrong")
    marks = () if reason is None else pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError)
    return pytest.param(entry, id=name, marks=marks)


@cache
def nano() -> LLM:
    return LLM("nano")


def answered(*turns: str, **params: Any) -> GenerationOutput:
    """The answer to a question, or to questions and answers in turn."""
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
    [output] = nano().generate(messages, GenerationParams(**params))
    return output


def right_answer(question: str) -> str:
    [entry] = [each for each in QUESTIONS if each["question"] == question]
    return entry["answer"]


def is_right(output: GenerationOutput, question: str) -> bool:
    return same_number(output.text or "", right_answer(question))


@pytest.mark.parametrize("entry", [_case(each, each["question"][:30]) for each in QUESTIONS])
def test_the_embedded_model_answers_it(entry: dict[str, Any]) -> None:
    for settings in ({}, entry.get("settings", {})):
        assert is_right(answered(entry["question"], **settings), entry["question"])


@pytest.mark.parametrize("entry", [_case(LIST["conversation"], "in a row")])
def test_the_embedded_model_answers_a_second_question(entry: dict[str, Any]) -> None:
    turns: list[str] = []
    for question in entry["questions"]:
        output = answered(*turns, question)
        assert is_right(output, question)
        turns += [question, output.text or ""]


def test_the_comparison_shows_the_same_answer_in_fewer_passes() -> None:
    question = LIST["comparison"]["question"]
    ours, theirs = (answered(question, **settings) for settings in LIST["comparison"]["settings"])
    assert is_right(ours, question) and is_right(theirs, question)
    assert ours.passes <= 0.75 * theirs.passes
