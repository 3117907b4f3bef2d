"""The engine on a GPU: the tokens of the plain path, whatever runs beside them, captured as graphs or not."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dmax import LLM, BlockDiffusionLM, EngineConfig, GenerationParams, LLMEngine, ModelConfig, load_model
from dmax.engine.backends import Backend
from dmax.engine.backends.torch import TorchBackend
from dmax.engine.requests import RequestReader
from dmax.models.transformer import initialize

pytest.importorskip("triton")
from dmax.engine.backends.cuda import CudaBackend

pytestmark = pytest.mark.gpu

TRAINED = Path(__file__).parents[1] / "golden" / "data" / "trained-dense"
PAGES, PAGE_LENGTH = 512, 32
DECODERS: list[dict[str, Any]] = [
    {"threshold": 0.0},
    {"threshold": 0.65},
    {"threshold": 0.5, "buffer_size": 2},
    {"threshold": 0.5, "temperature": 0.7},
    {"decoder": "threshold", "threshold": 0.9},
    {"decoder": "hierarchical", "low_threshold": 0.4},
]


@pytest.fixture(scope="module")
def vectors() -> list[dict[str, Any]]:
    return json.loads((TRAINED / "decode.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def prompts(vectors: list[dict[str, Any]]) -> list[list[int]]:
    distinct = {tuple(vector["prompt_ids"]) for vector in vectors}
    whole = sorted(distinct)
    return [list(ids[: len(ids) - cut]) for cut in (0, 3, 11) for ids in whole]  # of many lengths


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> BlockDiffusionLM:
    return load_model(TRAINED, torch.device("cuda"), getattr(torch, request.param)).eval()


SPARSE = ModelConfig(
    vocab_size=2048, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64, partial_rotary_factor=0.5, mask_token_id=1, eos_token_id=2, pad_token_id=0,
    num_experts=16, num_experts_per_tok=4, num_shared_experts=1, moe_intermediate_size=128, first_k_dense_replace=1,
    n_group=4, topk_group=2, initializer_range=0.05,
)  # fmt: skip


def random_model(config: ModelConfig) -> BlockDiffusionLM:
    """Random bfloat16 weights, made where they stay."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = BlockDiffusionLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    return initialize(model, torch.Generator("cuda").manual_seed(0)).eval()


def paged(model: BlockDiffusionLM, *, graphs: bool = True) -> CudaBackend:
    return CudaBackend(model, graphs=graphs)


def answers(
    backend: Backend, model: BlockDiffusionLM, batch: Sequence[list[int]], params: GenerationParams
) -> list[tuple[list[int], int]]:
    """Tokens and passes of every prompt, all of them decoded together."""
    reader = RequestReader(model.config, None)
    rows = [reader.read(str(i), ids, replace(params, seed=i), time.perf_counter()) for i, ids in enumerate(batch)]
    engine = LLMEngine(
        model,
        config=EngineConfig(pages=PAGES, page_length=PAGE_LENGTH, max_batch_size=64, prefill_tokens=128),
        backend=backend,
    )
    for row in rows:
        engine.add(row)
    while engine.has_requests():
        engine.step()
    assert all(row.ending is not None for row in rows)
    return [(row.ending.token_ids, row.passes) for row in rows if row.ending]


def test_published_answers_are_given_in_float32(vectors: list[dict[str, Any]]) -> None:
    llm = LLM(TRAINED, device="cuda", dtype=torch.float32)
    names = ("decoder", "threshold", "acceptance_threshold", "low_threshold", "block_length", "gen_length")
    params = [GenerationParams(**{name: vector[name] for name in names if name in vector}) for vector in vectors]
    outputs = llm.generate([vector["prompt_ids"] for vector in vectors], params)
    assert [output.token_ids for output in outputs] == [vector["token_ids"] for vector in vectors]
    assert [output.passes for output in outputs] == [vector["passes"] for vector in vectors]


@pytest.mark.parametrize("options", DECODERS, ids=str)
def test_graphs_change_nothing(model: BlockDiffusionLM, prompts: list[list[int]], options: dict[str, Any]) -> None:
    params = GenerationParams(**options, gen_length=96)
    captured, launched = paged(model), paged(model, graphs=False)
    for batch in (prompts[:1], prompts[:5], prompts):
        assert answers(captured, model, batch, params) == answers(launched, model, batch, params)


@pytest.mark.parametrize("options", DECODERS, ids=str)
def test_tokens_are_those_of_the_plain_path(
    model: BlockDiffusionLM, prompts: list[list[int]], options: dict[str, Any]
) -> None:
    if model.dtype != torch.float32:
        pytest.skip("rounding may decide in bfloat16")
    params = GenerationParams(**options, gen_length=96)
    plain = TorchBackend(model)
    assert answers(paged(model), model, prompts, params) == answers(plain, model, prompts, params)


def test_a_row_gets_what_it_gets_alone(model: BlockDiffusionLM, prompts: list[list[int]]) -> None:
    if model.dtype != torch.float32:
        pytest.skip("a bfloat16 matmul of more rows rounds differently")
    params = GenerationParams(threshold=0.5, gen_length=96)
    backend = paged(model)
    alone = [answers(backend, model, [ids], params)[0] for ids in prompts]
    assert answers(backend, model, prompts, params) == alone


def test_experts_are_captured_too(prompts: list[list[int]]) -> None:
    model = random_model(SPARSE)
    params = GenerationParams(threshold=0.5, gen_length=64)
    captured, launched = paged(model), paged(model, graphs=False)
    assert answers(captured, model, prompts, params) == answers(launched, model, prompts, params)


def test_one_cache_serves_call_after_call_until_weights_move(prompts: list[list[int]]) -> None:
    llm = LLM(TRAINED, device="cuda", dtype=torch.float32)
    params = GenerationParams(threshold=0.5, gen_length=64)
    first = [output.token_ids for output in llm.generate(prompts, params)]
    backend = llm._idle_backend
    assert isinstance(backend, CudaBackend)
    room = backend._room
    assert [output.token_ids for output in llm.generate(prompts, params)] == first
    assert room is not None
    assert llm._idle_backend is backend and backend._room is room
    llm.model.lm_head.weight.data = llm.model.lm_head.weight.data.clone()
    assert [output.token_ids for output in llm.generate(prompts, params)] == first
    assert backend._room is not room


def test_all_graphs_can_be_captured_before_the_first_request(model: BlockDiffusionLM, prompts: list[list[int]]) -> None:
    params = GenerationParams(threshold=0.5, gen_length=64)
    engine = LLMEngine(model, config=EngineConfig(max_batch_size=4, kv_memory=2**26, capture_graphs=True))
    forwards = engine._backend._room.forwards[32]  # type: ignore[attr-defined]
    captured = dict(forwards._graphs)
    assert 1 in captured
    ids = [engine.add_request(prompt, params) for prompt in prompts[:5]]
    ended: dict[str, list[int]] = {}
    while engine.has_requests():
        ended |= {update.request_id: update.output.token_ids for update in engine.step() if update.output}
    assert forwards._graphs == captured
    if model.dtype == torch.float32:  # a bfloat16 matmul of more rows rounds differently
        plain = TorchBackend(model)
        assert [ended[name] for name in ids] == [row[0] for row in answers(plain, model, prompts[:5], params)]
