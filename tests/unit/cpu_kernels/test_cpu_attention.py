"""The compiled attention of a CPU: against attention in float64, and every span as if it were alone."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmax.kernels.cpu.attention import CpuAttention, serves
from dmax.models.masks import block_causal_mask

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

PAGES, PAGE = 40, 8
DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Place:
    """A span, and where the first of its positions stands among all of them."""

    packed: int
    start: int
    end: int
    block_length: int
    pages: Sequence[int]


class Case:
    """Spans over a pool of random keys and values, and what they compute."""

    def __init__(
        self, dtype: torch.dtype, spans: list[Place], heads: int, kv_heads: int, channels: int, spread: float = 1.0
    ) -> None:
        generator = torch.Generator().manual_seed(heads + channels)
        self.dtype, self.spans, self.heads, self.kv_heads = dtype, spans, heads, kv_heads
        length = max(span.packed + span.end - span.start for span in spans)
        shape = (length, heads + 2 * kv_heads, channels)
        new_NJC = (spread * torch.randn(shape, generator=generator)).to(dtype)  # side by side, as a projection gives it
        self.new = list(new_NJC.split([heads, kv_heads, kv_heads], 1))
        pool = (kv_heads, PAGES * PAGE, channels)
        self.keys, self.values = (torch.randn(pool, generator=generator).to(dtype) for _ in range(2))

    def run(self, cpu_library: Path) -> tuple[Tensor, Tensor, Tensor]:
        """What is returned, and keys and values of the pool afterwards."""
        keys, values = self.keys.clone(), self.values.clone()
        plan = CpuAttention(cpu_library, self.dtype).plan(self.spans, PAGE)
        return plan(*self.new, keys, values), keys, values

    def places(self, span: Place) -> Tensor:
        """Where in the pool its sequence lies."""
        return torch.tensor([span.pages[at // PAGE] * PAGE + at % PAGE for at in range(span.end)])

    def expected(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same in float64, span by span, by the mask of the model."""
        q, k, v = self.new
        keys, values = self.keys.clone(), self.values.clone()
        mixed = torch.empty(q.shape, dtype=torch.float64)
        for span in self.spans:
            at = slice(span.packed, span.packed + span.end - span.start)
            places = self.places(span)
            keys[:, places[span.start :]], values[:, places[span.start :]] = (x[at].transpose(0, 1) for x in (k, v))
            positions = torch.arange(span.end)[None]
            mask = block_causal_mask(positions[:, span.start :], positions, span.block_length)
            seen = (x[:, places].double().repeat_interleave(self.heads // self.kv_heads, 0) for x in (keys, values))
            mixed[at] = F.scaled_dot_product_attention(
                q[at].transpose(0, 1).double(), *seen, attn_mask=mask
            ).transpose(0, 1)  # fmt: skip
        return mixed, keys, values


BLOCK = Place(0, 16, 24, 8, (7, 2, 9))
SPANS = {
    "a block": [BLOCK],
    "a first block": [Place(0, 0, 8, 8, (5,))],
    "a prompt of several blocks": [Place(0, 0, 40, 8, (1, 2, 3, 8, 9))],
    "a stored block and its successor": [Place(0, 8, 24, 8, (6, 3, 4))],
    "blocks smaller than pages": [Place(0, 4, 20, 4, (6, 3, 4))],
    "blocks larger than pages": [Place(0, 16, 32, 16, (6, 3, 4, 0))],
    "blocks of one": [Place(0, 17, 18, 1, (6, 3, 4))],
    "more keys than a chunk": [Place(0, 272, 280, 8, tuple(range(2, 37)))],
    "several": [BLOCK, Place(8, 0, 16, 8, (1, 4)), Place(24, 32, 40, 8, (11, 12, 13, 14, 15))],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS.keys())
@pytest.mark.parametrize(("heads", "kv_heads", "channels"), [(4, 2, 64), (2, 2, 16), (16, 1, 48), (16, 4, 128)])
def test_it_is_attention(
    cpu_library: Path, dtype: torch.dtype, spans: list[Place], heads: int, kv_heads: int, channels: int
) -> None:
    case = Case(dtype, spans, heads, kv_heads, channels)
    (mixed, keys, values), (right, right_keys, right_values) = case.run(cpu_library), case.expected()
    torch.testing.assert_close(mixed.double(), right, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert torch.equal(keys, right_keys) and torch.equal(values, right_values), "the pool holds what it should"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_span_gets_the_same_bits_alone_and_among_others(cpu_library: Path, dtype: torch.dtype) -> None:
    together = Case(dtype, SPANS["several"], 4, 2, 64)
    mixed, _, _ = together.run(cpu_library)
    for span in together.spans:
        alone = Case(dtype, [replace(span, packed=0)], 4, 2, 64)
        own = slice(span.packed, span.packed + span.end - span.start)
        alone.new = [heads_NJC[own] for heads_NJC in together.new]
        alone.keys, alone.values = together.keys, together.values
        assert torch.equal(alone.run(cpu_library)[0], mixed[own])


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_neither_overflow_nor_vanish(cpu_library: Path, dtype: torch.dtype) -> None:
    case = Case(dtype, SPANS["more keys than a chunk"], 4, 2, 64, spread=60.0)
    mixed, right = case.run(cpu_library)[0], case.expected()[0]
    assert mixed.isfinite().all()
    close = torch.isclose(mixed.double(), right, rtol=0.05, atol=0.05 * float(right.abs().max()))
    assert close.double().mean() > 0.99, "softmax of large scores is a choice, which rounding may change where they tie"


def test_what_it_is_not_written_for() -> None:
    assert serves(64, torch.float32) and serves(128, torch.bfloat16)
    assert not serves(40, torch.float32)
    assert not serves(64, torch.float16)
