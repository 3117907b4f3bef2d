"""One evaluation: every row answered, graded and on disk before the next batch, then one results file.

A folder holds ``settings.json`` (what the run is), ``sessions.jsonl`` (every start of a process that had rows left, and
on what machine), a ``samples-<task>.jsonl`` a task (one object a row, in order once the task is complete) and
``results.json`` (metrics, and everything needed to run it again), which appears when every task is complete. Several
processes share the rows of a run by their rank; each writes a part of its own, and the last to finish puts the parts
together.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from dmax.environment import describe_process
from dmax.evaluation.answerers import Answer, Answerer, AnswererError, WaitingAnswerer
from dmax.evaluation.metrics import summarize
from dmax.evaluation.report import FORMAT, RESULTS_FILE, read_results
from dmax.evaluation.run_folder import RunFolderError, claim, to_json, write_whole
from dmax.evaluation.sandbox import require_protection
from dmax.evaluation.tasks import rows_digest
from dmax.evaluation.tasks.base import Row, Task, Verdict
from dmax.evaluation.tasks.programming import ProgrammingTask

SESSIONS_FILE = "sessions.jsonl"


@dataclass(frozen=True)
class TaskData:
    """A task and the rows it is asked on."""

    task: Task
    rows: list[Row]
    source: dict[str, Any]
    """Where the rows come from, as the results state it."""
    gen_length: int
    """Most tokens of an answer."""
    samples: int = 1
    """Answers to every row, which are drawn apart; sample ``index`` belongs to row ``index // samples``."""

    def row(self, index: int) -> Row:
        """Return the row that a sample answers."""
        return self.rows[index // self.samples]

    @property
    def total(self) -> int:
        """Samples of all rows."""
        return len(self.rows) * self.samples

    @cached_property
    def digest(self) -> str:
        """Fingerprint of the rows; two runs with the same one were asked the same questions."""
        return rows_digest(self.rows)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for two runs of the task to be one."""
        several = {"samples": self.samples} if self.samples > 1 else {}
        return {"version": self.task.version, "gen_length": self.gen_length, "rows": self.digest, **several}


@dataclass(frozen=True)
class Share:
    """Which rows this process answers."""

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls) -> Share:
        """Read it as ``torchrun`` and its like describe it: ``RANK`` and ``WORLD_SIZE``."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


@dataclass(frozen=True)
class Standing:
    """How far a task has come, for a progress bar."""

    task: str
    done: int
    total: int
    right: int
    tpf: float | None
    """Mean over the answers so far."""


@dataclass(frozen=True)
class RunSettings:
    """How a run draws, what it does with failures, and what its results quote."""

    seed: int
    """Of the draws where answers are drawn (sample i draws with ``seed + i``), and of the bootstrap."""
    command: Sequence[str]
    """Written into the results."""
    share: Share = field(default_factory=Share.from_environment)
    """The rows of this process; by default as the environment says."""
    retry_failed: bool = True
    """Whether rows that the folder holds without an answer are asked again."""
    most_failures: int | None = None
    """Answers that may fail in a row; one more stops the run. None for any number."""


def evaluate(
    tasks: Sequence[TaskData],
    answerer: Answerer,
    folder: Path,
    run: RunSettings,
    *,
    on_progress: Callable[[Standing], None] = lambda standing: None,
) -> dict[str, Any] | None:
    """Answer and grade what the folder does not hold yet.

    Args:
        tasks: what to ask.
        answerer: who answers.
        folder: made if need be; one that holds the same run is taken up where it stopped.
        run: seed, share of this process, and how many answers may fail.
        on_progress: called after every batch.

    Returns:
        What stands in ``results.json``; None where other processes still work on their rows.

    Raises:
        SandboxError: programs would run unprotected, and that was not asked for.
        RunFolderError: the folder belongs to another run.
        AnswererError: too many answers failed in a row, or one that concerns them all; what was answered is stored.
    """
    for data in tasks:
        if isinstance(data.task, ProgrammingTask) and not data.task.unprotected:
            require_protection()
    description, world = answerer.describe(), run.share.world
    settings = {
        **description,
        "seed": run.seed,
        "processes": world,
        "batch_size": answerer.batch_size,
        "tasks": {data.task.name: data.identity for data in tasks},
    }
    claim(folder, settings)
    parts = [_TaskRun(data, answerer, folder, run) for data in tasks]
    patience = _Patience(run.most_failures, folder)
    # Not among the settings: a run may go on where kernels are compiled, or are not.
    session = {"command": list(run.command), **describe_process(), "backend": answerer.backend}
    if any(part.todo for part in parts):
        with (folder / SESSIONS_FILE).open("a", encoding="utf-8") as file:
            file.write(_line({"started": _now(), **session}))
    elif (folder / RESULTS_FILE).exists() and not any(part.in_parts for part in parts):
        return read_results(folder)
    for part in parts:
        part.run(on_progress, patience)
    if not all(_join_parts(folder, data, world) for data in tasks):
        return None
    sessions = [json.loads(line) for line in (folder / SESSIONS_FILE).read_bytes().split(b"\n") if line]
    results = {
        "format": FORMAT,
        "created": _now(),
        **session,
        "sessions": sessions,
        **description,
        "seed": run.seed,
        "tasks": {
            data.task.name: {
                "version": data.task.version,
                "gen_length": data.gen_length,
                "data": {**data.source, "rows": len(data.rows), "digest": data.digest},
                "metrics": task_metrics(folder, data, answerer.batch_size, world, run.seed),
            }
            for data in tasks
        },
    }
    write_whole(folder / RESULTS_FILE, to_json(results))
    return results


class _Patience:
    """Ends a run that gets no answers any more."""

    def __init__(self, most: int | None, folder: Path) -> None:
        self._most = most
        self._folder = folder
        self._failures = 0

    def watch(self, batch: Sequence[dict[str, Any]]) -> None:
        """Raise ``AnswererError`` where too many samples in a row have no answer."""
        for sample in batch:
            self._failures = self._failures + 1 if _failed(sample) else 0
            if self._most is not None and self._failures > self._most:
                raise AnswererError(
                    f"{self._failures} answers in a row failed, so the run stops; the last: {sample['error']}. The "
                    f"same command asks the failed rows again and goes on with what is in {self._folder}."
                )


class _TaskRun:
    """One process's rows of one task."""

    def __init__(self, data: TaskData, answerer: Answerer, folder: Path, run: RunSettings) -> None:
        share = run.share
        self.data = data
        self.answerer = answerer
        self.seed = run.seed
        self.mine = range(share.rank, data.total, share.world)
        self.path = _part(folder, data.task.name, share)
        held = read_samples(self.path) if self.path.exists() else read_samples(_whole(folder, data.task.name))
        again = run.retry_failed and any(map(_failed, held))
        self.samples = [s for s in held if s["index"] in self.mine and not (again and _failed(s))]
        done = {sample["index"] for sample in self.samples}
        self.todo = [index for index in self.mine if index not in done]
        # A whole file of which some rows are asked again falls into parts again, this process's share of it too.
        self.in_parts = again and share.world > 1

    def run(self, on_progress: Callable[[Standing], None], patience: _Patience) -> None:
        on_progress(self._standing())
        if not self.todo and not self.in_parts:
            return
        write_whole(self.path, "".join(_line(sample) for sample in self.samples))  # drops what broke off half-written
        with self.path.open("a", encoding="utf-8") as file:
            for start in range(0, len(self.todo), self.answerer.batch_size):
                batch = self._answer(self.todo[start : start + self.answerer.batch_size])
                file.write("".join(_line(sample) for sample in batch))
                file.flush()
                self.samples += batch
                on_progress(self._standing())
                patience.watch(batch)

    def _answer(self, indices: list[int]) -> list[dict[str, Any]]:
        task = self.data.task
        rows = [self.data.row(index) for index in indices]
        prompts = [task.prompt(row) for row in rows]
        started, waited = time.perf_counter(), _waited(self.answerer)
        answers = self.answerer.answer(prompts, [self.seed + index for index in indices], self.data.gen_length)
        wall_share = (time.perf_counter() - started - (_waited(self.answerer) - waited)) / len(indices)
        several = self.data.samples > 1
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            graded = list(pool.map(partial(grade_answer, task), rows, answers))
        return [
            {
                "index": index,
                "id": task.row_id(row, index // self.data.samples),
                **({"row": index // self.data.samples} if several else {}),
                "prompt": prompt,
                "reference": task.reference(row),
                "correct": verdict.right,
                "reason": verdict.reason,
                **asdict(answer),
                "wall_share": wall_share,
            }
            for index, row, prompt, (answer, verdict) in zip(indices, rows, prompts, graded, strict=True)
        ]

    def _standing(self) -> Standing:
        costs = [sample["num_tokens"] / sample["nfe"] for sample in self.samples if sample["nfe"]]
        right = sum(sample["correct"] for sample in self.samples)
        tpf = sum(costs) / len(costs) if costs else None
        return Standing(self.data.task.name, len(self.samples), len(self.mine), right, tpf)


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Read the samples of a file, without a last line that broke off half-written; none where there is no file.

    Raises:
        RunFolderError: a line is no sample.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:  # not asked beforehand: another process may join the parts, and remove them, meanwhile
        return []
    samples = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            sample = json.loads(line)
            samples.append((sample["index"], sample))
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{path} line {number} is no sample of ours; choose another --out.") from error
    return [sample for _, sample in samples]


def grade_answer(task: Task, row: Row, answer: Answer) -> tuple[Answer, Verdict]:
    """Return the answer and whether it is right.

    A grader that raises is a fault of ours, but no reason to lose the answer or the run: it becomes the answer's error.
    """
    if answer.text is None:
        return answer, Verdict(False, "no answer")
    try:
        return answer, task.grade(row, answer.text)
    except Exception as error:
        reason = f"grading raised {type(error).__name__}: {error}"
        return replace(answer, error=reason), Verdict(False, reason)


def _join_parts(folder: Path, data: TaskData, world: int) -> bool:
    """Tell whether every row is answered; the process that sees the last part complete writes the whole file."""
    whole = _whole(folder, data.task.name)
    parts = [_part(folder, data.task.name, Share(rank, world)) for rank in range(world)]
    stored = read_samples(whole)
    if len(stored) == data.total and not any(part.exists() for part in parts if part != whole):
        order = [sample["index"] for sample in stored]
        if order != sorted(order):  # rows that failed were asked again after the others
            write_whole(whole, "".join(_line(sample) for sample in sorted(stored, key=lambda one: int(one["index"]))))
        return True
    samples = {sample["index"]: sample for part in parts for sample in read_samples(part)}
    if len(samples) < data.total:
        return False
    write_whole(whole, "".join(_line(samples[index]) for index in sorted(samples)))
    for part in parts:
        if part != whole:
            part.unlink(missing_ok=True)
    return True


def task_metrics(folder: Path, data: TaskData, batch_size: int, world: int, seed: int) -> dict[str, Any]:
    """Return the metrics of a complete task; processes work at the same time, so the slowest one's time counts."""
    samples = read_samples(_whole(folder, data.task.name))
    walls = [sum(sample["wall_share"] for sample in samples if sample["index"] % world == r) for r in range(world)]
    return summarize(samples, wall_seconds=max(walls), batch_size=batch_size * world, seed=seed)


def _failed(sample: dict[str, Any]) -> bool:
    """Tell whether a sample has no answer; one that could not be graded has one."""
    return sample["error"] is not None and sample["text"] is None


def _waited(answerer: Answerer) -> float:
    return answerer.waited if isinstance(answerer, WaitingAnswerer) else 0.0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _whole(folder: Path, task: str) -> Path:
    return folder / f"samples-{task}.jsonl"


def _part(folder: Path, task: str, share: Share) -> Path:
    return _whole(folder, task) if share.world == 1 else folder / f"samples-{task}.{share.rank}-of-{share.world}.jsonl"


def _line(sample: dict[str, Any]) -> str:
    return json.dumps(sample, ensure_ascii=False) + "\n"
