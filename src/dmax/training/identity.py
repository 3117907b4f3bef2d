"""What makes a run the one that it is: its recipe and its data, by which it may be resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dmax.training.distributed import rank
from dmax.training.recipe import Recipe
from dmax.training.section import RecipeError

LOCK_FILE = ".lock"
_LATER_OPTIONS = ("rollout_", "consistency_", "calibration_", "entropy_")


def recipe_text(recipe: Recipe) -> str:
    """Return as JSON what of a recipe decides what it makes; where it runs and how often it looks up is left out."""
    validation = {"validate_every", "validation_rows", "generate_rows", "generate_with"}
    # A run may be made longer, and by now epochs are steps.
    left_out = validation | {"checkpoint_every", "snapshots", "device", "workers", "epochs", "steps"}
    if not recipe.train.validation_share:
        left_out |= {"validation_share"}
    absent: dict[str, Any] = {"lora": True} if recipe.lora is None else {}
    # Options that came later and say nothing new leave the fingerprints of older runs as they are.
    absent["objective"] = {
        name for name, field in type(recipe.objective).model_fields.items()
        if name.startswith(_LATER_OPTIONS) and getattr(recipe.objective, name) == field.default
    }  # fmt: skip
    absent["data"] = {
        place: {name for name in ("themes", "reworded") if not getattr(source, name, None)}
        for place, source in enumerate(recipe.data)
    }
    return recipe.model_dump_json(
        exclude={"name": True, "train": left_out, "parallel": True, "tracking": True, **absent}
    )


def recipe_digest(recipe: Recipe) -> str:
    """Return a fingerprint of :func:`recipe_text`: 16 hexadecimal digits."""
    return hashlib.sha256(recipe_text(recipe).encode()).hexdigest()[:16]


def differing_keys(recipe: Recipe, earlier: Mapping[str, Any]) -> list[str]:
    """Return the keys in which a recipe differs from an earlier one's :func:`recipe_text`, each with both values."""
    return list(_differences("", json.loads(recipe_text(recipe)), earlier))


def _differences(where: str, new: Any, old: Any) -> Iterator[str]:
    if isinstance(new, Mapping) and isinstance(old, Mapping):
        for key in dict.fromkeys([*new, *old]):
            yield from _differences(f"{where}.{key}" if where else key, new.get(key), old.get(key))
    elif isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        for place, pair in enumerate(zip(new, old, strict=True)):
            yield from _differences(f"{where}.{place}", *pair)
    elif new != old:
        yield f"{where} (was {json.dumps(old)}, is {json.dumps(new)})"


@contextmanager
def only_run_in(output: Path) -> Iterator[None]:
    """Keep other runs out of a folder for as long as this one goes on; a process that is killed lets go of it.

    Raises:
        RecipeError: another run is going on in it.
    """
    if rank():  # the first process holds it for all of a run's
        yield
        return
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RecipeError(f"another run is going on in {output}: wait for it, or choose another --output.") from None
    try:
        yield
    finally:
        lock.release()
