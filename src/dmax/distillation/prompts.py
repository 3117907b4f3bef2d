"""The prompts of a distillation: read or drawn, checked, and each of them once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmax.distillation.sources import DrawnSource, PromptSource, Turns
from dmax.evaluation.tasks import HubSource, Row, Rows, TaskError, read_rows, rows_digest


@dataclass(frozen=True)
class Item:
    """One prompt."""

    index: int
    """Its row in the data, from 0; it draws with the seed of the run plus this."""
    id: str
    turns: Turns
    row: Row
    """For the grader."""


@dataclass(frozen=True)
class Prompts:
    """What is asked."""

    source: PromptSource
    items: list[Item]
    origin: dict[str, Any]
    """Where the rows come from, as a manifest states it."""
    digest: str
    """Fingerprint of the rows."""
    malformed: tuple[str, ...]
    """The bad rows that were left out, such as ``line 7: the prompt is empty``."""
    duplicates: int
    """Rows left out because one before them asks the same."""


def load_prompts(
    source: PromptSource,
    data: Path | HubSource | None = None,
    limit: int | None = None,
    seed: int = 0,
    *,
    skip_bad: bool = False,
) -> Prompts:
    """Load the prompts of a source.

    Args:
        source: how rows are asked.
        data: a local file or a data set on the hub with the rows; None where they are drawn.
        limit: how many rows to take from the start; needed where they are drawn.
        seed: of drawn rows.
        skip_bad: leave bad rows out, told in ``malformed``, instead of raising; they count for the limit.

    Raises:
        TaskError: the data cannot be had or read, hold no rows, or hold a bad one.
    """
    if data is not None:
        rows = read_rows(source, data, limit, skip_bad=skip_bad)
    elif not isinstance(source, DrawnSource):
        raise TaskError(
            f"{source.name} needs rows, and those of a benchmark's own test split are not for training; "
            "give some with --data or --hub."
        )
    elif limit is None or limit < 1:
        raise TaskError(f"{source.name} never runs out of rows; say how many with --limit, at least 1.")
    else:
        drawn = [source.generate(index, seed) for index in range(limit)]
        rows = Rows(drawn, {"generated": source.name, "split": "train", "seed": seed}, ())
    items = list(_without_duplicates(source, rows))
    return Prompts(source, items, rows.source, rows_digest(rows), rows.skipped, len(rows) - len(items))


def _without_duplicates(source: PromptSource, rows: Iterable[Row]) -> Iterator[Item]:
    """Keep the first of all rows that ask the same, white space apart."""
    seen = set()
    for index, row in enumerate(rows):
        turns = source.turns(row)
        key = tuple((turn["role"], " ".join(turn["content"].split())) for turn in turns)
        if key not in seen:
            seen.add(key)
            yield Item(index, source.row_id(row, index), turns, row)
