"""The server on Ray Serve: one API in front of as many replicas of the model as there is work for.

    serve run dmax.serving.ray_app:app model=nano min_replicas=2 max_replicas=8

Two deployments. ``model``: a replica holds the weights and an engine, and takes as many requests as it decodes
together; further ones wait for whichever replica has room first, and Ray adds and removes replicas by how many there
are. ``front``: the application that ``dmax serve`` runs, without weights; it goes on with another replica when one is
lost. A front that is lost breaks the connections that it holds, and nothing else; Ray starts it again.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any, Literal

import torch
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.exceptions import RayActorError, TaskCancelledError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from dmax.decoding import DecoderError
from dmax.engine import LLM, EngineConfig, EngineStats, GenerationError, GenerationParams, LLMEngine
from dmax.engine.requirements import Workload
from dmax.models import ModelConfig, load_config, load_tokenizer
from dmax.serving.access import log_to_stderr
from dmax.serving.app import create_app_over
from dmax.serving.async_engine import AsyncEngine
from dmax.serving.errors import ApiError, queue_full, unavailable
from dmax.serving.replicas import ReplicaLost, Replies, Reply, ResumableAnswer, any_ready, ask_in_time
from dmax.serving.settings import ServerSettings, SettingsError, gen_lengths, parse_keys, parse_kv_memory

MODEL = "model"
"""Name of the deployment that holds the weights."""
FRONT = "front"
"""Name of the deployment that answers HTTP."""
_FRONT_CPUS = 0  # what Ray reserves; a front waits more than it works, and whole cores are for replicas


class RaySettings(BaseModel):
    """What to deploy. Names and defaults are those of ``dmax serve``, as far as it has them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "nano"
    """A Hugging Face id, an embedded model, or a folder that every node has."""
    model_name: str | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    block_length: int | None = Field(default=None, ge=1)
    """As in the model's training if not given."""
    max_batch_size: int = Field(default=32, ge=1)
    """Requests that one replica decodes together."""
    kv_memory: str = "1G"
    prefill_tokens: int = Field(default=512, ge=1)
    max_queue: int = Field(default=256, ge=1)
    """Requests that may wait for a replica; further ones get 429."""
    max_gen_length: int = Field(default=2048, ge=1)
    max_positions_in_flight: int = Field(default=128, ge=1)
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that a request may take, and that a replica being replaced has to finish what it has."""
    log_prompts: bool = False
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=4, ge=1)
    target_requests: float | None = Field(default=None, gt=0)
    """Requests per replica, waiting ones included, that Ray aims at; three quarters of a batch if not given."""
    fronts: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=1, ge=0)
    """Cores that Ray reserves for a replica."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs of a replica."""

    def server_settings(self, model: ModelConfig) -> ServerSettings:
        """Make settings towards clients. Keys come from ``DMAX_API_KEY``, split at spaces."""
        lengths = gen_lengths(self.max_gen_length, model.max_position_embeddings)
        return ServerSettings(
            model_name=self.model_name or self.model,
            api_keys=parse_keys(os.environ.get("DMAX_API_KEY", "").split()),
            max_queue=self.max_queue,
            max_gen_length=lengths["max_gen_length"],
            default_gen_length=lengths["default_gen_length"],
            block_length=self.block_length or model.usual_block_length,
            max_positions_in_flight=self.max_positions_in_flight,
            timeout=self.timeout,
            log_prompts=self.log_prompts,
        )


class ModelReplica:
    """One engine and its model."""

    def __init__(self, settings: RaySettings) -> None:
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = None if settings.dtype == "auto" else getattr(torch, settings.dtype)
        memory = parse_kv_memory(settings.kv_memory)
        workload = Workload(settings.max_batch_size, cache=memory)
        llm = LLM(settings.model, device=device, dtype=dtype, workload=workload)
        config = EngineConfig(
            block_length=settings.block_length,
            kv_memory=memory,
            max_batch_size=settings.max_batch_size,
            prefill_tokens=settings.prefill_tokens,
        )
        engine = LLMEngine(llm.model, llm.tokenizer, config)
        self._engine = AsyncEngine(engine, settings.max_queue)
        self._engine.start()

    async def answer(self, prompt: list[int], params: GenerationParams) -> AsyncIterator[Reply]:
        """Decode one request; see :data:`~dmax.serving.replicas.Reply`."""
        try:
            stream = await self._engine.submit(prompt, params)
        except (ApiError, GenerationError, DecoderError) as refusal:
            yield refusal
            return
        try:
            yield None
            async for update in stream:
                yield update
        except ApiError as failure:
            yield failure
        finally:
            stream.close()

    async def ready(self) -> bool:
        """Tell whether this replica takes requests."""
        return self._engine.ready

    async def stats(self) -> EngineStats:
        """Return the stats of an engine, or their sums over all replicas; what waits in a front counts as waiting."""
        return await self._engine.stats()

    def check_health(self) -> None:
        """Raise where the engine has ended; Ray calls it, and replaces a replica that raises."""
        if not self._engine.alive:
            raise RuntimeError("the engine has stopped")


class _RayReplies:
    """What a replica sends through Ray, with Ray's errors told in our words."""

    def __init__(self, replies: Any) -> None:
        self._replies = replies

    async def __aiter__(self) -> AsyncIterator[Reply]:
        try:
            async for reply in self._replies:
                yield reply
        except RayActorError as error:
            raise ReplicaLost from error
        except TaskCancelledError as error:
            raise unavailable("the request was given up.") from error
        except DeploymentUnavailableError as error:
            raise unavailable("no replica of the model could be started; see Ray's log.") from error

    def cancel(self) -> None:
        with suppress(Exception):  # cancelling a call that has failed raises its error once more
            self._replies.cancel()


class RayEngine:
    """The engines of all replicas as one; see :class:`~dmax.serving.client.EngineClient`."""

    alive = True
    """Of the front; Ray replaces replicas that are not."""

    def __init__(self, handle: DeploymentHandle[Any], settings: ServerSettings) -> None:
        self._handle = handle
        self._streaming = handle.options(stream=True)
        self._settings = settings
        self._waiting = 0

    def start(self) -> None:
        """Do nothing: Ray has started the replicas."""

    def stop(self) -> None:
        """Do nothing: Ray stops the replicas."""

    async def submit(self, prompt: list[int], params: GenerationParams) -> ResumableAnswer:
        """Ask a replica, as soon as one has room."""
        if self._waiting >= self._settings.max_queue:
            raise queue_full(self._waiting)
        self._waiting += 1
        try:
            return await ask_in_time(self._ask, prompt, params, self._settings.timeout)
        finally:
            self._waiting -= 1

    def _ask(self, prompt: list[int], params: GenerationParams) -> Replies:
        return _RayReplies(self._streaming.answer.remote(prompt, params))

    async def is_ready(self) -> bool:
        """Tell whether any replica takes requests: all of them are asked, for those that are full are ready, too."""
        return await any_ready(self._handle.broadcast("ready").results_async(return_exceptions=True))

    async def stats(self) -> EngineStats:
        """Return the stats of an engine, or their sums over all replicas; what waits in a front counts as waiting."""
        parts = await self._handle.broadcast("stats").results_async(return_exceptions=True)
        known = [part for part in parts if isinstance(part, EngineStats)]
        counts = [f.name for f in fields(EngineStats) if f.name != "backend"]
        sums = {name: sum(getattr(part, name) for part in known) for name in counts}
        sums["waiting"] += self._waiting
        return EngineStats(backend=", ".join(sorted({part.backend for part in known})), **sums)


def app(arguments: Mapping[str, Any]) -> serve.Application:
    """Make what ``serve run`` and ``serve deploy`` take.

    Args:
        arguments: fields of :class:`RaySettings`.

    Raises:
        SettingsError: there is no such field, or a value is out of range.
        CheckpointError: there is no such model.
    """
    settings = _read(arguments)
    config = load_config(settings.model)
    server = settings.server_settings(config)

    def front() -> FastAPI:
        log_to_stderr()
        tokenizer = load_tokenizer(settings.model)
        if tokenizer is None:
            raise SettingsError(f"{settings.model} has no tokenizer; give a model with tokenizer.json.")
        engine = RayEngine(serve.get_deployment_handle(MODEL), server)
        return create_app_over(engine, config, tokenizer, server)

    replicas = serve.deployment(
        name=MODEL,
        max_ongoing_requests=settings.max_batch_size,
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_requests or 0.75 * settings.max_batch_size,
        },
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        graceful_shutdown_timeout_s=settings.timeout,
    )(ModelReplica)
    fronts = serve.deployment(
        name=FRONT,
        num_replicas=settings.fronts,
        # No request may wait unseen before the front, which is who refuses them.
        max_ongoing_requests=2 * (settings.max_queue + settings.max_replicas * settings.max_batch_size),
        ray_actor_options={"num_cpus": _FRONT_CPUS},
        graceful_shutdown_timeout_s=settings.timeout,
    )(serve.ingress(front)())
    return fronts.bind(replicas.bind(settings))


def _read(arguments: Mapping[str, Any]) -> RaySettings:
    try:
        settings = RaySettings.model_validate(dict(arguments))
    except ValidationError as error:
        problem = error.errors()[0]
        names = ", ".join(RaySettings.model_fields)
        raise SettingsError(f"{problem['loc'][0]}: {problem['msg'].lower()}; there are {names}.") from error
    if settings.min_replicas > settings.max_replicas:
        raise SettingsError(
            f"min_replicas is {settings.min_replicas} and max_replicas {settings.max_replicas}; raise max_replicas."
        )
    parse_kv_memory(settings.kv_memory)
    return settings
