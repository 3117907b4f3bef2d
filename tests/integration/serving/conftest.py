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

from dmax import LLM, LLaDA2, LLMEngine, ModelConfig, Tokenizer, save_model
from dmax.models.llada2 import initialize
from dmax.serving.app import ServerSettings, create_app

BLOCK = 8
TEMPLATE = "{% for m in messages %}{{ 'w3' if m.role == 'user' else 'w4' }} {{ m.content }} {% endfor %}w5"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small lose more to the threads' meetings than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def llm() -> LLM:
    config = ModelConfig(
        vocab_size=48, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, mask_token_id=1, eos_token_id=2, pad_token_id=0,
        max_position_embeddings=512, initializer_range=0.25,
    )  # fmt: skip
    model = initialize(LLaDA2(config), torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.lm_head.weight[2] *= 1.5  # so that a fair share of the answers ends early
    vocabulary = {"<pad>": 0, "<mask>": 1, "<eos>": 2, **{f"w{token_id}": token_id for token_id in range(3, 48)}}
    pipeline = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    pipeline.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    pipeline.add_special_tokens(["<pad>", "<mask>", "<eos>"])
    return LLM(model, Tokenizer(pipeline, {"eos_token": "<eos>", "mask_token": "<mask>"}, TEMPLATE))


Serve = Callable[..., Any]


@pytest.fixture
def serve(llm: LLM) -> Serve:
    """Settings of a server -> a context with a client of it."""

    @contextmanager
    def running(engine: dict[str, Any] | None = None, **settings: Any) -> Iterator[TestClient]:
        assert llm.tokenizer is not None
        made = LLMEngine(llm.model, llm.tokenizer, **{"page_length": BLOCK, "kv_memory": 2**22, **(engine or {})})
        defaults = {"model_name": "tiny", "block_length": BLOCK, "default_gen_length": 24, "max_gen_length": 400}
        with TestClient(create_app(made, llm.tokenizer, ServerSettings(**{**defaults, **settings}))) as client:
            yield client

    return running


@pytest.fixture(scope="session")
def checkpoint(llm: LLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    save_model(llm.model, folder, tokenizer=llm.tokenizer)
    return folder


Start = Callable[..., Any]


@pytest.fixture
def start(checkpoint: Path) -> Start:
    """Options of ``dmax serve`` -> a context with the process and a client of it."""

    @contextmanager
    def running(*options: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-c", "from dmax.cli import main; main()", "serve", "--model", str(checkpoint)]
        process = subprocess.Popen(
            [*command, "--port", str(port), "--block-length", "8", "--model-name", "tiny", *options],
            stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                deadline = time.monotonic() + 120
                while not _is_ready(client):
                    assert process.poll() is None, process.stderr.read() if process.stderr else ""
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
