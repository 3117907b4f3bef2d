"""Where answers come from, and the answers of a model in this process."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dmax.engine import LLM, GenerationOutput, GenerationParams
from dmax.engine.backends import backend_name
from dmax.engine.requests import decoder_settings
from dmax.models.source import list_tensors, resolve

_HASHED_WHOLE = 4 * 2**30
"""Weights up to this many bytes are hashed whole; of larger ones the headers and sizes are."""

Asked = str | list[dict[str, str]]
"""The text of a user's turn, or the turns of a conversation."""


class AnswererError(ValueError):
    """A server that cannot be measured as asked."""


@dataclass(frozen=True)
class Answer:
    """One answer and its cost; counts are None where a server does not tell them."""

    text: str | None
    num_tokens: int | None
    """EOS not counted."""
    passes: int | None
    nfe: int | None
    blocks: int | None
    revisions: int | None
    seconds: float
    """Wall time from asking to having it, in a batch with others."""
    finish_reason: str | None
    error: str | None = None
    """Why there is no answer; None where there is one."""

    @classmethod
    def failed(cls, error: str, seconds: float) -> Answer:
        """Make the answer of a generation that raised: recorded, and counted as wrong."""
        return cls(None, None, None, None, None, None, seconds, None, error)


class Answerer(Protocol):
    """Answers prompts, a batch at a time."""

    batch_size: int
    """Prompts in flight together."""

    @property
    def backend(self) -> str | None:
        """What computes the passes of the model; None where only the server knows."""
        ...

    def answer(self, prompts: Sequence[Asked], seeds: Sequence[int], gen_length: int) -> list[Answer]:
        """Answer each prompt, in order, with at most ``gen_length`` tokens; each draws with its own seed, if at all."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return ``model``, ``decoder`` and ``params`` (but for ``gen_length``), as a results file states them."""
        ...


@runtime_checkable
class WaitingAnswerer(Answerer, Protocol):
    """One that may have to wait without anything being computed."""

    @property
    def waited(self) -> float:
        """Seconds so far, all in all; they are no part of the throughput."""
        ...


class LocalAnswerer:
    """A model in this process.

    Args:
        llm: the model.
        params: how it decodes.
        name: the model as the user named it.
        weights: fingerprint of its weights, as :func:`weights_hash` gives it.
    """

    def __init__(self, llm: LLM, params: GenerationParams, name: str, weights: str) -> None:
        self.llm = llm
        self.params = params
        self.name = name
        self.weights = weights
        self.batch_size = llm.max_batch_size

    def answer(self, prompts: Sequence[Asked], seeds: Sequence[int], gen_length: int) -> list[Answer]:
        started = time.perf_counter()
        params = [replace(self.params, seed=seed, gen_length=gen_length) for seed in seeds]
        try:
            outputs = self.llm.generate([as_turns(prompt) for prompt in prompts], params)
            return [_answer(output) for output in outputs]
        except Exception as error:  # whatever it is, it belongs to the row that caused it
            if len(prompts) == 1:
                return [Answer.failed(one_line_of(error), time.perf_counter() - started)]
            half = len(prompts) // 2
            return [
                *self.answer(prompts[:half], seeds[:half], gen_length),
                *self.answer(prompts[half:], seeds[half:], gen_length),
            ]

    @property
    def backend(self) -> str:
        """Name of the engine's backend for the model."""
        return backend_name(self.llm.model.device, self.llm.model.dtype)

    def describe(self) -> dict[str, Any]:
        params = self.params.with_defaults(self.llm.model.config)
        decoder = params.build_decoder()
        return {
            "model": {
                "name": self.name,
                "hash": self.weights,
                "dtype": str(self.llm.model.dtype).removeprefix("torch."),
                "device": self.llm.model.device.type,  # one run may have a process on each of several GPUs
            },
            "decoder": params.decoder,
            "params": decoder_settings(decoder, params),
        }


def as_turns(prompt: Asked) -> list[dict[str, str]]:
    """Read a prompt as a conversation."""
    return LLM.chat_prompt(prompt) if isinstance(prompt, str) else prompt


def weights_hash(name: str | Path) -> str:
    """Hash a checkpoint's weight files.

    ``sha256:`` covers every byte; of more than 4 GiB, ``sha256-headers:`` covers the safetensors headers and sizes.
    """
    files = sorted({tensor.file for tensor in list_tensors(resolve(name)).values()})
    sizes = [file.stat().st_size for file in files]
    whole = sum(sizes) <= _HASHED_WHOLE
    digest = hashlib.sha256()
    for file, size in zip(files, sizes, strict=True):
        with file.open("rb") as stream:
            if whole:
                while chunk := stream.read(2**22):
                    digest.update(chunk)
            else:
                header = int.from_bytes(stream.read(8), "little")
                digest.update(stream.read(header) + size.to_bytes(8, "little"))
    return f"sha256{'' if whole else '-headers'}:{digest.hexdigest()}"


def _answer(output: GenerationOutput) -> Answer:
    return Answer(
        text=output.text,
        num_tokens=output.num_tokens,
        passes=output.passes,
        nfe=output.nfe,
        blocks=output.blocks,
        revisions=output.revisions,
        seconds=output.seconds,
        finish_reason=output.finish_reason,
    )


def one_line_of(error: BaseException) -> str:
    """Return what an error says, with its name, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
