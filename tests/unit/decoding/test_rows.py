"""What holds for every decoder: rows are independent, progress is certain, and no pass waits for the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmax.decoding import BlockState, Decoder, RemaskDecoder, StepResult, decoder_names, get_decoder, input_embeddings
from dmax.decoding.registry import BUILT_IN

MASK = 1
VOCABULARY = 6
PROBABILITY = st.sampled_from([0.0, 0.2, 0.3, 0.5, 0.9, 1.0])
STEPS = st.none() | st.integers(1, 9)
SWITCH = st.booleans()
OPTIONS = {
    "soft-parallel": {
        "threshold": PROBABILITY,
        "acceptance_threshold": PROBABILITY,
        "top_k": st.integers(1, 3),
        "soft": SWITCH,
        "renormalize": SWITCH,
        "contiguous": SWITCH,
        "revise": SWITCH,
    },
    "threshold": {"threshold": PROBABILITY, "steps": STEPS},
    "hierarchical": {"threshold": PROBABILITY, "low_threshold": PROBABILITY},
    "fixed-steps": {"steps": STEPS},
    "joint-threshold": {
        "threshold": PROBABILITY,
        "editing_threshold": PROBABILITY,
        "max_post_steps": st.integers(0, 3),
        "steps": STEPS,
    },
    "entropy-bounded": {"threshold": PROBABILITY},
    "joint-threshold-indel": {
        "threshold": PROBABILITY,
        "editing_threshold": PROBABILITY,
        "max_post_steps": st.integers(0, 3),
        "delete_token_id": st.sampled_from([None, 4]),
        "insert_token_id": st.sampled_from([None, 5]),
    },
    "remask": {
        "threshold": PROBABILITY,
        "remask_threshold": PROBABILITY,
        "max_remasks": st.integers(0, 2),
    },
}
MASKS_AGAIN = ("joint-threshold-indel", "remask")
"""Those that may turn what they decoded into masks."""


@st.composite
def decoders(draw: st.DrawFn) -> Decoder:
    name = draw(st.sampled_from(sorted(OPTIONS)))
    options = {key: draw(values) for key, values in OPTIONS[name].items()}
    return get_decoder(name, temperature=draw(st.sampled_from([0.0, 0.7])), **options)


@st.composite
def blocks(draw: st.DrawFn) -> BlockState:
    """Some rows of a block, each with a part of a prompt in front that may fill it."""
    rows, length = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    tail = torch.tensor([draw(st.integers(0, length)) for _ in range(rows)])
    tokens = torch.randint(2, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))
    return BlockState.start(tokens, torch.arange(length) >= tail[:, None], MASK)


def draws(state: BlockState, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random logits, rounded so that ties happen, and Gumbel noise, for pass after pass."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*state.tokens.shape, VOCABULARY)
    while True:
        logits = (3 * torch.randn(shape, generator=generator)).round()
        yield logits, -torch.rand(shape, generator=generator).log().neg().log()


def row_of(state: BlockState, row: int) -> BlockState:
    mix = state.mix
    if mix is not None:
        mix = replace(mix, **{key: getattr(mix, key)[row : row + 1] for key in ("token_ids", "weights", "where")})
    parts = {key: getattr(state, key)[row : row + 1] for key in ("tokens", "active", "masked", "passes")}
    return replace(state, **parts, mix=mix, memory=None if state.memory is None else state.memory[row : row + 1])


def assert_same(one: StepResult, other: StepResult) -> None:
    table = torch.randn(VOCABULARY, 4, generator=torch.Generator().manual_seed(1))
    for field in fields(StepResult):
        if field.name != "state":
            assert torch.equal(getattr(one, field.name), getattr(other, field.name)), field.name
    for name in ("tokens", "active", "masked", "passes"):
        assert torch.equal(getattr(one.state, name), getattr(other.state, name)), name
    assert torch.equal(input_embeddings(one.state, table), input_embeddings(other.state, table))


@settings(deadline=None, max_examples=150, derandomize=True, database=None)
@given(decoder=decoders(), state=blocks(), seed=st.integers(0, 2**32 - 1))
def test_a_row_in_a_batch_equals_the_row_alone(decoder: Decoder, state: BlockState, seed: int) -> None:
    """Pass after pass, while rows converge at different times and are stepped on past it."""
    alone = [row_of(state, row) for row in range(state.tokens.shape[0])]
    for (logits, noise), _ in zip(draws(state, seed), range(state.tokens.shape[1] + 2), strict=False):
        batched = decoder.step(logits, state, noise)
        state = batched.state
        for row in range(len(alone)):
            part = slice(row, row + 1)
            single = decoder.step(logits[part], alone[row], noise[part])
            alone[row] = single.state
            picked = {field.name: getattr(batched, field.name)[part] for field in fields(StepResult)[1:]}
            assert_same(single, StepResult(state=row_of(state, row), **picked))


@settings(deadline=None, max_examples=150, derandomize=True, database=None)
@given(decoder=decoders(), state=blocks(), seed=st.integers(0, 2**32 - 1))
def test_every_pass_makes_progress_and_keeps_its_books(decoder: Decoder, state: BlockState, seed: int) -> None:
    prompt = torch.where(state.active, -1, state.tokens)
    converged = torch.zeros(len(state.passes), dtype=torch.bool)
    length = state.tokens.shape[1]
    limit = length + getattr(decoder, "max_post_steps", 0) + (decoder.name == "joint-threshold-indel")
    if isinstance(decoder, RemaskDecoder):  # each round of masks takes a pass to be doubted in
        limit = (length + 1) * (1 + length * decoder.max_remasks)
    for (logits, noise), index in zip(draws(state, seed), range(limit), strict=False):
        before, result = state, decoder.step(logits, state, noise)
        state = result.state
        assert torch.equal(torch.where(state.active, -1, state.tokens), prompt)
        assert torch.equal(state.active, before.active)
        assert torch.equal(result.promoted, before.masked & ~state.masked)
        if decoder.name not in MASKS_AGAIN:
            assert not (state.masked & ~before.masked).any()
        if decoder.name != "joint-threshold-indel":
            assert torch.equal(result.promoted.any(1), before.masked.any(1))
        assert torch.equal(state.tokens == MASK, state.masked)
        changed = state.tokens != before.tokens
        assert torch.equal(result.revised, changed & ~before.masked)
        assert not (result.converged & state.masked.any(1)).any()
        assert state.passes.tolist() == [index + 1] * len(state.passes)
        converged |= result.converged
    assert converged.all(), "a block takes at most L passes, and joint-threshold its post steps on top"


@pytest.mark.parametrize("name", decoder_names())
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_step_never_waits_for_the_device(name: str, temperature: float) -> None:
    """Tensors without data stand in for a device: any look at a value would raise."""
    decoder = get_decoder(name, temperature=temperature)
    meta = torch.device("meta")
    state = BlockState.start(
        torch.zeros(2, 4, dtype=torch.int64, device=meta), torch.ones(2, 4, dtype=torch.bool, device=meta), MASK
    )
    table = torch.zeros(VOCABULARY, 3, dtype=torch.bfloat16, device=meta)
    for _ in range(2):
        result = decoder.step(
            torch.zeros(2, 4, VOCABULARY, dtype=torch.bfloat16, device=meta),
            state,
            torch.zeros(2, 4, VOCABULARY, device=meta),
        )
        state = result.state.restart(result.converged, state.tokens, state.active)
        assert input_embeddings(state, table).shape == (2, 4, 3)
    assert state.tokens.dtype == torch.int64
    assert result.converged.shape == (2,)


def test_all_decoders_are_under_test() -> None:
    assert set(OPTIONS) == set(BUILT_IN)
    for name, options in OPTIONS.items():
        assert set(options) | {"temperature"} == {field.name for field in fields(get_decoder(name))}
