"""From an endless stream of examples to batches, every one a function of (recipe, position in the run)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dmax.training.corruption import block_mask, uniform_tokens
from dmax.training.data import Example, Source, generator_for, pad_to_block
from dmax.training.layout import Layout, lay_out
from dmax.training.multi_block import draw_groups
from dmax.training.recipe import ObjectiveSection, Recipe

POOL = 32
"""Batches whose examples are sorted by length together, so that rows of one batch need little padding."""
NEIGHBOURS = 2
"""Batches of similar length that stay next to each other, so that processes in step wait little for one another."""
SHAPE_MULTIPLE = 16

_NOISE, _ORDER = 1, 2


@dataclass(frozen=True)
class Batch:
    """A layout, which of its noisy positions to corrupt, and where its rows came from."""

    layout: Layout
    hidden: Tensor
    """``(B, M)`` bool."""
    indices: tuple[int, ...]
    """Of the rows in the run."""
    num_supervised: int
    """Supervised positions of all rows."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return replace(self, layout=self.layout.to(device), hidden=self.hidden.to(device, non_blocking=True))


class Batches:
    """Batches of one run, addressed by the number of their forward pass, counted over steps and processes.

    Rows are addressed by an index of their own. It is the example's, but for the alternate form of OPUT, in which every
    example gives two rows in turn, one for each loss. Noise is a function of the seed and the row's index.

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
        objective: ObjectiveSection,
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
        """The batches of a recipe's run."""
        return cls(
            source,
            recipe.objective,
            rows=recipe.train.rows,
            context=recipe.train.context,
            eos_token_id=eos_token_id,
            seed=recipe.seed,
            passes_per_step=recipe.train.accumulation,
        )

    def batch(self, number: int) -> Batch:
        """The batch of forward pass ``number``."""
        lengths = self.objective.block_lengths_at(number // self.passes_per_step)
        block_length = lengths[number % len(lengths)]
        pool_number, place = divmod(number, POOL)
        if pool_number != self._pool_number:
            self._pool, self._pool_number = self._build_pool(pool_number), pool_number
        members = self._pool[place]
        examples = [pad_to_block(example, block_length, self.eos_token_id) for _, example in members]
        layout = lay_out(examples, block_length, self.eos_token_id, SHAPE_MULTIPLE)
        indices = tuple(index for index, _ in members)
        if self.objective.group is not None:
            layout, hidden = draw_groups(layout, self.objective.group, self.seed, indices)
        else:
            hidden = torch.stack([self._hide(layout, row, index) for row, index in enumerate(indices)])
        return Batch(layout, hidden, indices, int(layout.supervised.sum()))

    def _build_pool(self, pool_number: int) -> list[list[tuple[int, Example]]]:
        size = POOL * self.rows
        rows = range(pool_number * size, (pool_number + 1) * size)
        candidates = ((i, self.source.example(i // self.objective.rows_per_example)) for i in rows)
        members = [(i, example) for i, example in candidates if self._fits(example)]
        self.dropped += size - len(members)
        members.sort(key=lambda member: len(member[1].token_ids))
        chunks = [members[i * len(members) // POOL : (i + 1) * len(members) // POOL] for i in range(POOL)]
        generator = generator_for(self.seed, pool_number, _ORDER)
        order = torch.randperm(POOL // NEIGHBOURS, generator=generator).tolist()
        within = [torch.randperm(NEIGHBOURS, generator=generator).tolist() for _ in order]
        return [chunks[i * NEIGHBOURS + place] for i, places in zip(order, within, strict=True) for place in places]

    def _fits(self, example: Example) -> bool:
        return any(example.supervised) and len(example.token_ids) <= self.context

    def _hide(self, layout: Layout, row: int, index: int) -> Tensor:
        generator = generator_for(self.seed, index, _NOISE)
        if self.objective.kind == "masked":
            if layout.block_length == 1:
                return layout.supervised[row]
            noise = self.objective.noise
        else:
            ratio = self.objective.mask_ratio
            if isinstance(ratio, tuple):
                ratio = ratio[0] + (ratio[1] - ratio[0]) * torch.rand((), generator=generator).item()
            noise = ratio, ratio
        blocks = layout.noisy_positions[row] // layout.block_length
        return block_mask(layout.supervised[row], blocks, noise, self.objective.prefix_share, generator)

    def random_tokens(self, batch: Batch, vocab_size: int) -> Tensor:
        """``(B, M)`` int64: the true tokens, the corrupted positions filled with uniformly random ones."""
        device = batch.hidden.device
        rows = [
            uniform_tokens(hidden, ids, vocab_size, generator_for(self.seed, index, _NOISE, _NOISE))
            for hidden, ids, index in zip(batch.hidden.cpu(), batch.layout.noisy_ids.cpu(), batch.indices, strict=True)
        ]
        return torch.stack(rows).to(device)


def stream(batches: Batches, first: int, stride: int, workers: int) -> Iterator[Batch]:
    """The batches of forward passes ``first``, ``first + stride`` and so on, without end.

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
        """The forward passes of a share; the first share may begin in the middle of a pool."""
        pool = self._first // POOL + share
        begin = max(pool * POOL, self._first)
        begin += (self._first - begin) % self._stride
        return range(begin, (pool + 1) * POOL, self._stride)


def exact_layouts(examples: Sequence[Example], rows: int, eos_token_id: int) -> Iterator[Layout]:
    """Layouts with blocks of one token, in which a fully masked noisy half is greedy left-to-right decoding."""
    for start in range(0, len(examples), rows):
        yield lay_out(examples[start : start + rows], 1, eos_token_id, SHAPE_MULTIPLE)
