"""Soft Parallel Decoding by kernels against the plain rule, which tests/golden holds against published decodings."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from dmax.decoding import BlockState, SoftMix, SoftParallelDecoder, StepResult
from dmax.decoding.mixing import mix_embeddings
from dmax.kernels.soft_parallel import PART, decide, soft_embeddings, thresholds_on

LENGTH = 5
"""No power of two: the last positions of a tile are nobody's."""


def by_kernels(decoder: SoftParallelDecoder, logits: Tensor, state: BlockState) -> StepResult:
    thresholds = thresholds_on(logits.device, decoder.threshold, decoder.acceptance_threshold)
    found = decide(
        logits, state.tokens, state.active, state.masked, state.passes, state.fallback, thresholds,
        mask_token_id=state.mask_token_id,
    )  # fmt: skip
    return decoder.after(found, state)


def draw_logits(generator: torch.Generator, rows: int, vocabulary: int, mask: int) -> Tensor:
    """bfloat16 logits of few values, so of many ties: most positions sure of a token, some of two, some of the mask."""
    logits = torch.randint(-2, 3, (rows, LENGTH, vocabulary), generator=generator).float()
    for place in logits.view(-1, vocabulary):
        kind = torch.rand((), generator=generator)
        place[torch.randint(0, vocabulary, (1 if kind < 0.8 else 2,), generator=generator)] = 14.0
        if kind > 0.9:
            place[mask] = 16.0
    return logits.bfloat16()


def start(generator: torch.Generator, rows: int, vocabulary: int, mask: int) -> BlockState:
    tokens = torch.randint(0, vocabulary, (rows, LENGTH), generator=generator)
    active = torch.arange(LENGTH) >= torch.randint(0, 3, (rows, 1), generator=generator)
    return BlockState.start(tokens, active, mask)


def assert_same(found: StepResult, expected: StepResult) -> None:
    for name in ("promoted", "revised", "converged"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    for name in ("tokens", "active", "masked", "passes"):
        assert torch.equal(getattr(found.state, name), getattr(expected.state, name)), name
    torch.testing.assert_close(found.confidence, expected.confidence, rtol=2e-6, atol=0)
    mix, plain = found.state.mix, expected.state.mix
    assert mix is not None and plain is not None
    assert torch.equal(mix.token_ids, plain.token_ids)
    assert torch.equal(mix.where, plain.where)
    assert mix.renormalize == plain.renormalize
    torch.testing.assert_close(mix.weights, plain.weights, rtol=2e-6, atol=0)


def test_passes_are_those_of_the_plain_rule(generator: torch.Generator, device: torch.device) -> None:
    """Block after block, with several passes over the same logits so that some settle without being accepted."""
    decoder = SoftParallelDecoder(threshold=0.6, acceptance_threshold=0.9)
    seen = dict.fromkeys(("accepted", "settled", "went on", "revised", "held back"), 0)
    for mask in (0, 96):
        state = start(generator, 4, 97, mask)
        for turn in range(8):
            if turn % 2 == 0:
                logits = draw_logits(generator, 4, 97, mask)
            falls_back = torch.rand(4, generator=generator) < 0.7
            state = replace(state, fallback=falls_back if turn % 3 else None)
            expected = decoder.step(logits, state)
            found = by_kernels(decoder, logits.to(device), moved(state, device))
            assert_same(on_host(found), expected)
            assert not (expected.state.tokens[expected.state.active ^ expected.state.masked] == mask).any()
            sure = ((expected.confidence >= 0.9) | ~state.active).all(-1)
            seen["accepted"] += int((expected.converged & sure).sum())
            seen["settled"] += int((expected.converged & ~sure).sum())
            seen["went on"] += int((~expected.converged).sum())
            seen["revised"] += int(expected.revised.sum())
            seen["held back"] += int((state.masked.any(-1) & ~expected.promoted.any(-1)).sum())
            state = expected.state.restart(expected.converged, state.tokens, torch.ones_like(state.active))
    assert min(seen.values()) > 0, seen


def moved(state: BlockState, device: torch.device) -> BlockState:
    """The same state elsewhere."""
    tensors = {f.name: getattr(state, f.name) for f in fields(state) if isinstance(getattr(state, f.name), Tensor)}
    mix = state.mix
    if mix is not None:
        mix = SoftMix(mix.token_ids.to(device), mix.weights.to(device), mix.where.to(device), mix.renormalize)
    return replace(state, mix=mix, **{name: tensor.to(device) for name, tensor in tensors.items()})


def on_host(result: StepResult) -> StepResult:
    cpu = torch.device("cpu")
    tensors = {name: getattr(result, name).cpu() for name in ("confidence", "promoted", "revised", "converged")}
    return StepResult(state=moved(result.state, cpu), **tensors)


def test_a_block_ends_when_its_passes_are_used_up(device: torch.device) -> None:
    logits = torch.tensor([[0.0, 1.0, 1.1]]).expand(1, LENGTH, 3).to(device)
    tokens = torch.ones(1, LENGTH, dtype=torch.int64, device=device)  # so every pass changes them all
    active = torch.ones(1, LENGTH, dtype=torch.bool, device=device)
    for passes, ends in ((LENGTH - 2, False), (LENGTH - 1, True)):
        before = torch.tensor([passes], device=device)
        found = decide(logits, tokens, active, ~active, before, None, thresholds_on(device, 0.5, 0.9), mask_token_id=0)
        assert found.revised.all()
        assert found.converged.tolist() == [ends]
        assert found.passes.tolist() == [passes + 1]


@pytest.mark.parametrize("mask", [PART - 1, PART, PART + 1100])
def test_the_best_token_is_found_in_any_part(mask: int, device: torch.device, generator: torch.Generator) -> None:
    """A vocabulary of a whole part, a whole tile and a little; the mask token, most probable of all, at their ends."""
    vocabulary = PART + 1024 + 77
    peaks = [PART - 2, PART + 1, vocabulary - 2, 1]
    logits = torch.randn(1, len(peaks), vocabulary, generator=generator)
    logits[0, range(len(peaks)), peaks] = 13.0
    logits[0, :2, [vocabulary - 3, vocabulary - 4]] = 13.0  # the same again in a later part
    logits[..., mask] = 14.0
    logits = logits.bfloat16()
    active = torch.ones(1, len(peaks), dtype=torch.bool, device=device)
    tokens, passes = torch.full((1, len(peaks)), mask, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    found = decide(
        logits.to(device), tokens, active, active, passes, None, thresholds_on(device, 0.0, 0.9), mask_token_id=mask
    )
    assert found.tokens[0].tolist() == peaks
    exact = logits.double().softmax(-1)[0, range(len(peaks)), peaks]
    torch.testing.assert_close(found.confidence[0].cpu().double(), exact, rtol=2e-6, atol=0)


def test_a_certain_token_has_a_confidence_of_one(device: torch.device) -> None:
    logits = torch.full((1, 1, 40), -90.0, device=device)
    logits[..., 7] = 90.0
    on = torch.ones(1, 1, dtype=torch.bool, device=device)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    found = decide(logits, zero[None], on, on, zero, None, thresholds_on(device, 1.0, 1.0), mask_token_id=0)
    assert found.confidence.item() == 1.0
    assert found.converged.item()


@pytest.mark.parametrize(("candidates", "renormalize"), [(1, True), (3, True), (2, False)])
def test_embeddings_are_those_of_the_plain_rule(
    candidates: int, renormalize: bool, device: torch.device, generator: torch.Generator
) -> None:
    table = torch.randn(11, 24, generator=generator) * torch.linspace(0.2, 3, 11)[:, None]
    tokens = torch.randint(0, 11, (2, LENGTH), generator=generator)
    token_ids = torch.rand(2, LENGTH, 11, generator=generator).topk(candidates).indices
    weights = torch.rand(2, LENGTH, candidates, generator=generator) / candidates
    weights[0, 0] = 0  # the mask embedding alone
    where = torch.rand(2, LENGTH, generator=generator) < 0.6
    where[0, 0], where[1, 0] = True, False
    expected = mix_embeddings(SoftMix(token_ids, weights, where, renormalize), table, 4)
    expected = torch.where(where[..., None], expected, table[tokens])
    arguments = (tensor.to(device) for tensor in (tokens, where, token_ids, weights, table))
    found = soft_embeddings(*arguments, mask_token_id=4, renormalize=renormalize).cpu()
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)
    assert torch.equal(found[~where], table[tokens][~where])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("tokens", [slice(20, 21), slice(None)], ids=["one", "all"])
def test_logits_that_are_no_numbers_give_a_confidence_that_is_none(
    generator: torch.Generator, device: torch.device, wrong: float, tokens: slice
) -> None:
    """In that row alone, and with tokens that can be looked up."""
    vocabulary, mask = 2 * PART + 40, 7
    logits = draw_logits(generator, 2, vocabulary, mask)
    logits[1, 2, tokens] = wrong
    state = start(generator, 2, vocabulary, mask)
    logits, state = logits.to(device), moved(state, device)
    found = by_kernels(SoftParallelDecoder(), logits, state)
    assert found.confidence.isnan().any(1).tolist() == [False, True]
    assert found.state.mix is not None
    assert ((found.state.mix.token_ids >= 0) & (found.state.mix.token_ids < vocabulary)).all()
