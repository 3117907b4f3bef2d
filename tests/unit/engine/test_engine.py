"""The engine's bookkeeping, with a decoder that does what its script says."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from dmax import LLM
from dmax.decoding import BlockState, SoftMix, StepResult
from dmax.decoding.contract import ContractError
from dmax.engine.backends import choose_backend
from dmax.engine.config import EngineConfig
from dmax.engine.engine import LLMEngine
from dmax.engine.outputs import RequestUpdate
from dmax.engine.params import GenerationError, GenerationParams
from dmax.engine.sequence import Sequence
from dmax.engine.stopping import StopRule
from dmax.models import BlockDiffusionLM
from dmax.models.attention import attend

EOS, LENGTH = 2, 4
ids = map(str, count())


@dataclass
class CountingDecoder:
    """Promotes one mask a pass, from the left, as the token ``20 + place in the block``."""

    name: str = "counting"
    temperature: float = 0.0
    batch_sizes: list[int] = field(default_factory=list)
    noises: list[Tensor | None] = field(default_factory=list)

    def step(self, logits: Tensor, state: BlockState, noise: Tensor | None = None) -> StepResult:
        self.batch_sizes.append(logits.shape[0])
        self.noises.append(noise)
        first = state.masked & (state.masked.cumsum(-1) == 1)
        tokens = torch.where(first, 20 + torch.arange(LENGTH), state.tokens)
        masked = state.masked & ~first
        return StepResult(
            state=replace(state, tokens=tokens, masked=masked, passes=state.passes + 1),
            confidence=torch.full(tokens.shape, 0.5),
            promoted=first,
            revised=torch.zeros_like(first),
            converged=~masked.any(-1),
        )


class BrokenDecoder(CountingDecoder):
    def step(self, logits: Tensor, state: BlockState, noise: Tensor | None = None) -> StepResult:
        if len(self.batch_sizes) == 2:
            raise RuntimeError("out of ideas")
        return super().step(logits, state, noise)


def rows_with(
    prompt_and_gen_lengths: list[tuple[int, int]], decoder: CountingDecoder, trace: bool = False
) -> list[Sequence]:
    return [
        Sequence(
            next(ids),
            [9] * prompt_length,
            GenerationParams(gen_length=gen_length, block_length=LENGTH, seed=index, trace=trace),
            StopRule((EOS,), gen_length),
            decoder,
        )
        for index, (prompt_length, gen_length) in enumerate(prompt_and_gen_lengths)
    ]


def engine_of(model: BlockDiffusionLM, **settings: Any) -> LLMEngine:
    return LLMEngine(model, config=EngineConfig(**settings), backend=choose_backend(model))


def run(model: BlockDiffusionLM, rows: list[Sequence], **settings: Any) -> list[RequestUpdate]:
    limits = {"pages": 64, "page_length": LENGTH, "max_batch_size": 8, "prefill_tokens": 64, **settings}
    engine = engine_of(model, **limits)
    for row in rows:
        engine.add(row)
    updates: list[RequestUpdate] = []
    while engine.has_requests():
        updates += engine.step()
    assert engine.stats().pages_held == 0, "pages of ended sequences are free"
    assert engine.step() == []
    return updates


def test_rows_are_counted_and_end_by_themselves(tiny_model: BlockDiffusionLM) -> None:
    decoder = CountingDecoder()
    rows = rows_with([(0, 4), (5, 3), (4, 9), (1, 1)], decoder)
    run(tiny_model, rows)
    assert [row.passes for row in rows] == [4, 3, 12, 3]
    assert [row.nfe for row in rows] == [4, 4, 13, 3]
    assert [row.blocks for row in rows] == [1, 1, 3, 1]
    assert [row.ending.token_ids for row in rows if row.ending] == [
        [20, 21, 22, 23],
        [21, 22, 23],
        [20, 21, 22, 23, 20, 21, 22, 23, 20],
        [21],
    ]
    # Those without whole blocks decode while the prompts of the others are stored.
    assert decoder.batch_sizes == [2] + [4] * 2 + [3] + [1] * 9


@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_waiting_rows_take_the_places_of_those_that_have_ended(tiny_model: BlockDiffusionLM, capacity: int) -> None:
    lengths = [(0, 4), (5, 3), (4, 9), (1, 1), (8, 8)]
    together, queued = rows_with(lengths, CountingDecoder()), rows_with(lengths, decoder := CountingDecoder())
    run(tiny_model, together)
    run(tiny_model, queued, max_batch_size=capacity)
    assert max(decoder.batch_sizes) == capacity
    assert [row.ending for row in queued] == [row.ending for row in together]
    assert [row.passes for row in queued] == [row.passes for row in together]


def test_updates_tell_what_has_become_final(tiny_model: BlockDiffusionLM) -> None:
    [row] = rows_with([(6, 5)], CountingDecoder())
    updates = run(tiny_model, [row])
    assert [update.final_ids for update in updates if update.final_ids] == [[22, 23], [20, 21, 22]]
    assert [update.finished for update in updates] == [False, True]


def test_records_say_what_happened(tiny_model: BlockDiffusionLM) -> None:
    [row] = rows_with([(6, 3)], CountingDecoder(), trace=True)
    updates = run(tiny_model, [row])
    assert [record for update in updates for record in update.records] == row.trace
    assert [(record.block, record.start, record.final) for record in row.trace] == (
        [(1, 4, False), (1, 4, True)] + [(2, 8, False)] * 3 + [(2, 8, True)]
    )
    assert [record.pass_number for record in row.trace] == [1, 2, 3, 4, 5, 6]
    first, second, third = row.trace[:3]
    assert (first.tokens, first.promoted, first.active) == ([9, 9, 22, 1], [2], [2, 3])
    assert (second.tokens, second.promoted, second.revised) == ([9, 9, 22, 23], [3], [])
    assert (third.tokens, third.active) == ([20, 1, 1, 1], [0, 1, 2, 3])
    assert first.confidence == [0.5] * LENGTH


def test_nothing_is_recorded_unasked(tiny_model: BlockDiffusionLM) -> None:
    decoder = CountingDecoder()
    asking, silent = rows_with([(0, 4)], decoder, trace=True)[0], rows_with([(0, 4)], decoder)[0]
    run(tiny_model, [asking, silent])
    assert len(asking.trace) == 4
    assert silent.trace == []
    [row] = rows_with([(0, 4)], CountingDecoder())
    assert all(len(update.records) == 1 for update in run(tiny_model, [row], record_passes=True))
    assert row.trace == []


def test_a_decoder_that_raises_fails_its_own_requests_only(tiny_model: BlockDiffusionLM) -> None:
    [good] = rows_with([(0, 8)], CountingDecoder())
    [bad] = rows_with([(0, 8)], BrokenDecoder())
    bad.params = replace(bad.params, threshold=0.25)
    run(tiny_model, [good, bad])
    assert good.ending is not None
    assert bad.ending is None
    assert str(bad.failure) == "out of ideas"


def test_positions_are_counted_by_what_is_computed_for_them(
    tiny_model: BlockDiffusionLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    attended, decoded, through = 0, 0, 0

    def attend_and_count(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        nonlocal attended
        attended += q.shape[2] * k.shape[2] if mask is None else int(mask.sum())
        return attend(q, k, v, mask)

    def head_and_count(hidden: Tensor) -> Tensor:
        nonlocal decoded
        decoded += hidden.shape[:-1].numel()
        return tiny_model.lm_head(hidden)

    def forward_and_count(embeds: Tensor, *arguments: Any) -> Tensor:
        nonlocal through
        through += embeds.shape[:-1].numel()
        return forward(embeds, *arguments)

    forward = tiny_model.forward
    monkeypatch.setattr("dmax.engine.kv_cache.attend", attend_and_count)
    monkeypatch.setattr(tiny_model, "head", head_and_count)
    monkeypatch.setattr(tiny_model, "forward", forward_and_count)
    engine = LLMEngine(
        tiny_model, config=EngineConfig(pages=64, page_length=LENGTH, max_batch_size=2, prefill_tokens=8)
    )
    rows = rows_with([(0, 4), (17, 9), (30, 3), (6, 12)], CountingDecoder())
    in_flight = {"buffer_size": 2, "add_threshold": 0.5, "semi_threshold": 0.7}
    for row in (*rows, multi(5, 12, ScriptedDecoder(), threshold=0.25, **in_flight)):
        engine.add(row)
    while engine.has_requests():
        engine.step()
    counters, layers = engine.stats(), tiny_model.config.num_hidden_layers
    assert counters.positions == through
    assert counters.decoded == decoded < through - counters.prefilled, "blocks that are stored have no logits either"
    assert counters.attended * layers == attended


@pytest.mark.parametrize("launch_ahead", [False, True])
def test_a_pass_that_is_launched_ahead_counts_when_its_block_has_gone_on(
    tiny_model: BlockDiffusionLM, launch_ahead: bool
) -> None:
    slow = GenerationParams(gen_length=24, block_length=8, threshold=1.0)
    fast = GenerationParams(gen_length=24, block_length=8, threshold=0.0, acceptance_threshold=0.0)
    rows = [
        Sequence(str(index), [3 + index] * index, params, StopRule((EOS,), 24), params.build_decoder())
        for index, params in enumerate((slow, slow, fast))
    ]
    engine = LLMEngine(
        tiny_model,
        config=EngineConfig(pages=32, page_length=8, max_batch_size=2, prefill_tokens=8, launch_ahead=launch_ahead),
    )
    for row in rows[:2]:
        engine.add(row)
    for _ in range(3):
        engine.step()
    engine.abort(rows[0].request_id)
    engine.add(rows[2])
    while engine.has_requests():
        engine.step()
    llm = LLM(tiny_model)
    expected = [llm.generate(row.tokens[: row.prompt_length], row.params)[0] for row in rows[1:]]
    for row, output in zip(rows[1:], expected, strict=True):
        assert row.ending is not None and row.ending.token_ids == output.token_ids
        assert (row.passes, row.revisions) == (output.passes, output.revisions)
    counters = engine.stats()
    assert 0 < counters.discarded < counters.ahead if launch_ahead else counters.ahead == counters.discarded == 0


class OnDevice(Tensor):
    """Stands for results on a GPU: they reach the host by ``cpu`` alone, which is counted."""

    transfers: ClassVar[int] = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.numpy), "the host waits for the device"
        result = super().__torch_function__(func, types, args, kwargs)
        if func is Tensor.cpu:
            OnDevice.transfers += 1
            return result.as_subclass(Tensor)
        return result


class DeviceDecoder(CountingDecoder):
    """Its results stand on a device, all but the state, which the model reads."""

    def step(self, logits: Tensor, state: BlockState, noise: Tensor | None = None) -> StepResult:
        result = super().step(logits, state, noise)
        names = ("confidence", "promoted", "revised", "converged")
        return replace(result, **{name: getattr(result, name).as_subclass(OnDevice) for name in names})


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("trace", [False, True])
def test_a_pass_comes_to_the_host_in_one_transfer_also_where_it_is_recorded(
    tiny_model: BlockDiffusionLM, monkeypatch: pytest.MonkeyPatch, groups: int, trace: bool
) -> None:
    monkeypatch.setattr(OnDevice, "transfers", 0)
    rows = [rows_with([(2, 6)], DeviceDecoder(), trace=trace and not index)[0] for index in range(groups)]
    for index, row in enumerate(rows):
        row.params = replace(row.params, threshold=index / 4)
    run(tiny_model, rows)
    assert OnDevice.transfers == rows[0].passes == 6
    assert [record.confidence for record in rows[0].trace] == [[0.5] * LENGTH] * (6 if trace else 0)
    assert [record.promoted for record in rows[0].trace] == ([[2], [3], [0], [1], [2], [3]] if trace else [])


Spoil = Callable[[StepResult], Any]


def in_state(**changes: Any) -> Spoil:
    return lambda result: replace(result, state=replace(result.state, **changes))


def mixed(width: int, token_id: int = 5, weights: torch.dtype = torch.float32, renormalize: Any = True) -> Spoil:
    """Feeds back a mix of so many tokens."""

    def spoil(result: StepResult) -> StepResult:
        shape, where = (*result.confidence.shape, width), result.state.active
        mix = SoftMix(torch.full(shape, token_id), torch.full(shape, 0.5, dtype=weights), where, renormalize)
        return replace(result, state=replace(result.state, mix=mix))

    return spoil


class Unruly(BlockState):
    """Has the right shapes and cannot be gone on with."""

    def restart(self, *_: Any) -> BlockState:
        raise RuntimeError("will not start again")


def unruly(result: StepResult) -> StepResult:
    state = result.state
    return replace(result, state=Unruly(state.tokens, state.active, state.masked, state.passes, state.mask_token_id))


@dataclass
class SpoilingDecoder(CountingDecoder):
    """Does something to its third result."""

    spoil: Spoil = lambda result: result

    def step(self, logits: Tensor, state: BlockState, noise: Tensor | None = None) -> StepResult:
        result = super().step(logits, state, noise)
        return self.spoil(result) if len(self.batch_sizes) == 3 else result


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda result: None, "NoneType as its result; it must be a StepResult"),
        (lambda result: replace(result, state=result), "StepResult as its state; it must be a BlockState"),
        (in_state(mix=(1, 2)), "tuple as its state.mix"),
        (in_state(mask_token_id=0), "mask_token_id 0; it must stay 1"),
        (in_state(tokens=torch.zeros(1, LENGTH)), r"state.tokens of shape \(1, 4\), torch.float32.*torch.int64"),
        (in_state(tokens=torch.zeros(1, 3, dtype=torch.int64)), r"state.tokens of shape \(1, 3\).*shape \(1, 4\)"),
        (in_state(tokens=torch.zeros(LENGTH, dtype=torch.int64)), r"state.tokens of shape \(4\,\)"),
        (in_state(tokens=[[5] * LENGTH]), "list as its state.tokens"),
        (in_state(masked=torch.zeros(2, LENGTH, dtype=torch.bool)), r"state.masked of shape \(2, 4\)"),
        (in_state(active=torch.ones(1, LENGTH)), "state.active .* torch.float32"),
        (in_state(passes=torch.zeros(1, 1, dtype=torch.int64)), r"state.passes of shape \(1, 1\)"),
        (in_state(memory=torch.zeros(3, 1)), r"state.memory of shape \(3, 1\).*\(1, any\)"),
        (mixed(1, weights=torch.float64), "state.mix.weights .* torch.float64"),
        (lambda result: replace(result, converged=result.promoted), r"converged of shape \(1, 4\)"),
        (lambda result: replace(result, converged=torch.zeros(1)), "converged .* torch.float32"),
        (lambda result: replace(result, revised=None), "NoneType as its revised"),
        (lambda result: replace(result, promoted=torch.zeros(1, LENGTH)), "promoted .* torch.float32"),
        (lambda result: replace(result, confidence=torch.zeros(1, 1)), r"confidence of shape \(1, 1\)"),
        (in_state(tokens=torch.full((1, LENGTH), 48)), "token ids that are not below 48"),
        (in_state(tokens=torch.full((1, LENGTH), -7)), "token ids that are not below 48"),
        (mixed(2, token_id=48), "token ids that are not below 48"),
    ],
)
@pytest.mark.parametrize("trace", [False, True])
def test_a_result_that_is_none_fails_its_own_request_only(
    tiny_model: BlockDiffusionLM, spoil: Spoil, named: str, trace: bool
) -> None:
    [good] = rows_with([(3, 9)], CountingDecoder(), trace)
    [bad] = rows_with([(0, 12)], SpoilingDecoder(spoil=spoil), trace)
    bad.params = replace(bad.params, threshold=0.25)
    updates = run(tiny_model, [bad, good])
    assert good.ending is not None
    assert good.ending.token_ids == [23, 20, 21, 22, 23, 20, 21, 22, 23]
    assert isinstance(bad.failure, ContractError)
    assert re.search(named, str(bad.failure)), bad.failure
    assert bad.ending is None
    assert [update.finished for update in updates if update.request_id == bad.request_id] == [False] * 2 * trace + [
        True
    ]
    assert bad.passes <= 3


class NoTemperatureDecoder(CountingDecoder):
    def __getattribute__(self, name: str) -> Any:
        if name == "temperature":
            raise AttributeError(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize(
    ("decoder", "failure"),
    [
        (NoTemperatureDecoder(), "temperature"),
        (SpoilingDecoder(spoil=mixed(1, renormalize=torch.zeros(2))), "Boolean value of Tensor"),
        (SpoilingDecoder(spoil=unruly), "will not start again"),
    ],
)
def test_a_decoder_that_makes_the_engine_raise_fails_its_own_request_only(
    tiny_model: BlockDiffusionLM, decoder: CountingDecoder, failure: str
) -> None:
    [good] = rows_with([(0, 12)], CountingDecoder())
    [bad] = rows_with([(0, 12)], copy.deepcopy(decoder))
    bad.params = replace(bad.params, threshold=0.25)
    updates = run(tiny_model, [bad, good])
    assert good.ending is not None
    assert bad.ending is None
    assert failure in str(bad.failure)
    assert [update.request_id for update in updates if update.finished] == [bad.request_id, good.request_id]


def test_a_token_outside_the_vocabulary_fails_its_own_row_only(tiny_model: BlockDiffusionLM) -> None:
    def spoil(result: StepResult) -> StepResult:
        tokens = result.state.tokens.clone()
        tokens[0, 0] = 10**9
        return replace(result, state=replace(result.state, tokens=tokens))

    bad, good = rows_with([(0, 8), (0, 8)], SpoilingDecoder(spoil=spoil))
    run(tiny_model, [bad, good])
    assert isinstance(bad.failure, ContractError)
    assert good.ending is not None
    assert good.ending.token_ids == [20, 21, 22, 23] * 2


def test_a_preempted_row_goes_on_with_the_state_of_its_block(tiny_model: BlockDiffusionLM) -> None:
    lengths = [(0, 12), (0, 12), (0, 12)]
    alone, crowded = rows_with(lengths, CountingDecoder()), rows_with(lengths, CountingDecoder())
    run(tiny_model, alone)
    limits = {"pages": 4, "page_length": LENGTH, "max_batch_size": 8, "prefill_tokens": 64}
    engine = LLMEngine(tiny_model, config=EngineConfig(**limits))
    for row in crowded:
        engine.add(row)
    while engine.has_requests():
        engine.step()
    assert engine.stats().preemptions > 0
    assert [row.ending for row in crowded] == [row.ending for row in alone]
    assert [row.nfe for row in crowded] == [row.nfe for row in alone]


@pytest.mark.parametrize("name", ["block_length", "page_length", "max_batch_size", "prefill_tokens"])
def test_a_limit_below_one_is_named_before_there_is_an_engine(name: str) -> None:
    with pytest.raises(GenerationError, match=f"{name} is 0; it must be at least 1"):
        EngineConfig(**{name: 0})


def test_greedy_decoders_get_no_noise(tiny_model: BlockDiffusionLM) -> None:
    decoder = CountingDecoder()
    run(tiny_model, rows_with([(0, 4)], decoder))
    assert decoder.noises == [None] * 4


def test_noise_is_standard_gumbel_and_each_rows_own(tiny_model: BlockDiffusionLM) -> None:
    together, alone = CountingDecoder(temperature=1.0), CountingDecoder(temperature=1.0)
    run(tiny_model, rows_with([(0, 44), (3, 40), (2, 40)], together))
    run(tiny_model, rows_with([(0, 40), (3, 40)], alone)[1:])
    noise = torch.cat([draw[0].flatten() for draw in together.noises if draw is not None])
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.05)  # Euler's constant
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.1)
    for batched, single in zip(together.noises, alone.noises, strict=False):
        assert batched is not None
        assert single is not None
        torch.testing.assert_close(batched[1], single[0], rtol=0, atol=0)
    first = together.noises[0]
    assert first is not None
    assert not torch.equal(first[0], first[1])


@dataclass
class ScriptedDecoder(CountingDecoder):
    """Like its parent, but a follower that does not fall back waits; blocks converge when they are whole."""

    name: str = "scripted"
    multi_block: bool = True

    def step(self, logits: Tensor, state: BlockState, noise: Tensor | None = None) -> StepResult:
        result = super().step(logits, state, noise)
        if state.fallback is None:
            return result
        goes_B1 = state.fallback[:, None]
        masked = torch.where(goes_B1, result.state.masked, state.masked)
        tokens = torch.where(goes_B1, result.state.tokens, state.tokens)
        return replace(
            result,
            state=replace(result.state, tokens=tokens, masked=masked),
            promoted=result.promoted & goes_B1,
            converged=~masked.any(-1),
        )


def multi(prompt_length: int, gen_length: int, decoder: CountingDecoder, **rule: Any) -> Sequence:
    params = GenerationParams(gen_length=gen_length, block_length=LENGTH, trace=True, **rule)
    return Sequence(next(ids), [9] * prompt_length, params, StopRule((EOS,), gen_length), decoder)


def test_blocks_in_flight_overlap_and_become_final_in_order(tiny_model: BlockDiffusionLM) -> None:
    row = multi(0, 12, ScriptedDecoder(), buffer_size=2, add_threshold=0.5, semi_threshold=0.7)
    updates = run(tiny_model, [row])
    # Block 0 has one token a pass; block 1 joins after two and waits until block 0 has more than 0.7 of its tokens.
    assert [(r.pass_number, r.block, len(r.promoted), r.final) for r in row.trace] == [
        (1, 0, 1, False),
        (2, 0, 1, False),
        (3, 0, 1, False), (3, 1, 0, False),
        (4, 0, 1, True), (4, 1, 1, False),
        (5, 1, 1, False),
        (6, 1, 1, False), (6, 2, 0, False),
        (7, 1, 1, True), (7, 2, 1, False),
        (8, 2, 1, False),
        (9, 2, 1, False),
        (10, 2, 1, True),
    ]  # fmt: skip
    assert (row.passes, row.nfe, row.blocks) == (10, 10, 3), "a pass counts once, however many blocks it carries"
    assert [update.final_ids for update in updates if update.final_ids] == [[20, 21, 22, 23]] * 3
    assert row.ending is not None
    assert row.ending.token_ids == [20, 21, 22, 23] * 3


def test_no_block_begins_behind_the_end_of_the_answer(tiny_model: BlockDiffusionLM) -> None:
    row = multi(2, 5, ScriptedDecoder(), buffer_size=4, add_threshold=0.0, semi_threshold=0.0)
    run(tiny_model, [row])
    assert {record.block for record in row.trace} == {0, 1}
    assert row.ending is not None
    assert row.ending.token_ids == [22, 23, 20, 21, 22]


def test_blocks_in_flight_are_preempted_and_go_on_together(tiny_model: BlockDiffusionLM) -> None:
    rule = {"buffer_size": 2, "add_threshold": 0.25, "semi_threshold": 0.2}
    alone, crowded = ([multi(0, 16, ScriptedDecoder(), **rule) for _ in range(3)] for _ in range(2))
    for row in alone:
        run(tiny_model, [row])
    engine = engine_of(tiny_model, pages=5, page_length=LENGTH, max_batch_size=8, prefill_tokens=64)
    for row in crowded:
        engine.add(row)
    while engine.has_requests():
        engine.step()
    assert engine.stats().preemptions > 0
    assert [row.trace for row in crowded] == [row.trace for row in alone]
