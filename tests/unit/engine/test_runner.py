"""The cached forward gives what recomputing everything gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dmax.engine.runner
from dmax.engine.params import GenerationParams
from dmax.engine.runner import CachedRunner, RecomputeRunner
from dmax.engine.sequence import Sequence
from dmax.engine.stopping import StopRule
from dmax.models import LLaDA2

LENGTH = 4
GENERATOR_SEED = 7


def rows_with_prompts(*prompt_lengths: int) -> list[Sequence]:
    generator = torch.Generator().manual_seed(GENERATOR_SEED)
    params = GenerationParams(gen_length=16, block_length=LENGTH)
    return [
        Sequence(index, torch.randint(3, 48, (length,), generator=generator).tolist(), params, StopRule(2, 16))
        for index, length in enumerate(prompt_lengths)
    ]


def embeds_for(rows: list[Sequence], seed: int) -> Tensor:
    return torch.randn(len(rows), LENGTH, 32, generator=torch.Generator().manual_seed(seed))


def forwards(model: LLaDA2, monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Records the shape of the embeddings of every forward from now on."""
    shapes: list[torch.Size] = []
    forward = LLaDA2.forward

    def recording(self: LLaDA2, embeds: Tensor, *rest: object) -> Tensor:
        shapes.append(embeds.shape)
        return forward(self, embeds, *rest)

    monkeypatch.setattr(LLaDA2, "forward", recording)
    return shapes


@torch.inference_mode()
@pytest.mark.parametrize("prefill_tokens", [4096, 8])
@pytest.mark.parametrize("prompt_lengths", [(0,), (8,), (0, 3, 4, 13), (21, 8, 8, 2)])
def test_cached_equals_recomputed(
    tiny_model: LLaDA2, monkeypatch: pytest.MonkeyPatch, prompt_lengths: tuple[int, ...], prefill_tokens: int
) -> None:
    """Through the first block, a pass more, blocks that close in some rows, and a row that leaves."""
    monkeypatch.setattr(dmax.engine.runner, "PREFILL_TOKENS", prefill_tokens)
    rows = rows_with_prompts(*prompt_lengths)
    cached = CachedRunner(tiny_model, LENGTH, slots=len(rows), slot_length=48)
    recomputed = RecomputeRunner(tiny_model, LENGTH)
    cached.admit(rows, len(rows))
    recomputed.admit(rows, len(rows))

    def compare(seed: int) -> None:
        embeds = embeds_for(rows, seed)
        ours, reference = cached.hidden(rows, embeds), recomputed.hidden(rows, embeds)
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)

    compare(seed=0)
    compare(seed=1)
    for row in rows[::2]:
        row.close_block([5, 6, 7, 8])
    compare(seed=2)
    for row in rows:
        row.close_block([9, 10, 11, 12])
    compare(seed=3)
    compare(seed=4)
    if len(rows) > 1:
        last = len(rows) - 1
        cached.replace(0, last)
        rows[0] = rows.pop()
        compare(seed=5)


@torch.inference_mode()
def test_a_commit_is_part_of_the_next_blocks_first_forward(tiny_model: LLaDA2, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_with_prompts(9, 4, 0)
    runner = CachedRunner(tiny_model, LENGTH, slots=3, slot_length=32)
    shapes = forwards(tiny_model, monkeypatch)
    runner.admit(rows, 3)
    assert [tuple(shape[:2]) for shape in shapes] == [(2, 8)]  # the prompt of 0 tokens has no part in it
    for closing in ([], [1], [0, 1, 2], []):
        for row in closing:
            rows[row].close_block([5, 6, 7, 8])
        shapes.clear()
        hidden = runner.hidden(rows, embeds_for(rows, seed=0))
        assert hidden.shape == (3, LENGTH, 32)
        assert [tuple(shape[:2]) for shape in shapes] == [(3 + len(closing), LENGTH)]


@torch.inference_mode()
def test_a_long_prompt_is_prefilled_in_chunks_of_whole_blocks(
    tiny_model: LLaDA2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dmax.engine.runner, "PREFILL_TOKENS", 17)
    rows = rows_with_prompts(30, 9)
    shapes = forwards(tiny_model, monkeypatch)
    CachedRunner(tiny_model, LENGTH, slots=2, slot_length=48).admit(rows, 2)
    assert [tuple(shape[:2]) for shape in shapes] == [(2, 8), (1, 16), (1, 4)]
