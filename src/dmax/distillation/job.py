"""A shard of prompts, answered: the piece of work that is done as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

from dmax.distillation.prompts import Item
from dmax.distillation.sources import GradedSource, PromptSource
from dmax.evaluation.answerers import Answer, Answerer

Outcome = Literal["kept", "failed", "unfinished", "empty", "wrong"]
DROPPED: tuple[Outcome, ...] = ("failed", "unfinished", "empty", "wrong")
"""Reasons for which an answer does not go into the training set, in the order in which they are looked for.

``failed``: generation or grading raised. ``unfinished``: no EOS within the length. ``wrong``: the grader says so.
"""


@dataclass(frozen=True)
class Job:
    """What is done with every prompt."""

    source: PromptSource
    gen_length: int
    """Most tokens of an answer."""
    seed: int
    """Row i draws with ``seed + i``, if at all."""
    checked: bool
    """Whether answers that the source grades as wrong are dropped."""


@dataclass(frozen=True)
class Shard:
    """Consecutive prompts."""

    number: int
    items: Sequence[Item]


@dataclass(frozen=True)
class AnsweredShard:
    """What became of a shard."""

    number: int
    model: dict[str, Any]
    """Who answered, as ``Answerer.describe`` has it under ``model``."""
    records: list[dict[str, Any]]
    """One a prompt: ``index``, ``id``, ``outcome``, ``error``, ``num_tokens``, ``nfe`` and ``messages``, of which the
    last is the answer where there is one."""


class Workers(Protocol):
    """Those who answer shards."""

    def answer(self, job: Job, shards: Iterable[Shard]) -> Iterator[AnsweredShard]:
        """Yield the shards answered, each as soon as it is done, in any order."""
        ...


def answer_shard(job: Job, answerer: Answerer, shard: Shard) -> AnsweredShard:
    """Answer a shard's prompts and judge the answers; depends on nothing but the arguments."""
    seeds = [job.seed + item.index for item in shard.items]
    answers = answerer.answer([item.turns for item in shard.items], seeds, job.gen_length)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # graders of code wait for a sandbox
        records = list(pool.map(partial(_record, job), shard.items, answers))
    return AnsweredShard(shard.number, answerer.describe()["model"], records)


def _record(job: Job, item: Item, answer: Answer) -> dict[str, Any]:
    outcome, error = _judge(job, item, answer)
    said = [] if answer.text is None else [{"role": "assistant", "content": answer.text}]
    return {
        "index": item.index,
        "id": item.id,
        "outcome": outcome,
        "error": error,
        "num_tokens": answer.num_tokens,
        "nfe": answer.nfe,
        "messages": [*item.turns, *said],
    }


def _judge(job: Job, item: Item, answer: Answer) -> tuple[Outcome, str | None]:
    if answer.text is None:
        return "failed", answer.error
    if answer.finish_reason != "stop":
        return "unfinished", None
    if not answer.text.strip():
        return "empty", None
    if not (job.checked and isinstance(job.source, GradedSource)):
        return "kept", None
    try:
        return ("kept" if job.source.grade(item.row, answer.text) else "wrong"), None
    except Exception as error:  # a fault of ours, but no reason to lose the shard
        return "failed", f"grading raised {type(error).__name__}: {error}"
