"""Where a checkpoint lies, and which tensors its files hold.

Only JSON, safetensors, tokenizer and template files are ever read: nothing here unpickles or imports what a
checkpoint ships.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dmax.models.foreign import adapter_in, is_pointer

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PROVENANCE_FILE = "provenance.json"
_TORN = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".tmp", ".aria2")
"""How the names of files end that a program is fetching, or gave up."""
"""Says how ``dmax train`` made the weights (see :mod:`dmax.training.provenance`)."""
EMBEDDED_MODELS = ("nano", "nano-base")

COMPANION_FILES = (
    CONFIG_FILE,
    GENERATION_FILE,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    PROVENANCE_FILE,
)
"""The files beside the weights that belong to a checkpoint; all others in a folder are left alone."""

_SMALL = (*COMPANION_FILES, INDEX_FILE)
_FETCHED = (*_SMALL, "model*.safetensors")
"""What is fetched from the Hub: never code, never pickles."""

FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Names of the dtypes that a safetensors header may give a weight."""

QUANTIZED_DTYPES = {"F8_E4M3": torch.float8_e4m3fn, "I8": torch.int8, "U8": torch.uint8}
"""Names of the dtypes of quantised weights."""

_NUMBER = re.compile(r"\d+")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read, understood or written."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, as the header of its file describes it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """The safetensors name, such as ``BF16``."""


def resolve(path_or_id: str | Path, *, weights: bool = True) -> Path:
    """Find the folder of a checkpoint.

    An embedded model's name always means the embedded model (write ``./nano`` for a folder called nano); then comes
    a local folder; then a Hub id ``owner/name``, of which the weights, configuration and tokenizer are fetched into
    the Hub cache, or found there. With ``weights=False`` only the small files are fetched.

    Raises:
        CheckpointError: nothing goes by that name, or the Hub cannot give it.
    """
    name = str(path_or_id)
    if name in EMBEDDED_MODELS:
        embedded = Path(str(files("dmax") / "assets" / name))
        if not embedded.is_dir():
            raise CheckpointError(f"The embedded model {name!r} is not part of this installation: install dmax again.")
        return embedded
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{name} is a file: give the folder of a checkpoint.")
    if isinstance(path_or_id, str) and _HUB_ID.fullmatch(name):
        return _download(name, _FETCHED if weights else _SMALL)
    raise CheckpointError(
        f"No model {name!r}: it is not a folder here, not an embedded model ({', '.join(EMBEDDED_MODELS)}) "
        "and not a Hugging Face Hub id (owner/name)."
    )


def _download(hub_id: str, patterns: Iterable[str]) -> Path:
    from huggingface_hub import errors, snapshot_download  # here, because a local model has no need of it

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns)))
    except Exception as error:  # beside its own errors the client lets those of its HTTP library through
        if isinstance(error, errors.GatedRepoError):
            reason = "the Hugging Face Hub gives it only to accounts that were granted access; log in with one"
        elif isinstance(error, errors.RepositoryNotFoundError):
            reason = "the Hugging Face Hub has no such model, or it is private"
        elif isinstance(error, errors.LocalEntryNotFoundError):
            reason = "the Hugging Face Hub cannot be reached, and there is no copy in its cache"
        else:
            reason = f"fetching it from the Hugging Face Hub failed ({type(error).__name__}: {error})".rstrip(".")
        raise CheckpointError(f"Model {hub_id!r} is not a folder here, and {reason}.") from error


def read_json(path: Path) -> dict[str, Any]:
    """Parse a file that must hold a JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if path.is_symlink():  # into a cache of the Hub that lacks it
            raise CheckpointError(fetched_in_part(path.parent, [path.name])) from error
        raise CheckpointError(
            adapter_in(path.parent) or f"{path.parent} is not a checkpoint folder: it has no {path.name}."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: not JSON, or not UTF-8
        if path.is_file() and is_pointer(path):
            raise CheckpointError(f"{path} is a Git LFS pointer, not the file: run `git lfs pull` there.") from error
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(values).__name__}.")
    return values


def fetched_in_part(folder: Path, missing: Iterable[str]) -> str:
    """Say of a checkpoint folder which of its files did not arrive, and how to mend it."""
    return f"{folder} was not fetched whole ({listing(sorted(missing), 3)}): fetch the checkpoint again."


def list_tensors(folder: Path) -> dict[str, StoredTensor]:
    """List every tensor of a checkpoint folder, from the headers of its safetensors files; no weight is read.

    Raises:
        CheckpointError: there are no weights, a file is missing, damaged or at odds with the index.
    """
    if (folder / WEIGHTS_FILE).exists():
        return _list_file(folder / WEIGHTS_FILE)
    if not (folder / INDEX_FILE).exists():
        raise CheckpointError(_no_weights(folder))
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{folder / INDEX_FILE} has no weight_map from tensor names to file names.")
    shards = sorted(set(weight_map.values()))
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise CheckpointError(f"{folder / INDEX_FILE} names files outside the folder: {listing(outside)}.")
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        raise CheckpointError(
            f"{folder} lacks {listing(absent)}, which {INDEX_FILE} lists: fetch the checkpoint again."
        )
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        tensors.update(_list_file(folder / shard))
    misplaced = [name for name, shard in weight_map.items() if name not in tensors or tensors[name].file.name != shard]
    if misplaced:
        raise CheckpointError(f"{folder / INDEX_FILE} lists tensors that are not in their files: {listing(misplaced)}.")
    return tensors


def _list_file(path: Path) -> dict[str, StoredTensor]:
    note = path.with_name(f"{path.name}.aria2")
    if note.exists():  # beside a file that has its full size from the first
        raise CheckpointError(fetched_in_part(path.parent, [note.name]))
    with open_tensors(path) as file:
        tensors = {}
        for name in file.keys():  # noqa: SIM118 (not a mapping: it cannot be iterated itself)
            header = file.get_slice(name)
            tensors[name] = StoredTensor(path, tuple(header.get_shape()), header.get_dtype())
        return tensors


def open_tensors(path: Path) -> Any:
    """Map a safetensors file into memory: a context manager with ``keys``, ``get_slice`` and ``get_tensor``."""
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        if path.is_file() and is_pointer(path):
            raise CheckpointError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` there.") from error
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({str(error).rstrip('.')}): fetch or write it again."
        ) from error


def read_ahead(path: Path) -> None:
    """Let the system begin to read a file that is mapped: a page at a time it would come at a fraction of the speed."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _no_weights(folder: Path) -> str:
    found = f"{folder} is not a checkpoint folder: it has neither {WEIGHTS_FILE} nor {INDEX_FILE}."
    pickles = sorted(path.name for suffix in ("bin", "pt", "pth", "ckpt", "pkl") for path in folder.glob(f"*.{suffix}"))
    adapter = adapter_in(folder)
    if adapter is not None:
        return adapter
    torn = [path.name for path in folder.iterdir() if path.name.endswith(_TORN) or not path.exists()]
    if torn:
        return fetched_in_part(folder, torn)
    if pickles:
        found += f" Pickled weights ({listing(pickles)}) are never loaded: save them as safetensors first."
    return found


def listing(names: Iterable[str], most: int = 6) -> str:
    """Join names for a message, the first few in full and the rest as a number."""
    names = list(names)
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def spelled(names: Iterable[str]) -> str:
    """Join names for a message, all of them, those that differ in numbers as one: ``layers.{0-3,7}.norm``."""
    alike: dict[tuple[str, ...], set[tuple[int, ...]]] = {}
    for name in names:
        numbers = tuple(map(int, _NUMBER.findall(name)))
        alike.setdefault(tuple(_NUMBER.split(name)), set()).add(numbers)
    return ", ".join(
        "".join(text + place for text, place in zip(texts, [*map(_ranges, box), ""], strict=True))
        for texts, found in alike.items()
        for box in _boxes(found)
    )


def _boxes(found: Iterable[tuple[int, ...]]) -> list[tuple[tuple[int, ...], ...]]:
    """Cut sets of numbers, one a place, into such that every combination was found."""
    behind: dict[int, set[tuple[int, ...]]] = {}
    for numbers in sorted(found):
        if not numbers:
            return [()]
        behind.setdefault(numbers[0], set()).add(numbers[1:])
    alike: dict[frozenset[tuple[int, ...]], list[int]] = {}
    for number, rest in behind.items():
        alike.setdefault(frozenset(rest), []).append(number)
    return [(tuple(firsts), *box) for rest, firsts in alike.items() for box in _boxes(rest)]


def _ranges(numbers: Sequence[int]) -> str:
    """Write rising numbers as they stand in a name: ``7``, or ``{0-3,7}``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return texts[0] if len(numbers) == 1 else f"{{{','.join(texts)}}}"
