"""One distillation: prompts answered shard by shard, then joined into a training set and its manifest.

A folder holds ``settings.json`` (what the run is), ``shards/00000.json`` and so on (every prompt with what became of
it), and at the end ``train.jsonl`` (one conversation a line, in the order of the prompts) and ``manifest.json`` (where
all of it comes from). A shard is written as a whole; after an interruption the missing ones are answered, each exactly
as it would have been. Several processes share the shards by their rank, and the last to finish joins them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dmax.distillation.job import DROPPED, Job, Shard, Workers
from dmax.distillation.prompts import Prompts
from dmax.distillation.sources import GradedSource
from dmax.environment import describe_process
from dmax.evaluation.run_folder import claim, to_json, write_whole
from dmax.evaluation.runner import Share

FORMAT = 1
TRAINING_FILE, MANIFEST_FILE, SHARDS = "train.jsonl", "manifest.json", "shards"
SHARD_SIZE = 256


class DistillationError(ValueError):
    """A distillation that cannot be run or joined."""


@dataclass(frozen=True)
class Standing:
    """How far a run has come, for a progress bar."""

    done: int
    """Prompts answered, by this process and before it."""
    total: int
    kept: int


@dataclass(frozen=True, kw_only=True)
class DistillationSettings:
    """Who answers, and how a run draws, checks and is shared out.

    Raises:
        DistillationError: the shard size is below 1.
    """

    generator: Mapping[str, Any]
    """``model`` (with ``name`` and ``hash``), ``decoder`` and ``params``, as ``Answerer.describe`` has it."""
    gen_length: int
    """Most tokens of an answer."""
    seed: int = 0
    """Row i draws with ``seed + i``, where answers are drawn."""
    checked: bool = False
    """Whether answers are dropped that the prompts' source grades as wrong."""
    shard_size: int = SHARD_SIZE
    """Prompts that are answered, written and, after an interruption, answered again together."""
    command: Sequence[str] = ()
    """Written into the manifest."""
    share: Share = field(default_factory=Share.from_environment)
    """The shards of this process; by default as the environment says."""

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise DistillationError(f"the shard size is {self.shard_size}; it must be at least 1.")

    def identity(self, prompts: Prompts) -> dict[str, Any]:
        """Return what must be the same for two runs on these prompts to be one."""
        return {
            **self.generator,
            "gen_length": self.gen_length,
            "seed": self.seed,
            "checked": self.checked,
            "shard_size": self.shard_size,
            "prompts": {"source": prompts.source.name, "version": prompts.source.version, "rows": prompts.digest},
        }


def distill(
    prompts: Prompts,
    workers: Workers,
    folder: Path,
    run: DistillationSettings,
    *,
    on_progress: Callable[[Standing], None] = lambda standing: None,
) -> dict[str, Any] | None:
    """Answer the prompts that the folder does not hold yet, and write the training set.

    Args:
        prompts: what is asked.
        workers: who answers.
        folder: made if need be; one that holds the same run is taken up where it stopped.
        run: who answers, lengths, seed and shards.
        on_progress: called at the start and after every shard.

    Returns:
        What went into ``manifest.json``; None where other processes still work on their shards.

    Raises:
        DistillationError: answers cannot be graded, or a shard was damaged or made with other weights.
        RunFolderError: the folder belongs to another run.
    """
    if run.checked and not isinstance(prompts.source, GradedSource):
        raise DistillationError("plain prompts have no right answer to check against; name a task that grades them.")
    settings = run.identity(prompts)
    claim(folder, json.loads(json.dumps(settings)))  # as it will be read back
    (folder / SHARDS).mkdir(exist_ok=True)
    starts = range(0, len(prompts.items), run.shard_size)
    shards = [Shard(number, prompts.items[start : start + run.shard_size]) for number, start in enumerate(starts)]
    job = Job(prompts.source, run.gen_length, run.seed, run.checked)
    _answer_missing(job, workers, folder, shards, run.share, on_progress)
    if not all(_shard_file(folder, shard.number).exists() for shard in shards):
        return None
    counts, output = _join(folder, shards, settings)
    manifest = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(run.command),
        **describe_process(),
        **settings,
        "prompts": {**settings["prompts"], "data": prompts.origin},
        "counts": _add_up(prompts, counts),
        "output": output,
    }
    write_whole(folder / MANIFEST_FILE, to_json(manifest))
    return manifest


def _answer_missing(
    job: Job,
    workers: Workers,
    folder: Path,
    shards: Sequence[Shard],
    share: Share,
    on_progress: Callable[[Standing], None],
) -> None:
    total, done, kept = 0, 0, 0
    missing = []
    for shard in shards[share.rank :: share.world]:
        total += len(shard.items)
        if _shard_file(folder, shard.number).exists():
            done += len(shard.items)
            kept += _count_kept(_read_shard(folder, shard)["records"])
        else:
            missing.append(shard)
    on_progress(Standing(done, total, kept))
    for answered in workers.answer(job, missing):
        write_whole(_shard_file(folder, answered.number), json.dumps(asdict(answered)) + "\n")
        done += len(answered.records)
        kept += _count_kept(answered.records)
        on_progress(Standing(done, total, kept))


def _count_kept(records: Iterable[Mapping[str, Any]]) -> int:
    return sum(record["outcome"] == "kept" for record in records)


def _join(folder: Path, shards: Sequence[Shard], settings: Mapping[str, Any]) -> tuple[Counter[str], dict[str, Any]]:
    """Write the training set; return how often each outcome was, and what the manifest says of the file."""
    counts: Counter[str] = Counter()
    digest, tokens, nfe = hashlib.sha256(), 0, 0
    models = []
    path = folder / TRAINING_FILE
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        for content in _read_shards(folder, shards, settings):
            if content["model"] not in models:
                models.append(content["model"])
            for record in content["records"]:
                counts[record["outcome"]] += 1
                nfe += record["nfe"] or 0
                if record["outcome"] == "kept":
                    line = _training_line(record)
                    digest.update(line)
                    file.write(line)
                    tokens += record["num_tokens"] or 0
    partial.replace(path)
    return counts, {
        "file": TRAINING_FILE,
        "rows": counts["kept"],
        "sha256": digest.hexdigest(),
        "answer_tokens": tokens,
        "nfe": nfe,
        "answered_by": models,
    }


def _training_line(record: Mapping[str, Any]) -> bytes:
    row = {"id": record["id"], "messages": record["messages"], "num_tokens": record["num_tokens"]}
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8")


def _add_up(prompts: Prompts, counts: Mapping[str, int]) -> dict[str, Any]:
    """Count every row of the data under what became of it."""
    malformed = len(prompts.malformed)
    return {
        "prompts": len(prompts.items) + prompts.duplicates + malformed,
        "kept": counts.get("kept", 0),
        "dropped": {
            "malformed": malformed,
            "duplicate": prompts.duplicates,
            **{outcome: counts.get(outcome, 0) for outcome in DROPPED},
        },
    }


def _read_shards(folder: Path, shards: Sequence[Shard], settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        content = _read_shard(folder, shard)
        if content["model"].get("hash") != settings["model"].get("hash"):
            raise DistillationError(
                f"{_shard_file(folder, shard.number)} was made with other weights than the run names; "
                "remove it and run the same command again."
            )
        yield content


def _read_shard(folder: Path, shard: Shard) -> dict[str, Any]:
    path = _shard_file(folder, shard.number)
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if [record["index"] for record in content["records"]] == [item.index for item in shard.items]:
            return content
    except (ValueError, KeyError, TypeError) as error:
        raise DistillationError(f"{path} is damaged; remove it and run the same command again.") from error
    raise DistillationError(f"{path} answers other prompts; remove it and run the same command again.")


def _shard_file(folder: Path, number: int) -> Path:
    return folder / SHARDS / f"{number:05d}.json"
