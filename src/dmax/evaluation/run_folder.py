"""Folders that a run claims, goes on in after an interruption, and shares with nothing else."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SETTINGS_FILE = "settings.json"


class RunFolderError(ValueError):
    """A folder that belongs to another run, or holds something else."""


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder this run's, or make sure that it is.

    Args:
        folder: made if need be.
        settings: what the run is, as JSON values; written to ``settings.json``.

    Raises:
        RunFolderError: the folder belongs to a run with other settings, or holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS_FILE
    if path.exists():
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunFolderError(f"{path} cannot be read; choose another --out.") from error
        different = [key for key in settings | held if settings.get(key) != held.get(key)]
        if different:
            raise RunFolderError(
                f"{folder} holds a run with another {' and '.join(different)}; choose another --out, "
                "or give the settings of that run to take it up."
            )
    elif any(folder.iterdir()) and not any(file.name.startswith(SETTINGS_FILE) for file in folder.iterdir()):
        raise RunFolderError(f"{folder} holds other files and no run of ours; choose another --out.")
    else:
        write_whole(path, to_json(settings))


def by_id(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return samples by id; those that share one by their position among them too."""
    seen = Counter[str]()
    keyed: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        seen[row["id"]] += 1
        keyed[row["id"] if seen[row["id"]] == 1 else f"{row['id']} (number {seen[row['id']]})"] = row
    return keyed


def to_json(record: dict[str, Any]) -> str:
    """Write the text of a JSON file that people read too."""
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Write all of the file or nothing, also where the process dies meanwhile and where several write the same."""
    partial_file = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial_file.write_text(text, encoding="utf-8")
    partial_file.replace(path)
