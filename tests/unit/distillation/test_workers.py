"""What goes to actors of Ray and comes back; the actors themselves are in the integration tests."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from dmax.distillation import Job, Shard, find_source, load_prompts
from dmax.distillation.workers import _Actor, _first_cause
from dmax.evaluation.answerers import Answer
from dmax.evaluation.tasks import get_task


class Fixed:
    """Answers everything with one text."""

    batch_size = 1

    def answer(self, prompts: Any, seeds: Any, gen_length: int) -> list[Answer]:
        return [Answer("#### 32", 2, 1, 1, 1, 0, 0.1, "stop") for _ in prompts]

    def describe(self) -> dict[str, Any]:
        return {"model": {"name": "fixed", "hash": None}}


@pytest.mark.parametrize("name", [None, "gsm8k", "math500", "humaneval", "parallel-stress", "reasoning-gym:chain_sum"])
def test_a_job_of_any_source_can_be_sent(name: str | None) -> None:
    if name == "reasoning-gym:chain_sum":
        pytest.importorskip("reasoning_gym")
    job = Job(find_source(name), gen_length=8, seed=0, checked=False)
    assert pickle.loads(pickle.dumps(job)) == job


def test_an_actor_answers_a_shard_that_was_sent(tmp_path: Path) -> None:
    data = tmp_path / "rows.json"
    rows = [dict(get_task("gsm8k").example), {"question": "How much is 2 + 2?", "answer": "#### 4"}]
    data.write_text(json.dumps(rows))
    prompts = load_prompts(find_source("gsm8k"), data)
    actor = _Actor(Fixed, Job(prompts.source, gen_length=8, seed=0, checked=True), {3: Shard(3, prompts.items)})
    answered = json.loads(actor({"shard": 3})["answered"])
    assert answered["number"] == 3
    assert [record["outcome"] for record in answered["records"]] == ["kept", "wrong"]


def test_of_several_tracebacks_the_actors_own_is_told() -> None:
    text = (
        'ray::MapWorker(Map(_Actor)).submit()\n  File "workers.py", line 1, in __call__\n'
        "CheckpointError: No model 'x'.\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "ray.exceptions.UserCodeException: UDF failed to process a data block.\n"
    )
    assert _first_cause(text) == "CheckpointError: No model 'x'"
    assert _first_cause("The actor died unexpectedly.") == "The actor died unexpectedly"
