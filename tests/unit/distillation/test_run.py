"""Distillations that break off, go on, share their shards, and account for every prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dmax.distillation import (
    DistillationError,
    DistillationSettings,
    InProcess,
    Job,
    Prompts,
    distill,
    find_source,
    load_prompts,
)
from dmax.distillation.job import AnsweredShard, Shard
from dmax.distillation.run import Standing
from dmax.evaluation.answerers import Answer
from dmax.evaluation.run_folder import RunFolderError
from dmax.evaluation.runner import Share

QUESTION = "How much is {}?"
ANSWERS = {1: "unfinished", 2: " ", 3: "fail", 4: "#### 5"}
"""Number asked about -> what is answered in place of it."""


@dataclass
class Echo:
    """Answers with the number asked about; after ``patience`` shards it is interrupted."""

    patience: int = 10**9
    weights: str = "sha256:1"
    asked: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    batch_size = 4

    def answer(self, prompts: Sequence[Any], seeds: Sequence[int], gen_length: int) -> list[Answer]:
        if self.patience == 0:
            raise KeyboardInterrupt
        self.patience -= 1
        self.asked += [turns[-1]["content"] for turns in prompts]
        self.seeds += seeds
        return [self._one(turns[-1]["content"]) for turns in prompts]

    def _one(self, question: str) -> Answer:
        number = int("".join(filter(str.isdigit, question)))
        text = ANSWERS.get(number, f"#### {number}")
        if text == "fail":
            return Answer.failed("GenerationError: too long", 0.1)
        reason = "length" if text == "unfinished" else "stop"
        return Answer(text, num_tokens=6, passes=2, nfe=3, blocks=1, revisions=0, seconds=0.5, finish_reason=reason)

    def describe(self) -> dict[str, Any]:
        return {"model": {"name": "echo", "hash": self.weights}, "decoder": "echo", "params": {}}


@pytest.fixture
def prompts(tmp_path: Path) -> Prompts:
    numbers = [*range(10), 9]
    rows = [{"question": QUESTION.format(n), "answer": f"#### {n}"} for n in numbers]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_prompts(find_source("gsm8k"), data)


def run(prompts: Prompts, echo: Echo, folder: Path, **settings: Any) -> dict[str, Any] | None:
    called = {"on_progress": settings.pop("on_progress")} if "on_progress" in settings else {}
    return distill(prompts, InProcess(lambda: echo), folder, of_echo(**settings), **called)


def of_echo(**settings: Any) -> DistillationSettings:
    given = {"gen_length": 8, "seed": 5, "checked": True, "shard_size": 3, **settings}
    return DistillationSettings(generator=Echo().describe(), **given)


def test_only_finished_right_answers_are_kept_and_every_prompt_is_accounted_for(
    prompts: Prompts, tmp_path: Path
) -> None:
    echo, folder = Echo(), tmp_path / "out"
    standings: list[Standing] = []
    manifest = run(prompts, echo, folder, on_progress=standings.append)
    assert manifest is not None
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    reasons = {"malformed": 0, "duplicate": 1, "failed": 1, "unfinished": 1, "empty": 1, "wrong": 1}
    assert manifest["counts"] == {"prompts": 11, "kept": 6, "dropped": reasons}
    assert (manifest["output"]["rows"], manifest["output"]["answer_tokens"], manifest["output"]["nfe"]) == (6, 36, 27)
    assert echo.seeds == list(range(5, 15))
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["0", "5", "6", "7", "8", "9"]
    question = f"{QUESTION.format(5)}\nLet's think step by step"
    assert rows[1]["messages"] == [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "#### 5"},
    ]
    assert {"model", "decoder", "params", "seed", "versions", "hardware", "git_commit"} <= manifest.keys()
    assert standings[-1] == Standing(done=10, total=10, kept=6)
    failed = json.loads((folder / "shards" / "00001.json").read_text())["records"][0]
    assert (failed["outcome"], failed["error"]) == ("failed", "GenerationError: too long")


def test_without_a_check_wrong_answers_stay(prompts: Prompts, tmp_path: Path) -> None:
    manifest = run(prompts, Echo(), tmp_path / "out", checked=False)
    assert manifest is not None
    assert (manifest["counts"]["kept"], manifest["counts"]["dropped"]["wrong"]) == (7, 0)


def test_an_interrupted_run_asks_only_what_is_missing_and_ends_the_same(prompts: Prompts, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(prompts, Echo(), whole)
    with pytest.raises(KeyboardInterrupt):
        run(prompts, Echo(patience=2), broken)
    assert not (broken / "train.jsonl").exists()
    (broken / "shards" / "00002.json.99.partial").write_text('{"number": 2')
    rest = Echo()
    run(prompts, rest, broken)
    assert len(rest.asked) == 4
    assert (broken / "train.jsonl").read_bytes() == (whole / "train.jsonl").read_bytes()


def test_a_finished_run_loads_no_model(prompts: Prompts, tmp_path: Path) -> None:
    first = run(prompts, Echo(), tmp_path / "out")
    again = Echo(patience=0)
    second = run(prompts, again, tmp_path / "out")
    assert first is not None
    assert second is not None
    assert first["output"] == second["output"]


def test_processes_share_the_shards_and_the_last_one_joins_them(prompts: Prompts, tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    run(prompts, Echo(), alone)
    echoes = [Echo(), Echo()]
    results = [run(prompts, echo, shared, share=Share(rank, 2)) for rank, echo in enumerate(echoes)]
    assert results[0] is None
    assert results[1] is not None
    assert [len(echo.asked) for echo in echoes] == [6, 4]
    assert (shared / "train.jsonl").read_bytes() == (alone / "train.jsonl").read_bytes()


def test_shards_may_come_in_any_order(prompts: Prompts, tmp_path: Path) -> None:
    class Backwards(InProcess):
        def answer(self, job: Job, shards: Any) -> Iterator[AnsweredShard]:
            return super().answer(job, list[Shard](shards)[::-1])

    run(prompts, Echo(), tmp_path / "forwards")
    distill(prompts, Backwards(Echo), tmp_path / "backwards", of_echo())  # type: ignore[arg-type]
    assert (tmp_path / "backwards/train.jsonl").read_bytes() == (tmp_path / "forwards/train.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("change", "named"), [({"seed": 6}, "seed"), ({"checked": False}, "checked"), ({"shard_size": 4}, "shard_size")]
)
def test_the_folder_of_another_run_is_refused(
    prompts: Prompts, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    run(prompts, Echo(), tmp_path / "out")
    with pytest.raises(RunFolderError, match=named):
        run(prompts, Echo(), tmp_path / "out", **change)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "damaged"), ('{"records": 1}', "damaged"), ('{"records": [], "model": {}}', "answers other prompts")],
)
def test_a_shard_that_cannot_be_used_is_named(prompts: Prompts, tmp_path: Path, content: str, reason: str) -> None:
    run(prompts, Echo(), tmp_path / "out")
    (tmp_path / "out" / "shards" / "00001.json").write_text(content)
    with pytest.raises(DistillationError, match=rf"00001\.json.* {reason}|00001\.json {reason}"):
        run(prompts, Echo(), tmp_path / "out")


def test_answers_of_other_weights_are_not_mixed_in(prompts: Prompts, tmp_path: Path) -> None:
    with pytest.raises(DistillationError, match="other weights"):
        run(prompts, Echo(weights="sha256:2"), tmp_path / "out")
    assert not (tmp_path / "out" / "train.jsonl").exists()


def test_plain_prompts_cannot_be_checked(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "2+2?"}\n')
    with pytest.raises(DistillationError, match="no right answer"):
        run(load_prompts(find_source(None), data), Echo(), tmp_path / "out")


def test_a_shard_holds_something() -> None:
    with pytest.raises(DistillationError, match="the shard size is 0; it must be at least 1"):
        of_echo(shard_size=0)
