"""Where answers come from: a model in this process, or a server that speaks the OpenAI protocol."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dmax.engine import LLM, GenerationOutput, GenerationParams
from dmax.engine.backends import backend_name
from dmax.engine.requests import decoder_settings
from dmax.evaluation.replies import MalformedReply, is_configuration_error, read_completion, seconds_to_wait
from dmax.models.source import list_tensors, resolve

_HASHED_WHOLE = 4 * 2**30
"""Weights up to this many bytes are hashed whole; of larger ones the headers and sizes are."""
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_ATTEMPTS = 5
_LONGEST_PAUSE = 300.0
"""Seconds that a server may ask to be left alone before the row counts as failed."""

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
                return [Answer.failed(_one_line(error), time.perf_counter() - started)]
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


class RemoteAnswerer:
    """A server with ``/v1/chat/completions``: ours, or any other that speaks the protocol.

    Args:
        base_url: as the ``openai`` client takes it, ending in ``/v1``.
        model: the name the server knows.
        api_key: sent as a bearer token, if given.
        concurrency: requests in flight together.
        temperature: 0 for greedy decoding.
        extra: further fields of the request body, such as ``decoder`` and ``threshold``.
        timeout: seconds that a server may take for one request before the row counts as failed.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        concurrency: int = 8,
        temperature: float = 0.0,
        extra: dict[str, Any] | None = None,
        timeout: float = 600.0,
    ) -> None:
        import httpx

        self.model = model
        self.base_url = base_url.rstrip("/")
        self.batch_size = concurrency
        self.settings = {"temperature": temperature, **(extra or {})}
        self._timeout = timeout
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._client = httpx.Client(headers=headers, timeout=timeout)
        self._failures = (httpx.HTTPError, httpx.InvalidURL)
        self._timeouts = (httpx.ReadTimeout, httpx.WriteTimeout)
        self._waits = _Waits()

    @property
    def waited(self) -> float:
        """Seconds in which no request was in flight because all of them waited to be sent again."""
        return self._waits.seconds

    @property
    def backend(self) -> None:
        """Unknown here."""

    def check(self) -> None:
        """Make sure that the server is there, lets us in, and knows the model and the decoding options.

        One request of a single token tells the latter.

        Raises:
            AnswererError: it is not, or does not.
        """
        try:
            reply = self._client.get(f"{self.base_url}/models", timeout=min(10, self._timeout))
        except self._failures as error:
            raise AnswererError(f"{self.base_url} does not answer ({_one_line(error)}); check --base-url.") from error
        self._check_access(reply)
        if reply.status_code >= 400:
            raise AnswererError(f"{self.base_url}/models answers HTTP {reply.status_code}; --base-url must end in /v1.")
        body = self._body("Hello", 0, 1)
        try:
            probe = self._client.post(f"{self.base_url}/chat/completions", json=body)
        except self._failures as error:
            raise AnswererError(
                f"{self.base_url} answers no question ({_one_line(error)}); check the server, or give it a longer "
                "--timeout."
            ) from error
        self._check_settings(probe, known=_model_names(reply.text))
        if probe.status_code == 200:
            try:
                read_completion(_utf8(probe))
            except MalformedReply as error:
                raise AnswererError(f"{self.base_url} is no chat API: {error}; check --base-url.") from error

    def _check_access(self, reply: Any) -> None:
        if reply.status_code in (401, 403):
            raise AnswererError(f"{self.base_url} refuses the API key (HTTP {reply.status_code}); check --api-key.")
        if 300 <= reply.status_code < 400:  # not followed: the key is for the address that was given
            place = reply.headers.get("Location", "nowhere")
            raise AnswererError(f"{self.base_url} redirects to {place}; give --base-url as it is there.")

    def _check_settings(self, reply: Any, known: str = "") -> None:
        """Raise where a reply is about something that every request has."""
        self._check_access(reply)
        fields = {"model", *self.settings, *self.settings.get("decoder_options", ())}
        if is_configuration_error(reply.status_code, reply.text, fields):
            raise AnswererError(
                f"{self.base_url} refuses every request as it is set (HTTP {reply.status_code}: "
                f"{' '.join(reply.text[:200].split())}); check --model and the decoding options{known}."
            )

    def answer(self, prompts: Sequence[Asked], seeds: Sequence[int], gen_length: int) -> list[Answer]:
        """Answer as :class:`Answerer` says; what fails is a failed answer.

        Raises:
            AnswererError: the server refuses what all requests have in common.
        """
        with ThreadPoolExecutor(self.batch_size) as pool:
            asked = [pool.submit(self._ask, gen_length, *one) for one in zip(prompts, seeds, strict=True)]
            try:
                return [future.result() for future in asked]
            except AnswererError:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _body(self, prompt: Asked, seed: int, gen_length: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": as_turns(prompt),
            "max_tokens": gen_length,
            **self.settings,
            **({"seed": seed} if self.settings["temperature"] else {}),
        }

    def _ask(self, gen_length: int, prompt: Asked, seed: int) -> Answer:
        body = self._body(prompt, seed, gen_length)
        seconds, problem = 0.0, ""
        pause: float | None = None
        for attempt in range(_ATTEMPTS):
            if attempt:
                with self._waits.waiting():
                    time.sleep(min(2.0**attempt, 30.0) if pause is None else pause)
            started = time.perf_counter()
            try:
                with self._waits.asking():
                    reply = self._client.post(f"{self.base_url}/chat/completions", json=body)
            except self._failures as error:
                seconds, problem, pause = time.perf_counter() - started, _one_line(error), None
                if isinstance(error, self._timeouts):
                    problem += f" (no answer within --timeout, {self._timeout:g} s)"
                    break
                continue
            seconds = time.perf_counter() - started
            if reply.status_code == 200:
                return _remote_answer(_utf8(reply), seconds)
            self._check_settings(reply)
            problem = f"HTTP {reply.status_code}: {' '.join(reply.text[:200].split())}"
            pause = seconds_to_wait(reply.headers.get("Retry-After"))
            if reply.status_code not in _RETRIED:
                break
            if pause is not None and pause > _LONGEST_PAUSE:
                problem += f" (asks to wait {pause:.0f} s)"
                break
        return Answer.failed(problem, seconds)

    def describe(self) -> dict[str, Any]:
        return {
            "model": {"name": self.model, "hash": None, "dtype": None, "device": None, "base_url": self.base_url},
            "decoder": self.settings.get("decoder", "as served"),
            "params": {key: value for key, value in self.settings.items() if key != "decoder"},
        }


class _Waits:
    """How long requests waited while none was in flight."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()
        self._counts = {"asking": 0, "waiting": 0}
        self._since = 0.0

    def asking(self) -> AbstractContextManager[None]:
        """Return a context in which a request is in flight."""
        return self._counted("asking")

    def waiting(self) -> AbstractContextManager[None]:
        """Return a context in which one waits to be sent again."""
        return self._counted("waiting")

    @contextmanager
    def _counted(self, what: str) -> Iterator[None]:
        self._change(what, 1)
        try:
            yield
        finally:
            self._change(what, -1)

    def _change(self, what: str, by: int) -> None:
        with self._lock:
            now = time.perf_counter()
            if self._counts["waiting"] and not self._counts["asking"]:
                self.seconds += now - self._since
            self._since = now
            self._counts[what] += by


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


def _utf8(reply: Any) -> str:
    """Decode a body as JSON is written, whatever the header says of it."""
    return str(reply.content.decode("utf-8-sig", errors="replace"))


def _remote_answer(reply: str, seconds: float) -> Answer:
    try:
        return Answer(**asdict(read_completion(reply)), seconds=seconds)
    except MalformedReply as error:
        return Answer.failed(str(error), seconds)


def _model_names(reply: str) -> str:
    """List what a server says it serves, for an error message."""
    try:
        names = [str(model["id"]) for model in json.loads(reply)["data"]]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ""
    return f"; it serves {', '.join(names[:5])}" if names else ""


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
