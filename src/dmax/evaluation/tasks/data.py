"""Rows of a task: from a local file, from the Hugging Face Hub, or drawn here; each one checked."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from dmax.evaluation.tasks.base import BadRow, GeneratedTask, HubSource, Row, RowForm, Task, TaskError

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".xml")
"""Kinds of files; the text formats also with ``.gz`` after it."""

_PARQUET_BRANCH = "refs/convert/parquet"
"""Where the hub keeps every public data set in one layout: ``config/split/*.parquet``."""
_SECONDS = 10.0
"""How long the hub may take to say what it has."""


class Rows(list[Row]):
    """The rows of a task, in order, and how they were come by."""

    def __init__(self, rows: Iterable[Row], source: dict[str, Any], skipped: Sequence[str]) -> None:
        super().__init__(rows)
        self.source = source
        """Where they come from, as a results file states it."""
        self.skipped = tuple(skipped)
        """The bad rows that were left out, such as ``line 7: column 'answer' is empty``."""


def load_rows(
    task: Task, data: Path | None = None, limit: int | None = None, seed: int = 0, *, skip_bad: bool = False
) -> Rows:
    """Load the rows that a task is asked on, each of which it can ask and grade.

    Args:
        task: whose rows.
        data: a local file with them; by default they come from the hub (or its cache), or are drawn.
        limit: how many rows to take from the start; by default all, or the task's own number of drawn ones.
        seed: of drawn rows.
        skip_bad: leave bad rows out, told in ``skipped``, instead of raising; they count for the limit.

    Raises:
        TaskError: the data cannot be had or read, hold no rows, or hold a bad one. The message says which: by its line
            of a JSONL file, else by its number, counted from 1.
    """
    if data is None and isinstance(task, GeneratedTask):
        _check_limit(limit)
        count = task.default_rows if limit is None else limit
        numbered = ((index + 1, task.generate(index, seed)) for index in range(count))
        return _checked(task, numbered, "row", task.name, {"generated": task.name, "seed": seed}, skip_bad=skip_bad)
    place = task.source if data is None else data
    assert place is not None, "a task without a source draws its rows"
    return read_rows(task, place, limit, skip_bad=skip_bad)


def read_rows(form: RowForm, place: Path | HubSource, limit: int | None = None, *, skip_bad: bool = False) -> Rows:
    """Read rows from a local file or the hub (or its cache), each of which passes the form's ``check``.

    Args:
        form: what a row has to be.
        place: where they are.
        limit: how many rows to take from the start; by default all.
        skip_bad: leave bad rows out, told in ``skipped``, instead of raising; they count for the limit.

    Raises:
        TaskError: as for :func:`load_rows`.
    """
    _check_limit(limit)
    if isinstance(place, Path):
        numbered: Iterable[tuple[int, Any]] = _read_file(place)
        source: dict[str, Any] = {"file": str(place), "sha256": hashlib.sha256(place.read_bytes()).hexdigest()}
        unit = "line" if ".jsonl" in place.suffixes else "row"
    else:
        files, revision = _fetch(place)
        numbered = enumerate((row for file in files for row in _read_parquet(file)), 1)
        source, unit = {**asdict(place), "revision": revision}, "row"
    return _checked(form, islice(numbered, limit), unit, str(place), source, skip_bad=skip_bad)


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise TaskError(f"the number of rows must be at least 1, not {limit}.")


def _checked(
    form: RowForm,
    numbered: Iterable[tuple[int, Any]],
    unit: str,
    where: str,
    source: dict[str, Any],
    *,
    skip_bad: bool,
) -> Rows:
    rows, bad = _sort_out(form, numbered)
    if bad and not skip_bad:
        number, reason = bad[0]
        raise TaskError(
            f"{unit} {number} of {where} is no {form.name} row: {reason}; "
            "mend it, or leave bad rows out with --skip-bad."
        )
    if not rows:
        raise TaskError(f"{where} holds no {form.name} rows" + (f", only {len(bad)} bad ones." if bad else "."))
    return Rows(rows, source, [f"{unit} {number}: {reason}" for number, reason in bad])


def rows_digest(rows: Iterable[Row]) -> str:
    """Hash rows and their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(dict(row), sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def _sort_out(form: RowForm, numbered: Iterable[tuple[int, Any]]) -> tuple[list[Row], list[tuple[int, str]]]:
    """Sort out good rows, and the numbers of bad ones with what is wrong with them."""
    rows: list[Row] = []
    bad: list[tuple[int, str]] = []
    for number, row in numbered:
        try:
            if not isinstance(row, dict):
                raise row if isinstance(row, BadRow) else BadRow(f"it is not an object, but {type(row).__name__}")
            form.check(row)
            rows.append(row)
        except BadRow as error:
            bad.append((number, str(error)))
    return rows, bad


def _read_file(path: Path) -> Iterator[tuple[int, Any]]:
    """Read rows of a local file with their numbers; a line that is no JSON comes as the :class:`BadRow` it is."""
    if path.is_dir():
        raise TaskError(f"{path} is a folder; give the file with the rows.")
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    kind = plain.suffix.lower()
    if kind not in SUFFIXES:
        raise TaskError(f"{path} is of no known kind; give a file ending in {', '.join(SUFFIXES)} (or .gz after it).")
    if kind == ".parquet":
        return enumerate(_read_parquet(path), 1)
    with _readable(path, kind):
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
        if kind == ".jsonl":
            return _read_lines(text)
        return enumerate({".json": _read_json, ".csv": _read_csv, ".xml": _read_xml}[kind](text), 1)


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Turn what the readers of a kind of file raise into a :class:`TaskError`."""
    try:
        yield
    except TaskError:
        raise
    except OSError as error:  # that of a broken .gz has no strerror
        raise TaskError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, EOFError, SyntaxError, zlib.error, csv.Error) as error:  # of XML it is a SyntaxError
        reason = str(error).strip().rstrip(".")
        raise TaskError(f"{path} is not a whole {kind} file ({reason}); fetch or write it again.") from error


def _read_lines(text: str) -> Iterator[tuple[int, Any]]:
    # Not splitlines: JSON may hold U+2028 and its like as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, BadRow(f"it is not JSON ({error})")


def _read_json(text: str) -> list[Any]:
    rows = json.loads(text)
    if not isinstance(rows, list):
        raise ValueError("it must hold a list of rows")
    return rows


def _read_csv(text: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _read_xml(text: str) -> list[dict[str, Any]]:
    """Read problems in the layout of ASDiv: attributes and children of a ``Problem`` become columns."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("declarations of types and entities are not read")
    problems = ElementTree.fromstring(text).iter("Problem")
    return [{**problem.attrib, **{child.tag: _inner_text(child) for child in problem}} for problem in problems]


def _inner_text(element: ElementTree.Element) -> str:
    return "".join(element.itertext()).strip()


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError as error:
        raise TaskError("reading parquet files needs pyarrow: pip install 'dmax-llm[eval]'.") from error
    with _readable(path, ".parquet"):
        return parquet.read_table(path).to_pylist()


def _fetch(source: HubSource) -> tuple[list[Path], str]:
    """Fetch the parquet files of a data set into the hub's cache, if need be; and the commit they are of.

    Raises:
        TaskError: the hub cannot be reached or does not give it, and the cache has none.
    """
    from huggingface_hub import errors, snapshot_download  # here, because a local file has no need of it

    folder = f"{source.config}/{source.split}"
    try:
        root = snapshot_download(
            source.dataset,
            repo_type="dataset",
            revision=_PARQUET_BRANCH,
            allow_patterns=[f"{folder}/*.parquet"],
            etag_timeout=_SECONDS,
        )
    except Exception as error:  # beside its own errors the client lets those of its HTTP library through
        if isinstance(error, errors.GatedRepoError):
            reason = "the Hugging Face Hub gives it only to accounts that were granted access; log in with one"
        elif isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
            reason = "the Hugging Face Hub does not have it (any more)"
        elif isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
            reason = "the Hugging Face Hub cannot be reached and its cache has no copy"
        else:
            reason = f"fetching it from the Hugging Face Hub failed ({type(error).__name__}: {error})".rstrip(".")
        raise TaskError(f"no data set {source}: {reason}; give the rows as a local file with --data.") from error
    files = sorted((Path(root) / folder).glob("*.parquet"))
    if not files:
        raise TaskError(
            f"the Hugging Face Hub has no such part of {source}; give the rows as a local file with --data."
        )
    return files, Path(root).name
