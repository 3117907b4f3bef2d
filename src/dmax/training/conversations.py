"""Training examples from conversations in files or on the Hugging Face Hub, tokenised once and kept by ``datasets``."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dmax.models.tokenizer import Tokenizer, text_of
from dmax.training.data import DataError, Example, generator_for, until_eos
from dmax.training.data_sections import HubSection, JsonlSection

if TYPE_CHECKING:  # slow to import, and only recipes with conversations need it
    from datasets import Dataset

_ENCODING = 3
"""Part of the cache key: to be raised when :func:`_encode` changes what it gives for the same rows."""
_ORDER, _HELD_OUT = 5, 9
LINES = re.compile(r"\.(?:jsonl|ndjson)(?:\.(?:gz|bz2|xz|zst))?$", re.IGNORECASE)
"""How files are named that hold a JSON object a line."""


class Conversations:
    """A finite source, repeated in epochs: index i is row ``order[i % len]`` of epoch ``i // len``.

    Every epoch has an order of its own, a function of the seed and the epoch's number. An index names one row of one
    epoch, so noise that is a function of (seed, index) is one of (seed, example, epoch).

    Args:
        rows: token ids and prompt lengths, as :func:`tokenized` gives them.
        context: longest sequence, in tokens; longer ones are left out and counted in ``dropped``.
        seed: of the order.
        name: what to call the rows.
        validation_share: of the rows, kept from training; at least one row stays on either side.
    """

    def __init__(self, rows: Dataset, context: int, seed: int, name: str, validation_share: float = 0.0) -> None:
        lengths = np.asarray(rows.data.column("length"))
        answered = np.asarray(rows.data.column("answered"))
        self.name = name
        self._rows = rows
        self._kept = np.flatnonzero(answered & (lengths <= context))
        self._held_out = self._kept[:0]
        self._seed = seed
        self._order: tuple[int, list[int]] = (-1, [])
        self.empty = int((~answered).sum())
        self.dropped = len(rows) - self.empty - len(self._kept)
        if not len(self._kept):
            raise DataError(
                f"{name} has no row that could be trained on ({self.dropped} of {len(rows)} are longer than "
                f"{context} tokens, {self.empty} have an empty answer): give other data, or raise train.context."
            )
        if validation_share:
            self._hold_out(validation_share)

    def __len__(self) -> int:
        """Count the examples of an epoch."""
        return len(self._kept)

    @property
    def held_out(self) -> int:
        """How many rows are kept for validation."""
        return len(self._held_out)

    def held_out_example(self, index: int) -> Example:
        """Return a row that is kept for validation."""
        return self._example(int(self._held_out[index]))

    def fingerprint(self) -> str:
        """Return a hash of all rows' tokens, 16 hexadecimal digits: other rows, another fingerprint."""
        found = hashlib.blake2b(digest_size=8)
        for name in ("token_ids", "prompt_length", "length"):
            for chunk in self._rows.data.column(name).chunks:
                found.update(np.asarray(chunk.flatten() if name == "token_ids" else chunk).tobytes())
        return found.hexdigest()

    def example(self, index: int) -> Example:
        epoch, place = divmod(index, len(self))
        return self._example(int(self._kept[self._order_of(epoch)[place]]))

    def _hold_out(self, share: float) -> None:
        count = min(max(1, round(share * len(self._kept))), len(self._kept) - 1)
        if not count:
            raise DataError(f"{self.name} has one row, which cannot both be trained on and validated on.")
        order = torch.randperm(len(self._kept), generator=generator_for(self._seed, _HELD_OUT)).numpy()
        self._held_out, self._kept = self._kept[np.sort(order[:count])], self._kept[np.sort(order[count:])]

    def _example(self, place: int) -> Example:
        row: dict[str, Any] = self._rows[place]
        prompt = row["prompt_length"]
        return Example(tuple(row["token_ids"]), (False,) * prompt + (True,) * (row["length"] - prompt))

    def _order_of(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            generator = generator_for(self._seed, epoch, _ORDER)
            self._order = (epoch, torch.randperm(len(self), generator=generator).tolist())
        return self._order[1]


def load_conversations(
    section: JsonlSection | HubSection, tokenizer: Tokenizer, context: int, seed: int, validation_share: float = 0.0
) -> Conversations:
    """Load the source that a recipe's ``data`` section describes.

    Raises:
        DataError: the data cannot be had or read, or a row is no conversation.
    """
    rows = tokenized(read_rows(section), tokenizer, section.path)
    return Conversations(rows, context, seed, section.path, validation_share)


def read_rows(section: JsonlSection | HubSection) -> Dataset:
    """Read the raw rows; nothing that a data set ships is run.

    Raises:
        DataError: there is no such data, or it cannot be read.
    """
    from datasets import load_dataset

    try:
        if isinstance(section, HubSection):
            return load_dataset(section.path, section.subset, split=section.split, revision=section.revision)
        return load_dataset("json", data_files=_jsonl_files(section.path), split="train")
    except DataError:
        raise
    except Exception as error:  # besides its own errors the library lets those of its readers and clients through
        cause = " ".join(str(error.__cause__ or error).split())
        raise DataError(f"The data {section.path!r} cannot be read ({type(error).__name__}: {cause}).") from error


def conversation_texts(section: JsonlSection | HubSection, count: int) -> Iterator[str]:
    """Yield the first conversations of a source as plain text, to train a tokenizer on."""
    rows = read_rows(section)
    for row in rows.select(range(min(count, len(rows)))):
        yield "\n".join(text_of(turn.get("content")) for turn in _messages(row) or ())


def _jsonl_files(path: str) -> list[str]:
    place = Path(path).expanduser()
    files = [place]
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if LINES.search(file.name) and not file.name.startswith("."))
    if not files or not all(file.is_file() for file in files):
        raise DataError(
            f"there is no data at {path}: give a JSONL file, or a folder of files named *.jsonl or *.ndjson, as they "
            "are or compressed (.gz, .bz2, .xz, .zst)."
        )
    return [str(file.resolve()) for file in files]


def tokenized(rows: Dataset, tokenizer: Tokenizer, name: str) -> Dataset:
    """Make columns ``token_ids`` (prompt, response, EOS), ``prompt_length``, ``length`` and ``answered``, a row a chat.

    The result is kept in the cache of ``datasets``, under a key of the rows and of all that the tokenizer does, and
    read from there the next time. Of several processes on a machine one does the work, the others wait for it.

    Args:
        rows: ``question`` and ``answer``, or ``messages``.
        tokenizer: of the model.
        name: what to call the rows in an error.

    Raises:
        DataError: a row is no conversation.
    """
    from filelock import FileLock

    settings = json.dumps([tokenizer.chat_template, tokenizer.eos_token_id, tokenizer.settings], sort_keys=True)
    key = "\n".join([str(_ENCODING), rows._fingerprint, settings, tokenizer.pipeline.to_str()])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()[:32]

    def encode(batch: Mapping[str, Sequence[Any]], indices: Sequence[int]) -> dict[str, list[Any]]:
        chats = [_messages(dict(zip(batch, row, strict=True))) for row in zip(*batch.values(), strict=True)]
        return _encode(chats, indices, tokenizer, name)

    with FileLock(_lock_file(rows, fingerprint)):
        return rows.map(
            encode,
            batched=True,
            with_indices=True,
            remove_columns=rows.column_names,
            new_fingerprint=fingerprint,
            desc=f"Tokenising {name}",
        )


def _lock_file(rows: Dataset, fingerprint: str) -> str:
    from datasets.config import HF_DATASETS_CACHE

    files = rows.cache_files
    folder = Path(files[0]["filename"]).parent if files else Path(HF_DATASETS_CACHE)
    return str(folder / f"{fingerprint}.lock")


def _messages(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Read a row as chat turns, the last of them the assistant's; None where it is no conversation."""
    if isinstance(row.get("question"), str) and isinstance(row.get("answer"), str):
        return [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
    turns = row.get("messages")
    if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, dict) for turn in turns):
        return None
    if turns[-1].get("role") != "assistant" or not isinstance(turns[-1].get("content"), str | list):
        return None
    # The reader gives every turn the keys of all turns, filled with None.
    return [{key: value for key, value in turn.items() if value is not None} for turn in turns]


def _encode(
    chats: Iterable[list[dict[str, Any]] | None], indices: Sequence[int], tokenizer: Tokenizer, name: str
) -> dict[str, list[Any]]:
    prompts, responses, closings = [], [], []
    for index, chat in zip(indices, chats, strict=True):
        if chat is None:
            raise DataError(
                f"row {index + 1} of {name} is no conversation: it needs a question and an answer, or messages of "
                "which the last is the assistant's."
            )
        try:
            prompts.append(tokenizer.render_chat(chat[:-1], marked=True))
            responses.append(tokenizer.as_words(text_of(chat[-1]["content"])))
            closings.append(_closing(tokenizer.render_chat(chat, False, marked=True), prompts[-1], responses[-1]))
        except ValueError as error:
            raise DataError(f"row {index + 1} of {name}: {error}") from error
    prompt_ids = tokenizer.encode_batch(prompts)
    response_ids = tokenizer.encode_batch(responses)
    closing_ids = tokenizer.encode_batch(closings)
    eos = tokenizer.eos_token_id
    token_ids = [
        [*prompt, *response, *until_eos(closing, eos)]
        for prompt, response, closing in zip(prompt_ids, response_ids, closing_ids, strict=True)
    ]
    return {
        "token_ids": token_ids,
        "prompt_length": [len(ids) for ids in prompt_ids],
        "length": [len(ids) for ids in token_ids],
        "answered": [bool(response.strip()) for response in responses],
    }


def _closing(rendered: str, prompt: str, answer: str) -> str:
    """Return what the template puts behind an answer; nothing where it does not write the answer as it is."""
    for text in (answer, answer.strip()):
        if rendered.startswith(prompt + text):
            return rendered[len(prompt) + len(text) :]
    return ""
