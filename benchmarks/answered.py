"""Word problems, answered under one setting after another; what several benchmarks share."""

from __future__ import annotations

import time
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dmax import LLM, GenerationParams
from dmax.evaluation.metrics import bootstrap_means, interval
from dmax.evaluation.tasks import get_task, load_rows
from dmax.evaluation.tasks.numeric import GsmSymbolic
from dmax.evaluation.word_problems import answer, grade, score

GEN_LENGTH = GsmSymbolic.gen_length
EVERYDAY_QUESTIONS = Path(__file__).parent / "data" / "everyday_questions.jsonl"
"""Everyday questions written by hand, apart from the scenarios that ``everyday`` draws from."""


class Problems:
    """Problems of a task whose answers are numbers, asked as they stand, without the suffix of a benchmark.

    Args:
        count: how many of them, the first.
        seed: of drawn problems, and of the bootstrap.
        task: ``gsm-symbolic``, ``everyday`` or, with ``data``, ``gsm8k``.
        data: file of the rows; they are drawn from the test split if it is None.
    """

    def __init__(self, count: int | None, seed: int, task: str = "gsm-symbolic", data: Path | None = None) -> None:
        self.rows = load_rows(get_task(task), data, limit=count, seed=seed)
        self.seed = seed

    def first(self, count: int) -> Problems:
        """Return the first of these problems."""
        fewer = copy(self)
        fewer.rows = self.rows[:count]
        return fewer

    def point(self, name: str, llm: LLM, params: GenerationParams) -> dict[str, Any]:
        """Measure accuracy (with a 95 % bootstrap interval), TPF and tokens/s of a model under these params."""
        started = time.perf_counter()
        outputs = answer(llm, self.rows, params)
        seconds = time.perf_counter() - started
        result = score(self.rows, outputs)
        right = [[is_right] for is_right in grade(self.rows, outputs)]
        record = {
            "model": name, "decoder": outputs[0].decoder, "threshold": outputs[0].params["threshold"],
            "buffer_size": params.buffer_size, **asdict(result),
            "accuracy_95": interval(bootstrap_means(right, self.seed)[:, 0]),
            "tokens_per_second_batch_32": result.tokens / seconds,
        }  # fmt: skip
        print(
            f"{name:10} {outputs[0].decoder:14} {record['threshold']:.3f}  N {params.buffer_size}  "
            f"acc {result.accuracy:.3f}  TPF {result.tpf:.2f}", flush=True
        )  # fmt: skip
        return record

    def alone(self, llm: LLM, params: GenerationParams, count: int) -> float:
        """Measure tokens per second over the first problems, one at a time; the one that warms up is not counted."""
        chats = [LLM.chat_prompt(row["question"]) for row in self.rows[: count + 1]]
        llm.generate(chats[:1], params)
        started = time.perf_counter()
        outputs = [llm.generate(chat, params)[0] for chat in chats[1:]]
        return sum(output.num_tokens for output in outputs) / (time.perf_counter() - started)
