"""uvicorn, but for its end: answers under way are finished first, WebSockets included, within a time that is set."""

from __future__ import annotations

import asyncio
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

_INTERVAL = 0.05


class Server(uvicorn.Server):
    """Runs an application of :func:`~dmax.serving.app.create_app` until a signal ends it.

    Args:
        app: owns its engine.
        drain_timeout: seconds after the signal in which answers under way may be finished; what is left is given up.
    """

    def __init__(self, app: FastAPI, drain_timeout: float) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", access_log=False))
        self._engine = app.state.engine
        self._traces = app.state.traces
        self._drain_timeout = drain_timeout

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop being ready as soon as the signal comes."""
        self._engine.drain()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End. uvicorn closes WebSockets at once, so it must not begin before no trace is under way."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._drain_timeout
        for server in self.servers:
            server.close()
        while self._traces.running and not self.force_exit and loop.time() < deadline:
            await asyncio.sleep(_INTERVAL)
        # uvicorn calls it whole seconds, and hands it to asyncio.wait_for, which takes any.
        self.config.timeout_graceful_shutdown = max(0.0, deadline - loop.time())  # type: ignore[assignment]
        await super().shutdown(sockets)
