"""Decisions on GPUs, by the interpreter: the plain head, rule and embeddings, whatever memory they pass through."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dmax import BlockDiffusionLM, ModelConfig
from dmax.decoding import BlockState, SoftParallelDecoder, StepResult, input_embeddings
from dmax.engine.backends import Decided, PassInput
from dmax.engine.backends.cuda_decisions import Blocks, StaticDecisions
from dmax.engine.backends.cuda_graphs import captured_size
from dmax.engine.block_states import select_rows
from dmax.models.transformer import initialize

LENGTH = 5
DECODER = SoftParallelDecoder(threshold=0.2, acceptance_threshold=0.5)


@pytest.fixture
def model(device: torch.device) -> BlockDiffusionLM:
    config = ModelConfig(
        vocab_size=48, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, partial_rotary_factor=0.5, mask_token_id=1, eos_token_id=2, pad_token_id=0,
        initializer_range=0.5, max_position_embeddings=256,
    )  # fmt: skip
    return initialize(BlockDiffusionLM(config), torch.Generator().manual_seed(5)).eval().to(device)


@pytest.fixture
def shared(model: BlockDiffusionLM) -> StaticDecisions:
    return StaticDecisions(model, length=LENGTH, limit=12, graphs=False, memory_pool=None)


def start(model: BlockDiffusionLM, blocks: int, generator: torch.Generator) -> BlockState:
    tokens = torch.randint(3, 48, (blocks, LENGTH), generator=generator)
    active = torch.arange(LENGTH) >= torch.randint(0, 3, (blocks, 1), generator=generator)
    return BlockState.start(tokens.to(model.device), active.to(model.device), model.config.mask_token_id)


def hidden(model: BlockDiffusionLM, blocks: int, generator: torch.Generator) -> Tensor:
    return torch.randn(blocks, LENGTH, model.config.hidden_size, generator=generator).to(model.device)


@torch.no_grad()
def assert_plain(
    model: BlockDiffusionLM, found: Decided, expected: StepResult, decoder: SoftParallelDecoder = DECODER
) -> None:
    result, after, for_host_BW = found
    embeds_BLD = after.embeds_BLD
    assert after.state is result.state and embeds_BLD is not None
    for name in ("promoted", "revised", "converged"):
        assert torch.equal(getattr(result, name), getattr(expected, name)), name
    for name in ("tokens", "active", "masked", "passes"):
        assert torch.equal(getattr(result.state, name), getattr(expected.state, name)), name
    torch.testing.assert_close(result.confidence, expected.confidence, rtol=2e-6, atol=0)
    plain_BLD = input_embeddings(expected.state, model.model.word_embeddings.weight)
    torch.testing.assert_close(embeds_BLD, plain_BLD, rtol=1e-5, atol=1e-6)
    told = [expected.state.tokens, expected.revised, expected.converged[:, None]]
    assert for_host_BW is not None
    assert torch.equal(for_host_BW[:, :-1], torch.cat(told, 1))
    confidence_B = for_host_BW[:, -1].to(torch.int32).view(torch.float32)
    torch.testing.assert_close(confidence_B, expected.confidence.sum(-1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("blocks", [1, 3, 9])
def test_passes_are_the_plain_ones(
    model: BlockDiffusionLM, shared: StaticDecisions, generator: torch.Generator, blocks: int
) -> None:
    """9 blocks are filled up to 10. A pass that goes on from the last one takes it in as a whole; the others do not."""
    assert captured_size(9) > 9
    given = PassInput(expected := start(model, blocks, generator))
    for turn in range(6):
        hidden_BLD = hidden(model, blocks, generator)
        if turn == 3:  # as when rows change places: the same blocks in other memory
            rows = torch.arange(blocks, device=model.device).flip(0)
            given, expected = PassInput(select_rows(given.state, rows)), select_rows(expected, rows)
        if turn == 4:  # as with several blocks a sequence
            fallback = torch.rand(blocks, generator=generator).to(model.device) < 0.5
            given, expected = given.with_fallback(fallback), replace(expected, fallback=fallback)
        if turn == 5:
            given, expected = given.with_fallback(None), replace(expected, fallback=None)
        with torch.no_grad():
            plain = DECODER.step(model.head(hidden_BLD), expected)
        with torch.inference_mode():
            found = shared.decide(DECODER, hidden_BLD, given)
        assert_plain(model, found, plain)
        given, expected = found.after, plain.state


@torch.inference_mode()
def test_a_pass_can_be_taken_back(model: BlockDiffusionLM, shared: StaticDecisions, generator: torch.Generator) -> None:
    """As when the pass behind it was launched ahead in vain: what it left stays, and leads to the same again."""
    first = shared.decide(DECODER, hidden(model, 2, generator), PassInput(start(model, 2, generator)))
    left = first.after.state.tokens, first.after.state.masked, first.after.embeds_BLD
    kept = [part.clone() for part in left]
    hidden_BLD = hidden(model, 2, generator)
    ahead = shared.decide(DECODER, hidden_BLD, first.after)
    shared.decide(DECODER, hidden(model, 2, generator), ahead.after)
    assert all(map(torch.equal, left, kept))
    again = shared.decide(DECODER, hidden_BLD, first.after)
    assert again.for_host_BW is not None
    assert ahead.for_host_BW is not None
    assert torch.equal(again.for_host_BW, ahead.for_host_BW)
    assert torch.equal(again.after.embeds_BLD, ahead.after.embeds_BLD)


def test_decoders_share_memory_and_keep_their_thresholds(
    model: BlockDiffusionLM, shared: StaticDecisions, generator: torch.Generator
) -> None:
    decoders = [SoftParallelDecoder(threshold=threshold) for threshold in (0.0, 0.9)]
    plain_states = [start(model, 2, generator) for _ in decoders]
    given = [PassInput(state) for state in plain_states]
    promoted = []
    for _ in range(2):
        for which, decoder in enumerate(decoders):
            hidden_BLD = hidden(model, 2, generator)
            with torch.no_grad():
                plain = decoder.step(model.head(hidden_BLD), plain_states[which])
            with torch.inference_mode():
                found = shared.decide(decoder, hidden_BLD, given[which])
            assert_plain(model, found, plain, decoder)
            given[which], plain_states[which] = found.after, plain.state
            promoted.append(int(found.result.promoted.sum()))
    assert promoted[0] > promoted[1], "or thresholds make no difference"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "length", "width"), [(1, 1, 1), (3, 5, 7), (10, 32, 64)])
def test_the_parts_of_the_memory_lie_side_by_side(size: int, length: int, width: int, dtype: torch.dtype) -> None:
    memory = torch.zeros(Blocks.bytes_of(size, length, width, dtype), dtype=torch.uint8)
    blocks = Blocks(memory, size, length, width, dtype)
    parts = [*blocks.decision, blocks.active, blocks.fallback, blocks.for_host_BW, blocks.embeds_BLD]
    for number, part in enumerate(parts, 1):
        part.fill_(number % 2 if part.dtype == torch.bool else number)
    for number, part in enumerate(parts, 1):
        assert (part == (number % 2 if part.dtype == torch.bool else number)).all()
    assert sum(part.numel() * part.itemsize for part in parts) <= memory.numel()
