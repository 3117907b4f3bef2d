"""The backend for GPUs, by the interpreter: an engine on it gives the answers of the plain backend."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from dmax import BlockDiffusionLM, GenerationParams, ModelConfig
from dmax.decoding import BlockState, SoftParallelDecoder
from dmax.engine.backends import Backend, PassInput
from dmax.engine.backends.cuda import CudaBackend
from dmax.engine.backends.cuda_decisions import StaticDecisions
from dmax.engine.backends.cuda_graphs import StaticForwards, captured_size
from dmax.engine.backends.torch import TorchBackend
from dmax.engine.config import EngineConfig
from dmax.engine.engine import LLMEngine
from dmax.engine.requests import RequestReader
from dmax.engine.scheduler import IDLE_PREFILL_TOKENS
from dmax.models.transformer import initialize

PAGES, PAGE_LENGTH, ROWS = 8, 8, 3


@pytest.fixture(scope="module")
def model() -> BlockDiffusionLM:
    config = ModelConfig(
        vocab_size=48, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, partial_rotary_factor=0.5, mask_token_id=1, eos_token_id=2, pad_token_id=0,
        initializer_range=0.3, max_position_embeddings=256,
    )  # fmt: skip
    return initialize(BlockDiffusionLM(config), torch.Generator().manual_seed(5)).eval()


def answers(
    backend: Backend,
    model: BlockDiffusionLM,
    batch: list[tuple[list[int], GenerationParams]],
    *,
    launch_ahead: bool | None = None,
) -> list[Any]:
    reader = RequestReader(model.config, None)
    rows = [reader.read(str(i), ids, params, time.perf_counter()) for i, (ids, params) in enumerate(batch)]
    config = EngineConfig(
        pages=PAGES, page_length=PAGE_LENGTH, max_batch_size=ROWS, prefill_tokens=16, launch_ahead=launch_ahead
    )
    engine = LLMEngine(model, config=config, backend=backend)
    for row in rows:
        engine.add(row)
    while engine.has_requests():
        engine.step()
    assert engine.stats().preemptions > 0, "or pages never change hands"
    return [(row.ending.token_ids, row.passes) for row in rows if row.ending]


def test_an_engine_gives_the_same_answers(model: BlockDiffusionLM, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 48, (length,), generator=generator).tolist() for length in (3, 9, 17, 5)]
    rules: list[dict[str, Any]] = [
        {"threshold": 0.05, "acceptance_threshold": 0.3, "gen_length": 16},
        {"threshold": 0.05, "buffer_size": 3, "semi_threshold": 0.5, "gen_length": 16},
        {"decoder": "threshold", "threshold": 0.1, "block_length": 4},
        {"threshold": 0.05, "acceptance_threshold": 0.3, "temperature": 0.7, "block_length": 16, "seed": 4},
    ]
    batch = [
        (ids, GenerationParams(**{"block_length": PAGE_LENGTH, "gen_length": 12, **rule}))
        for ids, rule in zip(prompts, rules, strict=True)
    ]
    model = model.to(device)
    plain, paged = TorchBackend(model), CudaBackend(model, graphs=False)
    expected = answers(plain, model, batch)
    for launch_ahead in (False, True):
        assert answers(paged, model, batch, launch_ahead=launch_ahead) == expected


def test_a_cache_serves_what_fits_and_whose_weights_stay(model: BlockDiffusionLM) -> None:
    backend = CudaBackend(model, graphs=False)
    backend.open(PAGES, PAGE_LENGTH, ROWS)
    room = backend._room

    def stays(pages: int, page_length: int, slots: int) -> bool:
        nonlocal room
        backend.close()
        backend.open(pages, page_length, slots)
        before, room = room, backend._room
        return room is before

    assert stays(PAGES, PAGE_LENGTH, ROWS)
    assert stays(1, PAGE_LENGTH, 1)
    assert not stays(PAGES + 1, PAGE_LENGTH, ROWS)
    assert not stays(PAGES, 2 * PAGE_LENGTH, ROWS)
    assert not stays(PAGES, 2 * PAGE_LENGTH, ROWS + 1)
    model.lm_head.weight.data = model.lm_head.weight.data.clone()
    assert not stays(PAGES, 2 * PAGE_LENGTH, ROWS)


@torch.inference_mode()
def test_more_blocks_than_are_captured_are_decided_by_modules_and_kernels(
    model: BlockDiffusionLM, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = CudaBackend(model.to(device), graphs=False)
    backend.open(PAGES, PAGE_LENGTH, ROWS)
    captured = []
    decide = StaticDecisions.decide
    monkeypatch.setattr(StaticDecisions, "decide", lambda *given: captured.append(given[2].shape[0]) or decide(*given))
    decoder = SoftParallelDecoder(threshold=0.05)
    for blocks in (2, 2 * ROWS + 1):
        on = torch.ones(blocks, PAGE_LENGTH, dtype=torch.bool, device=device)
        given = PassInput(BlockState.start(on.long(), on, model.config.mask_token_id))
        hidden_BLD = torch.randn(blocks, PAGE_LENGTH, 32, generator=torch.Generator().manual_seed(1)).to(device)
        found, plain = (each.decide(decoder, hidden_BLD, given) for each in (backend, TorchBackend(model)))
        assert torch.equal(found.result.state.tokens, plain.result.state.tokens)
        embeds_BLD = found.after.embeds_BLD if blocks == 2 else backend.embed(found.after.state)
        torch.testing.assert_close(embeds_BLD, TorchBackend(model).embed(plain.after.state), rtol=1e-5, atol=1e-5)
    assert captured == [2]


def test_every_size_can_be_captured_beforehand_the_largest_first(
    model: BlockDiffusionLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured: dict[type, list[int]] = {StaticForwards: [], StaticDecisions: []}
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    for kind, sizes in captured.items():
        monkeypatch.setattr(kind, "_graph", lambda _, size, sizes=sizes: sizes.append(size))
    backend = CudaBackend(model)
    backend.open(PAGES, PAGE_LENGTH, ROWS)
    backend.warm_up(PAGE_LENGTH)
    largest = {
        StaticForwards: captured_size(2 * ROWS + IDLE_PREFILL_TOKENS // PAGE_LENGTH),
        StaticDecisions: captured_size(2 * ROWS),
    }
    for kind, sizes in captured.items():
        assert sizes == sorted({captured_size(count) for count in range(1, largest[kind] + 1)}, reverse=True)


def test_sizes_waste_a_quarter_at_most() -> None:
    sizes = [captured_size(count) for count in range(1, 1025)]
    assert sizes == sorted(sizes)
    assert sizes[:8] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(count <= size <= 1.25 * count for count, size in enumerate(sizes, 1))
    assert all(captured_size(size) == size for size in sizes)
    assert len(set(sizes)) == 8 + 4 * 7
