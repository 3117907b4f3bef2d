"""How a trained model came about, written beside its weights; what it started from tells the same inside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from dmax.models.source import PROVENANCE_FILE
from dmax.training.identity import recipe_digest, recipe_text
from dmax.training.recipe import Recipe


def write_provenance(recipe: Recipe, output: Path, data: dict[str, str]) -> Path:
    """Write what made the model of a finished run: recipe, starts, hours, positions and the validation curve.

    Args:
        recipe: as it ran.
        output: folder of the run, which holds ``starts.jsonl``, ``metrics.jsonl`` and ``model``.
        data: fingerprints of the data that were read, by their keys in the recipe.

    Returns:
        The file, ``output / "model" / "provenance.json"``. Its ``hours`` are those of optimiser steps and
        validation; its ``positions`` were read by the model, noisy, clean and padding alike; its ``start_from`` is
        the same of the model that the run started from, None where that has none.
    """
    metrics = list(_lines(output / "metrics.jsonl"))
    hours = [0.0, *(line["hours"] for line in metrics)]
    spent = [max(0.0, after - before) * 3600 for before, after in pairwise(hours)]
    record = {
        "run": recipe.name,
        "recipe": json.loads(recipe_text(recipe)),
        "recipe_digest": recipe_digest(recipe),
        "data": data,
        "starts": list(_lines(output / "starts.jsonl")),
        "steps": recipe.train.steps,
        "hours": round(hours[-1], 4),
        "positions": round(sum(s * line["tokens_per_second"] for s, line in zip(spent, metrics, strict=True))),
        "validation": [curve for line in metrics if len(curve := _validation(line)) > 1],
        "start_from": _ancestor(recipe.model.start_from),
    }
    path = output / "model" / PROVENANCE_FILE
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def _validation(line: dict[str, Any]) -> dict[str, Any]:
    return {"step": line["step"], **{name: value for name, value in line.items() if name.startswith("validation")}}


def _ancestor(source: str | None) -> Any:
    path = None if source is None else Path(source) / PROVENANCE_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.exists() else None
