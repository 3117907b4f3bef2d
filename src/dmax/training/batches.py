"""From an endless stream of examples to batches, every one a function of (recipe, position in the run)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from dmax.training.data import Example, Source, generator_for, pad_to_block
from dmax.training.layout import Batch, Layout, lay_out
from dmax.training.objectives.base import Objective
from dmax.training.objectives.registry import get_objective
from dmax.training.recipe import Recipe
from dmax.training.section import RecipeError

POOL = 32
"""Batches whose examples are sorted by length together, so that rows of one batch need little padding."""
NEIGHBOURS = 2
"""Batches of similar length that stay next to each other, so that processes in step wait little for one another."""
SHAPE_MULTIPLE = 16

_ORDER = 2


class Batches:
    """Batches of one run, addressed by the number of their forward pass, counted over steps and processes.

    Rows are addressed by an index of their own. It is the example's where an objective makes one row of each; where it
    makes several, they follow one another. Noise is a function of the seed and the row's index.

    Args:
        source: of the examples.
        objective: what hides them.
        rows: examples of a batch.
        context: longest example, in tokens; longer ones are dropped.
        eos_token_id: fills blocks and rows.
        seed: of the run.
        passes_per_step: forward passes of an optimiser step, over all processes.
    """

    def __init__(
        self,
        source: Source,
        objective: Objective[Any],
        *,
        rows: int,
        context: int,
        eos_token_id: int,
        seed: int,
        passes_per_step: int,
    ) -> None:
        self.source = source
        self.objective = objective
        self.rows = rows
        self.context = context
        self.eos_token_id = eos_token_id
        self.seed = seed
        self.passes_per_step = passes_per_step
        self._pool_number = -1
        self._pool: list[list[tuple[int, Example]]] = []
        self.dropped = 0

    @classmethod
    def of(cls, recipe: Recipe, source: Source, eos_token_id: int) -> Batches:
        """Make the batches of a recipe's run.

        Raises:
            RecipeError: of the rows of its first batches, none is short enough to train on.
        """
        batches = cls(
            source,
            get_objective(recipe.objective),
            rows=recipe.train.rows,
            context=recipe.train.context,
            eos_token_id=eos_token_id,
            seed=recipe.seed,
            passes_per_step=recipe.train.accumulation,
        )
        if not any(True for _ in batches._members(0)):
            raise batches._nothing_fits()
        return batches

    def batch(self, number: int) -> Batch:
        """Return the batch of forward pass ``number``."""
        lengths = self.objective.options.block_lengths_at(number // self.passes_per_step)
        block_length = lengths[number % len(lengths)]
        pool_number, place = divmod(number, POOL)
        if pool_number != self._pool_number:
            self._pool, self._pool_number = self._build_pool(pool_number), pool_number
        members = self._pool[place]
        examples = [pad_to_block(example, block_length, self.eos_token_id) for _, example in members]
        layout = lay_out(examples, block_length, self.eos_token_id, SHAPE_MULTIPLE)
        indices = tuple(index for index, _ in members)
        layout, hidden = self.objective.corrupt(layout, self.seed, indices)
        return Batch(layout, hidden, indices, int(layout.supervised.sum()))

    def _build_pool(self, pool_number: int) -> list[list[tuple[int, Example]]]:
        members = sorted(self._members(pool_number), key=lambda member: len(member[1].token_ids))
        if not members:
            raise self._nothing_fits()
        self.dropped += POOL * self.rows - len(members)
        starts = [i * len(members) // POOL for i in range(POOL + 1)]
        # Where fewer rows than batches are left, some batches share a row.
        chunks = [members[start : max(end, start + 1)] for start, end in pairwise(starts)]
        generator = generator_for(self.seed, pool_number, _ORDER)
        order = torch.randperm(POOL // NEIGHBOURS, generator=generator).tolist()
        within = [torch.randperm(NEIGHBOURS, generator=generator).tolist() for _ in order]
        return [chunks[i * NEIGHBOURS + place] for i, places in zip(order, within, strict=True) for place in places]

    def _members(self, pool_number: int) -> Iterator[tuple[int, Example]]:
        size = POOL * self.rows
        for i in range(pool_number * size, (pool_number + 1) * size):
            example = self.source.example(i // self.objective.rows_per_example)
            if self._fits(example):
                yield i, example

    def _nothing_fits(self) -> RecipeError:
        return RecipeError(
            f"{POOL * self.rows} rows in a row have no answer or are longer than train.context, {self.context} tokens; "
            f"raise it, or give shorter data."
        )

    def _fits(self, example: Example) -> bool:
        return any(example.supervised) and len(example.token_ids) <= self.context


def stream(batches: Batches, first: int, stride: int, workers: int) -> Iterator[Batch]:
    """Yield the batches of forward passes ``first``, ``first + stride`` and so on, without end.

    Args:
        batches: of the run.
        first: number of the first.
        stride: forward passes from one to the next: the number of processes that train together.
        workers: processes that prepare them ahead, a pool at a time; 0 prepares each when it is asked for.
    """
    shares = _Shares(batches, first, stride)
    if not workers:
        return (batches.batch(number) for share in range(len(shares)) for number in shares.numbers(share))
    # The default way of sharing memory takes a file descriptor a tensor, of which there are not enough.
    torch.multiprocessing.set_sharing_strategy("file_system")
    loader = DataLoader(shares, batch_size=None, num_workers=workers, prefetch_factor=1)
    return (batch for share in loader for batch in share)


class _Shares(Dataset[list[Batch]]):
    """What one process reads of every pool, from a first batch on."""

    def __init__(self, batches: Batches, first: int, stride: int) -> None:
        self._batches = batches
        self._first = first
        self._stride = stride

    def __len__(self) -> int:
        return 2**40  # without end, as the examples are

    def __getitem__(self, share: int) -> list[Batch]:
        return [self._batches.batch(number) for number in self.numbers(share)]

    def numbers(self, share: int) -> range:
        """Yield the forward passes of a share; the first share may begin in the middle of a pool."""
        pool = self._first // POOL + share
        begin = max(pool * POOL, self._first)
        begin += (self._first - begin) % self._stride
        return range(begin, (pool + 1) * POOL, self._stride)


def exact_layouts(examples: Sequence[Example], rows: int, eos_token_id: int) -> Iterator[Layout]:
    """Return layouts with blocks of one token, in which a fully masked noisy half is greedy left-to-right decoding."""
    for start in range(0, len(examples), rows):
        yield lay_out(examples[start : start + rows], 1, eos_token_id, SHAPE_MULTIPLE)
