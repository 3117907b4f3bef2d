"""A server over a tiny model, asked in this process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import tokenizers
import torch

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from dmax import LLM, BlockDiffusionLM, EngineConfig, LLMEngine, ModelConfig, Tokenizer, save_model
from dmax.models.transformer import initialize
from dmax.serving.app import create_app
from dmax.serving.settings import ServerSettings

BLOCK = 8


@pytest.fixture(scope="session")
def llm(
    tiny_config: Callable[..., ModelConfig], word_tokenizer: Callable[[str | None], Tokenizer], chat_template: str
) -> LLM:
    config = tiny_config(moe=False, max_position_embeddings=512, initializer_range=0.25)
    model = initialize(BlockDiffusionLM(config), torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.lm_head.weight[2] *= 1.5  # so that a fair share of the answers ends early
    return LLM(model, word_tokenizer(chat_template))


TOOL_TEMPLATE = (
    "{% for tool in tools or [] %}<{{ tool.function.name }}>{% endfor %}{% for m in messages %}{{ m.role }}: "
    "{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function.arguments.city }}{% endfor %}\n\n{% endfor %}"
)


@pytest.fixture(scope="session")
def byte_llm(tiny_config: Callable[..., ModelConfig]) -> LLM:
    """A model whose tokens are bytes, so that it can spell JSON, and whose chat template tells of tools."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: at for at, token in enumerate(["<pad>", "<mask>", "<eos>", *letters])}
    pipeline = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    pipeline.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = tokenizers.decoders.ByteLevel()
    pipeline.add_special_tokens(["<pad>", "<mask>", "<eos>"])
    config = tiny_config(moe=False, vocab_size=len(vocabulary), max_position_embeddings=2048)
    model = initialize(BlockDiffusionLM(config), torch.Generator().manual_seed(1))
    return LLM(model, Tokenizer(pipeline, {"eos_token": "<eos>", "mask_token": "<mask>"}, TOOL_TEMPLATE))


Serve = Callable[..., Any]


@pytest.fixture(scope="session")
def serve_module(llm: LLM) -> Serve:
    """Settings of a server -> a context with a client of it; for servers that several tests ask."""

    @contextmanager
    def running(engine: dict[str, Any] | None = None, of: LLM = llm, **settings: Any) -> Iterator[TestClient]:
        assert of.tokenizer is not None
        made = LLMEngine(
            of.model, of.tokenizer, EngineConfig(**{"page_length": BLOCK, "kv_memory": 2**22, **(engine or {})})
        )
        defaults = {"model_name": "tiny", "block_length": BLOCK, "default_gen_length": 24, "max_gen_length": 400}
        with TestClient(create_app(made, of.tokenizer, ServerSettings(**{**defaults, **settings}))) as client:
            yield client

    return running


@pytest.fixture
def serve(serve_module: Serve) -> Serve:
    """Settings of a server -> a context with a client of it."""
    return serve_module


@pytest.fixture(scope="session")
def checkpoint(llm: LLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    save_model(llm.model, folder, tokenizer=llm.tokenizer)
    return folder


Start = Callable[..., Any]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a server that ``start`` started writes its log."""
    return tmp_path / "stderr.txt"


@pytest.fixture
def start(checkpoint: Path, log: Path) -> Start:
    """Options of ``dmax serve`` -> a context with the process and a client of it."""

    @contextmanager
    def running(*options: str) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-c", "from dmax.cli import main; main()", "serve", "--model", str(checkpoint)]
        arguments = [*command, "--port", str(port), "--block-length", "8", "--model-name", "tiny", *options]
        with log.open("w", encoding="utf-8") as stderr:  # not a pipe: nobody reads it while the server runs
            process = subprocess.Popen(arguments, stderr=stderr, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                deadline = time.monotonic() + 120
                while not _is_ready(client):
                    assert process.poll() is None, log.read_text(encoding="utf-8")
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                yield process, client
        finally:
            process.kill()
            process.wait()

    return running


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").status_code == 200
    except httpx.TransportError:
        return False
