"""The rule and what the next pass reads: against PyTorch's operations, and every block as if it were alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dmax.decoding import BlockState, SoftParallelDecoder, predict
from dmax.decoding.mixing import soften
from dmax.kernels.cpu.experts import in_panels
from dmax.kernels.cpu.rule import BlocksBefore, CpuRule, reads, softens
from dmax.kernels.decision import Decision

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

DTYPES = (torch.float32, torch.bfloat16)


class Pass:
    """Blocks halfway through, of random tokens, flags and logits; some logits tie, and the mask often comes first."""

    def __init__(self, vocabulary: int, mask: int, dtype: torch.dtype, blocks: int = 5, length: int = 7) -> None:
        generator = torch.Generator().manual_seed(vocabulary + mask)
        shape = blocks, length

        def flags(share: float, *size: int) -> Tensor:
            return torch.rand(size, generator=generator) < share

        self.mask = mask
        logits_BLV = torch.randn(*shape, vocabulary, generator=generator) * 3
        logits_BLV[flags(0.3, *shape)] = logits_BLV[flags(0.3, *shape)][:1].round()
        logits_BLV[..., mask] += 4
        active_BL = flags(0.8, *shape)
        masked_BL = active_BL & flags(0.6, *shape)
        masked_BL[0] = False
        tokens_BL = torch.randint(vocabulary, shape, generator=generator).masked_fill(masked_BL, mask)
        passes_B = torch.randint(length, (blocks,), generator=generator)
        self.logits_BLV = logits_BLV.to(dtype)
        self.blocks = BlocksBefore(tokens_BL, active_BL, masked_BL, passes_B, flags(0.5, blocks), 0.4, 0.6)

    def by_operations(self) -> Decision:
        blocks = self.blocks
        state = BlockState(*blocks[:4], self.mask, fallback=blocks.fallback)
        decoder = SoftParallelDecoder(threshold=blocks.threshold, acceptance_threshold=blocks.acceptance_threshold)
        result = decoder.step(self.logits_BLV, state)
        after, mix = result.state, result.state.mix
        assert mix is not None
        return Decision(
            after.tokens, after.masked, after.passes, result.confidence, mix.token_ids[..., 0], result.promoted,
            result.revised, mix.where, result.converged,
        )  # fmt: skip


def some(blocks: BlocksBefore, which: slice) -> BlocksBefore:
    return BlocksBefore(*(tensor[which].contiguous() for tensor in blocks[:5]), *blocks[5:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocabulary", "mask"), [(48, 0), (48, 47), (5, 2), (201, 200), (1031, 640)])
def test_it_is_the_rule(cpu_library: Path, vocabulary: int, mask: int, dtype: torch.dtype) -> None:
    case = Pass(vocabulary, mask, dtype)
    found, expected = CpuRule(cpu_library, dtype, mask).decide(case.logits_BLV, case.blocks), case.by_operations()
    for name, one, other in zip(Decision._fields, found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocabulary", "mask"), [(48, 0), (5, 2), (1031, 640)])
def test_predictions_are_those_of_the_plain_function(
    cpu_library: Path, vocabulary: int, mask: int, dtype: torch.dtype
) -> None:
    case = Pass(vocabulary, mask, dtype)
    tokens_BL, confidence_BL = CpuRule(cpu_library, dtype, mask).predict(case.logits_BLV)
    expected = predict(case.logits_BLV, mask)
    assert torch.equal(tokens_BL, expected.tokens)
    torch.testing.assert_close(confidence_BL, expected.confidence, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_lowest_of_tokens_that_tie_is_taken(cpu_library: Path, dtype: torch.dtype) -> None:
    case = Pass(100, 3, dtype)
    case.logits_BLV = torch.zeros(5, 7, 100, dtype=dtype)
    case.logits_BLV[1:, :, 70:] = 2.0
    case.logits_BLV[2:, :, 22] = 2.0
    rule = CpuRule(cpu_library, dtype, 3)
    candidates_BL = rule.decide(case.logits_BLV, case.blocks).candidates
    assert torch.equal(rule.predict(case.logits_BLV)[0], candidates_BL)
    assert candidates_BL[:, 0].tolist() == [0, 70, 22, 22, 22]
    assert torch.equal(candidates_BL, case.by_operations().candidates)


@pytest.mark.parametrize("logit", [float("nan"), float("-inf"), float("inf")])
def test_logits_that_mean_nothing_give_a_token_of_the_vocabulary(cpu_library: Path, logit: float) -> None:
    case = Pass(48, 0, torch.float32)
    case.logits_BLV.fill_(logit)
    found = CpuRule(cpu_library, torch.float32, 0).decide(case.logits_BLV, case.blocks)
    assert (found.candidates >= 1).all() and (found.candidates < 48).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_gets_the_same_bits_alone_and_among_others(cpu_library: Path, dtype: torch.dtype) -> None:
    rule, case = CpuRule(cpu_library, dtype, 7), Pass(311, 7, dtype)
    together = rule.decide(case.logits_BLV, case.blocks)
    for block in range(5):
        own = slice(block, block + 1)
        alone = rule.decide(case.logits_BLV[own], some(case.blocks, own))
        assert all(torch.equal(one[0], all_of_them[block]) for one, all_of_them in zip(alone, together, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("positions", [1, 9, 200])
def test_embeddings_are_mixed(cpu_library: Path, positions: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(positions)
    table_VD = torch.randn(40, 48, generator=generator).to(dtype)
    tokens_N, candidates_N = torch.randint(40, (2, positions), generator=generator)
    where_N = torch.rand(positions, generator=generator) < 0.7
    weights_N = torch.rand(positions, generator=generator)
    weights_N[::3] = 1.0
    weights_N[1::3] = 0.0
    arguments = [tokens_N, where_N, candidates_N, weights_N, table_VD]
    found_ND = CpuRule(cpu_library, dtype, 6).soften(*arguments)
    torch.testing.assert_close(found_ND, soften(*arguments, mask_token_id=6))
    own_N = torch.where(where_N, candidates_N, tokens_N)
    plain_N = ~where_N | (weights_N == 1)
    assert torch.equal(found_ND[plain_N], table_VD[own_N][plain_N])


def test_a_mix_of_length_0_is_0(cpu_library: Path) -> None:
    table_VD = torch.stack([torch.ones(16), -torch.ones(16)])
    arguments = [torch.tensor([1]), torch.tensor([True]), torch.tensor([1]), torch.tensor([0.5]), table_VD]
    found_ND = CpuRule(cpu_library, torch.float32, 0).soften(*arguments)
    assert torch.equal(found_ND, torch.zeros(1, 16))


class Ending:
    """Hidden states and a head of small whole numbers, whose logits are exact in every dtype and order."""

    def __init__(self, vocabulary: int, mask: int, dtype: torch.dtype, blocks: int) -> None:
        generator = torch.Generator().manual_seed(blocks)
        case = Pass(vocabulary, mask, dtype, blocks)
        self.mask, self.blocks = mask, case.blocks
        self.hidden_BLD = torch.randint(-1, 2, (blocks, 7, 32), generator=generator).to(dtype)
        self.head_VD = torch.randint(-1, 2, (vocabulary, 32), generator=generator).to(dtype)
        self.table_VD = torch.randn(vocabulary, 32, generator=generator).to(dtype)

    def in_one_call(self, library: Path, blocks: slice = slice(None)) -> tuple[Tensor, ...]:
        rule, before = CpuRule(library, self.hidden_BLD.dtype, self.mask), some(self.blocks, blocks)
        decision, embeds_BLD = rule.read(self.hidden_BLD[blocks], in_panels(self.head_VD[None]), self.table_VD, before)
        return *decision, embeds_BLD

    def one_by_one(self, library: Path) -> tuple[Tensor, ...]:
        logits_BLV = self.hidden_BLD @ self.head_VD.T
        rule = CpuRule(library, logits_BLV.dtype, self.mask)
        found = rule.decide(logits_BLV, self.blocks)
        mixes = [part.flatten() for part in (found.tokens, found.mixed, found.candidates, found.confidence)]
        embeds_ND = rule.soften(*mixes, self.table_VD)
        return *found, embeds_ND.view_as(self.hidden_BLD)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocabulary", "mask"), [(16, 0), (48, 47), (208, 64), (1536, 1000)])
@pytest.mark.parametrize("blocks", [1, 20])
def test_head_rule_and_embeddings_in_one_call(
    cpu_library: Path, vocabulary: int, mask: int, blocks: int, dtype: torch.dtype
) -> None:
    case = Ending(vocabulary, mask, dtype, blocks)
    for one, other in zip(case.in_one_call(cpu_library), case.one_by_one(cpu_library), strict=True):
        torch.testing.assert_close(one, other, rtol=0.01 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_call_gives_a_block_the_same_bits_alone_and_among_others(cpu_library: Path, dtype: torch.dtype) -> None:
    case = Ending(208, 3, dtype, 20)
    case.hidden_BLD = torch.randn(case.hidden_BLD.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    together = case.in_one_call(cpu_library)
    for block in (0, 7, 19):
        alone = case.in_one_call(cpu_library, slice(block, block + 1))
        assert all(torch.equal(one[0], all_of_them[block]) for one, all_of_them in zip(alone, together, strict=True))


def test_what_it_is_not_written_for() -> None:
    assert reads(48, 64, torch.bfloat16) and not reads(40, 64, torch.bfloat16) and not reads(48, 72, torch.bfloat16)
    assert softens(64, torch.float32) and softens(64, torch.bfloat16)
    assert not softens(64, torch.float16)
    assert not softens(72, torch.float32)
