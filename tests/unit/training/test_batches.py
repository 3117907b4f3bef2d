"""Batches are functions of their number, whoever prepares them and wherever a run goes on."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from dmax.training.batches import POOL, Batches, stream
from dmax.training.data import Example
from dmax.training.layout import Batch
from dmax.training.objectives.registry import BuiltInSection, get_objective
from dmax.training.section import RecipeError


class Counting:
    """Example ``i`` has a length and tokens that tell it from its neighbours."""

    def example(self, index: int) -> Example:
        length = 6 + index % 11
        return Example(tuple(2 + (index + place) % 50 for place in range(length)), tuple(i > 2 for i in range(length)))


def batches(objective: BuiltInSection | None = None, passes_per_step: int = 1) -> Batches:
    hides = get_objective(objective or BuiltInSection(kind="oput", block_length=8))
    return Batches(
        Counting(), hides, rows=2, context=14, eos_token_id=1, seed=3, passes_per_step=passes_per_step
    )  # fmt: skip


def same(ours: Batch, theirs: Batch) -> bool:
    return ours.indices == theirs.indices and all(
        torch.equal(a, b)
        for a, b in [
            (ours.layout.noisy_ids, theirs.layout.noisy_ids),
            (ours.layout.positions(), theirs.layout.positions()),
            (ours.hidden, theirs.hidden),
        ]
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_the_batches_of_its_numbers(workers: int) -> None:
    first = POOL - 3  # in the middle of a pool, as a resumed run begins
    streamed = list(islice(stream(batches(), first, 1, workers), POOL + 10))
    one_by_one = batches()
    assert all(same(got, one_by_one.batch(first + i)) for i, got in enumerate(streamed))
    assert not same(streamed[0], streamed[1])


def test_processes_share_the_batches_between_them() -> None:
    whole = list(islice(stream(batches(), 6, 1, 0), 2 * POOL))
    for rank in (0, 1):
        own = islice(stream(batches(), 6 + rank, 2, 0), POOL)
        assert all(same(got, whole[2 * i + rank]) for i, got in enumerate(own))


def test_the_alternate_form_reads_every_example_once_for_each_loss() -> None:
    alternate = batches(BuiltInSection(kind="oput", block_length=8, form="alternate"))
    drawn = [alternate.batch(number) for number in range(POOL)]
    source = Counting()
    for batch in drawn:
        for row, index in enumerate(batch.indices):
            example = source.example(index // 2)
            positions = batch.layout.noisy_positions[row]
            there = (positions >= 0) & (positions < len(example.token_ids))
            assert batch.layout.noisy_ids[row][there].tolist() == [example.token_ids[i] for i in positions[there]]
    indices = [index for batch in drawn for index in batch.indices]
    fitting = [i for i in range(2 * POOL) if len(source.example(i // 2).token_ids) <= 14]
    assert sorted(indices) == fitting
    assert any(sum(index % 2 for index in batch.indices) == 1 for batch in drawn), "no batch holds rows of both losses"


def test_the_block_grows_with_the_steps() -> None:
    stages = [{"step": 0, "block_length": 2}, {"step": 5, "block_length": 8}]
    growing = batches(BuiltInSection.model_validate({"kind": "masked", "block_length": stages}), passes_per_step=4)
    assert [growing.batch(number).layout.block_length for number in (0, 19, 20)] == [2, 2, 8]


def test_block_lengths_take_turns() -> None:
    """Blocks of one token are hidden whole, whatever the noise: a token that is shown teaches nothing there."""
    stages = [{"step": 0, "block_length": 2}, {"step": 1, "block_length": [1, 4]}]
    objective = {"kind": "masked", "block_length": stages, "noise": [0.0, 0.5]}
    mixed = batches(BuiltInSection.model_validate(objective), passes_per_step=2)
    drawn = [mixed.batch(number) for number in range(6)]
    assert [batch.layout.block_length for batch in drawn] == [2, 2, 1, 4, 1, 4]
    assert all((batch.hidden == batch.layout.supervised).all() == (batch.layout.block_length == 1) for batch in drawn)


def test_a_mask_ratio_may_be_drawn_for_every_example() -> None:
    objective = BuiltInSection(kind="oput", block_length=8, mask_ratio=(0.0, 1.0))
    drawn = [batch for number in range(POOL) for batch in [batches(objective).batch(number)]]
    shares = {
        float(hidden.sum() / supervised.sum())
        for batch in drawn
        for hidden, supervised in zip(batch.hidden, batch.layout.supervised, strict=True)
    }
    assert min(shares) < 0.2
    assert max(shares) > 0.8
    fixed = BuiltInSection(kind="oput", block_length=8, mask_ratio=(1.0, 1.0))
    batch = batches(fixed).batch(0)
    assert torch.equal(batch.hidden, batch.layout.supervised)


@pytest.mark.parametrize("kind", ["masked", "oput"])
def test_blocks_may_keep_a_decoded_prefix(kind: str) -> None:
    """With all else hidden, what a block shows is a prefix of what it has to produce."""
    objective = {"kind": kind, "block_length": 8, "noise": [1.0, 1.0], "mask_ratio": 1.0, "prefix_share": 1.0}
    batch = batches(BuiltInSection.model_validate(objective)).batch(0)
    shown = batch.layout.supervised & ~batch.hidden
    assert shown.any()
    for flags, supervised in zip(shown.view(-1, 8).tolist(), batch.layout.supervised.view(-1, 8).tolist(), strict=True):
        inside = [flag for flag, counts in zip(flags, supervised, strict=True) if counts]
        assert inside == sorted(inside, reverse=True)


@pytest.mark.parametrize("rows", [1, 2])
def test_no_batch_is_empty_where_most_rows_are_too_long(rows: int) -> None:
    few = Batches(
        Counting(), get_objective(BuiltInSection(kind="oput", block_length=8)),
        rows=rows, context=7, eos_token_id=1, seed=3, passes_per_step=1,
    )  # fmt: skip
    drawn = [few.batch(number) for number in range(2 * POOL)]
    assert all(1 <= len(batch.indices) <= rows and batch.hidden.any() for batch in drawn)
    assert {len(Counting().example(index).token_ids) for batch in drawn for index in batch.indices} == {6, 7}


def test_rows_that_are_all_too_long_are_refused_in_one_sentence() -> None:
    none = Batches(
        Counting(), get_objective(BuiltInSection(kind="oput", block_length=8)),
        rows=2, context=5, eos_token_id=1, seed=3, passes_per_step=1,
    )  # fmt: skip
    with pytest.raises(RecipeError, match=r"longer than train\.context, 5 tokens; raise it"):
        none.batch(0)
