"""Answers as models write them, in ``answers.jsonl``, each with the verdict that a person gives."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dmax.evaluation.tasks import Verdict, get_task

ANSWERS = [json.loads(line) for line in Path(__file__).with_name("answers.jsonl").read_bytes().splitlines()]
PROGRAMS = [entry["answer"] for entry in ANSWERS if entry["task"] == "humaneval"]


def row_of(entry: dict[str, Any]) -> dict[str, Any]:
    """What the task wants to know of a problem with this reference."""
    if entry["task"] == "gsm8k":
        return {"question": "?", "answer": f"#### {entry['reference']}"}
    if entry["task"] == "math500":
        return {"problem": "?", "answer": entry["reference"]}
    known = {"Answer": entry["reference"], "Formula": entry["formula"], "Solution-Type": entry["kind"]}
    return {"Body": "?", "Question": "?", **known}


@cache
def of_programs() -> dict[str, Verdict]:
    """Every program's verdict, run two at a time."""
    task = get_task("humaneval")
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(PROGRAMS, pool.map(lambda answer: task.grade(task.example, answer), PROGRAMS), strict=True))


@pytest.mark.parametrize("entry", ANSWERS, ids=lambda entry: f"{entry['task']}: {entry['answer'][-40:]!r}")
def test_an_answer_gets_the_verdict_that_a_person_gives(entry: dict[str, Any]) -> None:
    if entry["task"] == "humaneval":
        verdict = of_programs()[entry["answer"]]
    else:
        verdict = get_task(entry["task"]).grade(row_of(entry), entry["answer"])
    assert verdict.right is entry["right"], verdict
