"""MultiTF: training on several noisy blocks in a row, as blocks in flight are read (algorithm.md#multitf).

The noisy blocks of an example are cut into groups of consecutive blocks, and mask ratios are drawn group by group.
Which attention follows from the groups is :func:`dmax.models.masks.noisy_clean_mask`; the losses are those of
:mod:`dmax.training.objectives`, unchanged.

Shape suffixes: B rows, M noisy positions, K noisy blocks of one example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from dmax.training.data import generator_for
from dmax.training.layout import Layout
from dmax.training.section import Section, Share

Schedule = Literal["chain", "monotonic", "random"]

_CUT, _SIZES, _NOISE = 5, 6, 7


class GroupSection(Section):
    """Several noisy blocks in a row, for decoding with blocks in flight (MultiTF, algorithm.md#multitf)."""

    size: int = Field(default=2, ge=2)
    """Most blocks of a group: the ``buffer_size`` to train for."""
    layout: Literal["systematic", "random", "both"] = "systematic"
    """Groups of 2 to ``size`` blocks in every shift, or of random sizes, or as many of these as of those."""
    schedule: Schedule = "chain"
    """How mask ratios follow one another within a group (see :func:`mask_ratios`)."""
    t_low: Share = 0.001
    t_high: Share = 1.0
    rho: Share = 0.01
    """Share of the range from ``t_low`` to ``t_high`` that is cut off at its top."""
    prefix_share: Share = 0.0
    """Probability that a block hides its last positions instead of random ones, as blocks look while decoded."""

    @model_validator(mode="after")
    def _range_rises(self) -> GroupSection:
        if self.t_low > self.t_high:
            raise ValueError("t_low must not be above t_high")
        return self

    @property
    def t_highest(self) -> float:
        """The highest mask ratio drawn (``t_eff``)."""
        return self.t_high - self.rho * (self.t_high - self.t_low)


def draw_groups(layout: Layout, settings: GroupSection, seed: int, indices: Sequence[int]) -> tuple[Layout, Tensor]:
    """Cut the noisy blocks of a batch into groups, and hide what the schedule hides.

    Args:
        layout: the batch, every block a group of its own.
        settings: the recipe's ``objective.group``.
        seed: of the run.
        indices: of the rows' examples in the run, all epochs counted; what is drawn depends on them and the seed alone.

    Returns:
        The same layout in groups, and ``(B, M)`` bool, which positions are hidden.
    """
    starts_BM, hidden_BM = torch.full_like(layout.group_starts, -1), torch.zeros_like(layout.supervised)
    for row, index in enumerate(indices):
        real = slice(int((layout.noisy_positions[row] >= 0).sum()))
        blocks_M = layout.noisy_positions[row, real] // layout.block_length
        starts_BM[row, real] = draw_cut(blocks_M, settings, seed, index)
        hidden_BM[row, real] = group_mask(
            layout.supervised[row, real], blocks_M, starts_BM[row, real], settings, generator_for(seed, index, _NOISE)
        )
    return replace(layout, group_starts=starts_BM), hidden_BM


def draw_cut(blocks_M: Tensor, settings: GroupSection, seed: int, index: int) -> Tensor:
    """Cut the noisy blocks of one example into groups.

    Args:
        blocks_M: ``(M,)`` int64, the block each noisy position is in, rising.
        settings: the recipe's ``objective.group``.
        seed: of the run.
        index: of the example in the run, all epochs counted.

    Returns:
        ``(M,)`` int64, the first block of the group each position is in.
    """
    blocks_K, block_of_M = torch.unique_consecutive(blocks_M, return_inverse=True)
    cut = choose_cut(settings, seed, index)
    if cut is None:
        opens_K = random_cut(len(blocks_K), settings.size, generator_for(seed, index, _SIZES))
    else:
        opens_K = systematic_cut(len(blocks_K), *cut)
    return group_starts(blocks_K, opens_K)[block_of_M]


def choose_cut(settings: GroupSection, seed: int, index: int) -> tuple[int, int] | None:
    """Choose size and shift of an example's groups, or None where sizes are random.

    The systematic cuts are every size from 2 to the largest in every shift (0 to size - 1). As many consecutive
    examples as there are cuts have each of them once, in an order drawn anew every time; the published code gives every
    example all of them in one step, which comes to the same over many examples and needs more memory.
    """
    cuts: list[tuple[int, int] | None] = []
    if settings.layout != "random":
        cuts += [(size, shift) for size in range(2, settings.size + 1) for shift in range(size)]
    if settings.layout != "systematic":
        cuts += [None] * max(len(cuts), 1)
    turn, place = divmod(index, len(cuts))
    order = torch.randperm(len(cuts), generator=generator_for(seed, turn, _CUT))
    return cuts[int(order[place])]


def systematic_cut(num_blocks: int, size: int, shift: int) -> Tensor:
    """Cut groups of ``size`` blocks, the first whole one from block ``shift``: ``(K,)`` bool, where groups open.

    The blocks before ``shift`` are a group too, and so is what remains at the end; both may be smaller.
    """
    opens_K = (torch.arange(num_blocks) - shift) % size == 0
    opens_K[:1] = True
    return opens_K


def random_cut(num_blocks: int, largest: int, generator: torch.Generator) -> Tensor:
    """Cut groups of random sizes in random order: ``(K,)`` bool, where groups open.

    Sizes are uniform on 2 to ``largest``, but for one on 1 to ``largest`` (without it, groups of two would always pair
    the same blocks of an example) and one that is what remains.
    """
    sizes = torch.randint(2, largest + 1, (num_blocks,), generator=generator)
    sizes[:1] = torch.randint(1, largest + 1, (1,), generator=generator)
    ends = sizes.cumsum(0).clamp(max=num_blocks)
    sizes = ends.diff(prepend=ends.new_zeros(1))
    sizes = sizes[sizes > 0]
    sizes = sizes[torch.randperm(len(sizes), generator=generator)]
    opens_K = torch.zeros(num_blocks, dtype=torch.bool)
    opens_K[sizes.cumsum(0) - sizes] = True
    return opens_K


def group_starts(blocks_K: Tensor, opens_K: Tensor) -> Tensor:
    """Return the first block of every block's group: ``(K,)`` int64.

    A group also ends where the next noisy block is not the next block of the sequence: blocks in flight are
    consecutive.
    """
    opens_K = opens_K.clone()
    opens_K[1:] |= blocks_K.diff() != 1
    return torch.where(opens_K, blocks_K, -1).cummax(0).values


def group_mask(
    supervised_M: Tensor, blocks_M: Tensor, starts_M: Tensor, settings: GroupSection, generator: torch.Generator
) -> Tensor:
    """Hide positions of one example, block by block at the ratios of the schedule.

    A block hides random positions, or, with the probability ``prefix_share``, its last ones. At least one position is
    hidden, so that every objective has something to predict.

    Args:
        supervised_M: ``(M,)`` bool.
        blocks_M: ``(M,)`` int64, the block each noisy position is in, rising.
        starts_M: ``(M,)`` int64, of :func:`draw_cut`.
        settings: the recipe's ``objective.group``.
        generator: source of randomness.

    Returns:
        ``(M,)`` bool.
    """
    blocks_K, block_of_M, lengths_K = torch.unique_consecutive(blocks_M, return_inverse=True, return_counts=True)
    offsets_K = lengths_K.cumsum(0) - lengths_K
    group_of_K = torch.unique_consecutive(starts_M[offsets_K], return_inverse=True)[1]
    ratios_K = mask_ratios(group_of_K, settings.schedule, settings.t_low, settings.t_highest, generator)
    supervised_K = torch.zeros(len(blocks_K), dtype=torch.int64).index_add(0, block_of_M, supervised_M.long())
    counts_K = (supervised_K * ratios_K).floor().long()
    if not counts_K.any():
        counts_K[supervised_K.argmax()] = 1
    order_M = torch.rand(len(blocks_M), generator=generator, dtype=torch.float64)
    if settings.prefix_share:
        from_behind_M = torch.linspace(1, 0, len(blocks_M) + 1, dtype=torch.float64)[1:]
        keeps_prefix_K = torch.rand(len(blocks_K), generator=generator) < settings.prefix_share
        order_M = torch.where(keeps_prefix_K[block_of_M], from_behind_M, order_M)
    keys_M = 2 * block_of_M + ~supervised_M + order_M
    places_M = keys_M.argsort().argsort() - offsets_K[block_of_M]  # supervised positions first, in the order drawn
    return places_M < counts_K[block_of_M]


def mask_ratios(
    group_of_K: Tensor, schedule: Schedule, lowest: float, highest: float, generator: torch.Generator
) -> Tensor:
    """Draw the mask ratios of the blocks of one example, group by group.

    * ``chain``: ``l ~ U(lowest, highest)`` for a group, then for each of its blocks ``t ~ U(l, highest)``, ``l = t``;
      later blocks are noisier, as they are in flight.
    * ``monotonic``: independent ``t ~ U(lowest, highest)``, in rising order within a group.
    * ``random``: independent ``t ~ U(lowest, highest)``.

    Args:
        group_of_K: ``(K,)`` int64, which group a block is in, counted from 0.
        schedule: one of the above.
        lowest: of all ratios.
        highest: of all ratios.
        generator: source of randomness.

    Returns:
        ``(K,)`` float64.
    """
    draws_K = torch.rand(len(group_of_K), generator=generator, dtype=torch.float64)
    if schedule == "chain":
        first_draws_K = torch.rand(len(group_of_K), generator=generator, dtype=torch.float64)
        draws_K = _chain(group_of_K.tolist(), draws_K.tolist(), first_draws_K.tolist())
    elif schedule == "monotonic":
        draws_K = (group_of_K + draws_K).sort().values - group_of_K
    return lowest + (highest - lowest) * draws_K


def _chain(groups: list[int], draws: list[float], first_draws: list[float]) -> Tensor:
    """Draw rising numbers from 0 to 1 within every group: each uniform between the one before it and 1."""
    ratios: list[float] = []
    for place, (group, draw) in enumerate(zip(groups, draws, strict=True)):
        opens = place == 0 or groups[place - 1] != group
        low = first_draws[group] if opens else ratios[-1]
        ratios.append(low + (1 - low) * draw)
    return torch.tensor(ratios, dtype=torch.float64)
