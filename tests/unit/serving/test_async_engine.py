"""The engine's thread: whoever leaves is forgotten, and nobody waits for a thread that has ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dmax.engine import GenerationParams
from dmax.serving.async_engine import AsyncEngine
from dmax.serving.errors import ApiError


class Engine:
    """Requests that never end, until something is raised."""

    def __init__(self) -> None:
        self.requests: dict[str, None] = {}
        self.stepping: Callable[[], None] = lambda: None
        self.aborting: Callable[[], None] = lambda: None
        self.adding: Callable[[], None] = lambda: None

    def stats(self) -> Any:
        return type("Stats", (), {"waiting": 0})

    def has_requests(self) -> bool:
        return bool(self.requests)

    @property
    def reader(self) -> Any:
        return type("Reader", (), {"sequence": staticmethod(lambda request_id, *_: request_id)})

    def add(self, request_id: str) -> None:
        self.requests[request_id] = None
        self.adding()

    def abort(self, request_id: str) -> None:
        self.aborting()
        self.requests.pop(request_id, None)

    def step(self) -> list[Any]:
        self.stepping()
        return []


def fail(error: BaseException) -> None:
    raise error


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def client(engine: Engine) -> Iterator[AsyncEngine]:
    started = AsyncEngine(engine, max_queue=4)  # type: ignore[arg-type]
    started.start()
    yield started
    started.stop()


async def first_error(client: AsyncEngine) -> ApiError:
    with pytest.raises(ApiError) as error:
        async for _ in await client.submit([5], GenerationParams()):
            pass
    return error.value


def test_who_leaves_while_the_thread_adds_the_request_is_forgotten(engine: Engine, client: AsyncEngine) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert go_on.wait(30)

    async def leave() -> None:
        engine.adding = hold
        asking = asyncio.create_task(client.submit([5], GenerationParams()))
        assert await asyncio.to_thread(entered.wait, 30)
        asking.cancel()
        await asyncio.wait({asking})
        go_on.set()
        await client.stats()
        await client.stats()

    asyncio.run(leave())
    assert not engine.requests


def test_a_failed_step_ends_its_requests_and_no_others(engine: Engine, client: AsyncEngine) -> None:
    engine.stepping = lambda: fail(RuntimeError("secret detail"))
    error = asyncio.run(first_error(client))
    assert error.status == 500
    assert "secret" not in error.message
    assert client.alive
    assert not engine.requests


@pytest.mark.parametrize("cause", ["step", "abort"])
def test_nobody_waits_for_a_thread_that_has_ended(engine: Engine, client: AsyncEngine, cause: str) -> None:
    if cause == "step":
        engine.stepping = lambda: fail(SystemExit())
    else:
        engine.stepping = engine.aborting = lambda: fail(RuntimeError())

    async def ask() -> None:
        async with asyncio.timeout(30):
            assert (await first_error(client)).status == 503
            assert not client.alive
            assert not client.ready
            for asked in (client.submit([5], GenerationParams()), client.stats()):
                with pytest.raises(ApiError) as error:
                    await asked
                assert error.value.status == 503

    asyncio.run(ask())


def test_a_call_that_the_thread_has_not_come_to_is_refused_when_it_ends(engine: Engine, client: AsyncEngine) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def end() -> None:
        entered.set()
        assert go_on.wait(30)
        raise SystemExit

    engine.stepping = end

    async def ask() -> ApiError:
        asking = asyncio.create_task(first_error(client))
        assert await asyncio.to_thread(entered.wait, 30)
        late = asyncio.create_task(client.stats())
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(ApiError) as error:
            async with asyncio.timeout(30):
                await late
        await asking
        return error.value

    assert asyncio.run(ask()).status == 503
