"""Answers of a server that speaks the OpenAI protocol, whatever it does: stumble, stall, refuse or talk nonsense."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from dmax.evaluation.answerers import Answer, AnswererError, Asked, as_turns, one_line_of
from dmax.evaluation.replies import MalformedReply, is_configuration_error, read_completion, seconds_to_wait

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_ATTEMPTS = 5
_LONGEST_PAUSE = 300.0
"""Seconds that a server may ask to be left alone before the row counts as failed."""
_CONNECTING = 10.0
"""Seconds that a connection may take to come about."""
_LISTING = 30.0
"""Seconds that the list of models may take."""
_LONGEST_REPLY = 2**24
"""Bytes of a reply; no answer is as long."""


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
        transport: how requests are sent; over the network if not given.

    Raises:
        AnswererError: the address or the key cannot be sent.
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
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        import httpx

        self.model = model
        self.base_url = base_url.rstrip("/")
        self.batch_size = concurrency
        self.settings = {"temperature": temperature, **(extra or {})}
        self._timeout = timeout
        if not _is_address(base_url):
            raise AnswererError(
                f"--base-url {base_url!r} is no address of a server; give one such as http://localhost:8000/v1."
            )
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise AnswererError("--api-key holds characters that no key has; give it as the server's owner wrote it.")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._transport = transport
        self._certificates = httpx.create_ssl_context()  # once, not a batch: it takes a while
        self._failures = (httpx.HTTPError,)
        self._too_slow = (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout)
        self._waits = _Waits()

    @property
    def waited(self) -> float:
        """Seconds in which no request was in flight because all of them waited to be sent again."""
        return self._waits.seconds

    @property
    def backend(self) -> None:
        """Unknown here."""

    def check(self) -> None:
        """Make sure that the server is there, lets us in, and answers with the model and the decoding options.

        One request of a single token tells the latter.

        Raises:
            AnswererError: it is not, or does not.
        """
        self._in_a_loop(self._check)

    def answer(self, prompts: Sequence[Asked], seeds: Sequence[int], gen_length: int) -> list[Answer]:
        """Answer as :class:`Answerer` says; what fails is a failed answer.

        Raises:
            AnswererError: the server refuses what all requests have in common.
        """

        async def ask_all(client: httpx.AsyncClient) -> list[Answer]:
            free = asyncio.Semaphore(self.batch_size)

            async def ask(prompt: Asked, seed: int) -> Answer:
                async with free:
                    reply = await self._request(client, self._body(prompt, seed, gen_length))
                return _read(reply)

            asked = [asyncio.ensure_future(ask(*one)) for one in zip(prompts, seeds, strict=True)]
            try:
                return list(await asyncio.gather(*asked))
            finally:
                for one in asked:
                    one.cancel()
                await asyncio.gather(*asked, return_exceptions=True)

        return self._in_a_loop(ask_all)

    def describe(self) -> dict[str, Any]:
        return {
            "model": {"name": self.model, "hash": None, "dtype": None, "device": None, "base_url": self.base_url},
            "decoder": self.settings.get("decoder", "as served"),
            "params": {key: value for key, value in self.settings.items() if key != "decoder"},
        }

    def _in_a_loop(self, work: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
        """Run in a thread of its own: this one may have an event loop already, as a notebook's does."""
        import httpx
        from anyio.from_thread import start_blocking_portal

        async def with_client() -> T:
            limits = httpx.Limits(max_connections=self.batch_size)
            patience = httpx.Timeout(self._timeout, connect=min(_CONNECTING, self._timeout))
            client = httpx.AsyncClient(
                headers=self._headers,
                timeout=patience,
                limits=limits,
                transport=self._transport,
                verify=self._certificates,
            )
            async with client:
                return await work(client)

        with start_blocking_portal() as portal:
            return portal.call(with_client)

    async def _check(self, client: httpx.AsyncClient) -> None:
        try:
            async with asyncio.timeout(min(_LISTING, self._timeout)):
                status, text, headers = await _exchange(client, "GET", f"{self.base_url}/models")
        except (*self._failures, TimeoutError) as error:
            raise AnswererError(
                f"{self.base_url} does not answer ({one_line_of(error)}); check --base-url and the server."
            ) from error
        except MalformedReply:
            status, text, headers = 200, "", {}
        self._check_access(status, headers)
        advice = _model_names(text) if status < 400 else "; --base-url must end in /v1"
        reply = await self._request(client, self._body("Hello", 0, 1), advice)
        if reply.text is None:
            raise AnswererError(
                f"{self.base_url} answers no question ({reply.problem}); check the server, --model and the decoding "
                f"options{advice}."
            )
        try:
            read_completion(reply.text)
        except MalformedReply as error:
            raise AnswererError(f"{self.base_url} is no chat API: {error}; check --base-url.") from error

    def _check_access(self, status: int, headers: dict[str, str]) -> None:
        if status in (401, 403):
            raise AnswererError(f"{self.base_url} refuses the API key (HTTP {status}); check --api-key.")
        if 300 <= status < 400 and "location" in headers:  # not followed: the key is for the address that was given
            raise AnswererError(f"{self.base_url} redirects to {headers['location']}; give --base-url as it is there.")

    def _check_settings(self, status: int, text: str, headers: dict[str, str], advice: str) -> None:
        """Raise where a reply is about something that every request has."""
        self._check_access(status, headers)
        fields = {"model", *self.settings, *self.settings.get("decoder_options", ())}
        if is_configuration_error(status, text, fields):
            raise AnswererError(
                f"{self.base_url} refuses every request as it is set ({_told(status, text)}); check --model and the "
                f"decoding options{advice}."
            )

    def _body(self, prompt: Asked, seed: int, gen_length: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": as_turns(prompt),
            "max_tokens": gen_length,
            **self.settings,
            **({"seed": seed} if self.settings["temperature"] else {}),
        }

    async def _request(self, client: httpx.AsyncClient, body: dict[str, Any], advice: str = "") -> _Reply:
        """Send a request, again where that may help."""
        seconds, problem = 0.0, ""
        pause: float | None = None
        for attempt in range(_ATTEMPTS):
            if attempt:
                with self._waits.waiting():
                    await _pause(min(2.0**attempt, 30.0) if pause is None else pause)
            started, pause = time.perf_counter(), None
            try:
                with self._waits.asking():
                    async with asyncio.timeout(self._timeout):  # of all of it, however slowly it trickles in
                        status, text, headers = await _exchange(
                            client, "POST", f"{self.base_url}/chat/completions", json=body
                        )
            except self._too_slow:
                problem = f"no answer within --timeout, {self._timeout:g} s"
                return _Reply(None, problem, time.perf_counter() - started)
            except self._failures as error:
                seconds, problem = time.perf_counter() - started, one_line_of(error)
                continue
            except MalformedReply as error:
                return _Reply(None, str(error), time.perf_counter() - started)
            seconds = time.perf_counter() - started
            if 200 <= status < 300:
                return _Reply(text, "", seconds)
            self._check_settings(status, text, headers, advice)
            problem = _told(status, text)
            pause = seconds_to_wait(headers.get("retry-after"))
            if status not in _RETRIED:
                break
            if pause is not None and pause > _LONGEST_PAUSE:
                problem += f" (asks to wait {pause:.0f} s)"
                break
        return _Reply(None, problem, seconds)


@dataclass(frozen=True)
class _Reply:
    """What became of a request."""

    text: str | None
    """The body; None where there is none to read."""
    problem: str
    """Why there is none."""
    seconds: float
    """Of the last attempt."""


class _Waits:
    """How long requests waited while none was in flight."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._counts = {"asking": 0, "waiting": 0}
        self._since = 0.0

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Count a request as in flight."""
        with self._counted("asking"):
            yield

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count a request as one that waits to be sent again."""
        with self._counted("waiting"):
            yield

    @contextmanager
    def _counted(self, what: str) -> Iterator[None]:
        self._change(what, 1)
        try:
            yield
        finally:
            self._change(what, -1)

    def _change(self, what: str, by: int) -> None:
        now = time.perf_counter()
        if self._counts["waiting"] and not self._counts["asking"]:
            self.seconds += now - self._since
        self._since = now
        self._counts[what] += by


async def _pause(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def _exchange(
    client: httpx.AsyncClient, method: str, url: str, json: dict[str, Any] | None = None
) -> tuple[int, str, dict[str, str]]:
    """Return status, body and headers of a reply; a body is UTF-8, as JSON is, whatever its header says.

    Raises:
        MalformedReply: the body does not end.
    """
    async with client.stream(method, url, json=json) as reply:
        body = bytearray()
        async for chunk in reply.aiter_bytes():
            body += chunk
            if len(body) > _LONGEST_REPLY:
                raise MalformedReply(f"the reply is longer than {_LONGEST_REPLY // 2**20} MiB")
        return reply.status_code, body.decode("utf-8-sig", errors="replace"), dict(reply.headers)


def _is_address(url: str) -> bool:
    import httpx

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host) and (parsed.port or 1) < 2**16


def _read(reply: _Reply) -> Answer:
    if reply.text is None:
        return Answer.failed(reply.problem, reply.seconds)
    try:
        return Answer(**asdict(read_completion(reply.text)), seconds=reply.seconds)
    except MalformedReply as error:
        return Answer.failed(str(error), reply.seconds)


def _told(status: int, text: str) -> str:
    """Say what a server answered in place of a completion."""
    return f"HTTP {status}: {' '.join(text[:200].split())}".removesuffix(": ")


def _model_names(reply: str) -> str:
    """List what a server says it serves, for an error message."""
    try:
        names = [str(model["id"]) for model in json.loads(reply)["data"]]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ""
    return f"; it serves {', '.join(names[:5])}" if names else ""
