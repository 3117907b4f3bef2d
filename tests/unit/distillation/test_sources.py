"""Rows become prompts: of any layout, each once, and never those that an evaluation asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dmax.distillation import find_source, load_prompts
from dmax.distillation.sources import PlainPrompts
from dmax.evaluation.tasks import BadRow, TaskError, get_task

USER = {"role": "user", "content": "2+2?"}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"prompt": "2+2?", "answer": "4"}, [USER]),
        ({"id": 7, "problem": "2+2?"}, [USER]),
        ({"messages": [USER]}, [USER]),
        ({"messages": [USER, {"role": "assistant", "content": "5"}]}, [USER]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}]}, [USER]),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, {**USER, "name": None}]},
            [{"role": "system", "content": "Be brief."}, USER],
        ),
    ],
)
def test_plain_prompts_are_found_and_answers_of_others_left_out(row: dict[str, Any], turns: list[Any]) -> None:
    source = PlainPrompts()
    source.check(row)
    assert source.turns(row) == turns


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "2+2?"}, "there is no column 'messages' or 'prompt'"),
        ({"prompt": "  "}, "empty"),
        ({"prompt": 4}, "must be text"),
        ({"messages": []}, "no user's turn"),
        ({"messages": [{"role": "assistant", "content": "5"}]}, "no user's turn"),
        ({"messages": [{"from": "human", "value": "2+2?"}]}, "role and content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "role and content"),
    ],
)
def test_rows_without_a_prompt_are_told(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        PlainPrompts().check(row)


def test_a_named_column_is_the_only_one_looked_at(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", {"prompt": "no", "ask": "yes"})
    [item] = load_prompts(find_source(None, "ask"), data).items
    assert item.turns[0]["content"] == "yes"
    with pytest.raises(TaskError, match="columns of its own"):
        find_source("gsm8k", "ask")


def test_each_prompt_is_asked_once_and_keeps_the_index_of_its_row(tmp_path: Path) -> None:
    rows = [{"prompt": "a b", "id": "x"}, {"prompt": " a  b\n"}, {"prompt": "c"}, {"prompt": ""}, {"prompt": "A b"}]
    prompts = load_prompts(find_source(None), write(tmp_path / "rows.jsonl", *rows), skip_bad=True)
    assert [(item.index, item.id) for item in prompts.items] == [(0, "x"), (2, "2"), (3, "3")]
    assert (prompts.duplicates, prompts.malformed) == (1, ("line 4: the prompt is empty",))


def test_benchmark_rows_need_a_file_and_are_asked_as_the_benchmark_asks(tmp_path: Path) -> None:
    source, task = find_source("gsm8k"), get_task("gsm8k")
    with pytest.raises(TaskError, match="test split"):
        load_prompts(source)
    row = dict(task.example)
    [item] = load_prompts(source, write(tmp_path / "rows.jsonl", row)).items
    assert item.turns == [{"role": "user", "content": task.prompt(row)}]
    assert source.grade(row, "#### 32")
    assert not source.grade(row, "#### 33")


@pytest.mark.parametrize("name", ["gsm-symbolic", "everyday", "parallel-stress"])
def test_drawn_rows_are_for_training(name: str) -> None:
    if name == "gsm-symbolic":
        pytest.importorskip("reasoning_gym")
    source, task = find_source(name), get_task(name)
    prompts = load_prompts(source, limit=20)
    evaluated = {task.prompt(task.generate(index, 0)) for index in range(20)}  # type: ignore[attr-defined]
    assert prompts.origin["split"] == "train"
    assert not evaluated & {item.turns[0]["content"] for item in prompts.items}
    row = prompts.items[0].row
    assert source.grade(row, task.reference(row))
    assert load_prompts(source, limit=20, seed=1).digest != prompts.digest
    with pytest.raises(TaskError, match="--limit"):
        load_prompts(source)


def test_any_reasoning_gym_data_set_brings_its_own_scorer() -> None:
    pytest.importorskip("reasoning_gym")
    source = find_source("reasoning-gym:chain_sum")
    prompts = load_prompts(source, limit=3)
    assert prompts.items == load_prompts(source, limit=3).items
    row = prompts.items[0].row
    assert source.grade(row, f"First this, then that.\n#### {row['answer']}\n")
    assert source.grade(row, f"<answer>1</answer> no: <answer>{row['answer']}</answer>")
    assert not source.grade(row, "#### x")
    with pytest.raises(TaskError, match="reasoning-gym:nothing"):
        find_source("reasoning-gym:nothing")
