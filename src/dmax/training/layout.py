"""The ``[noisy | clean]`` layout that block diffusion trains on (algorithm.md#training-layout), cut to what loss sees.

The published layout repeats the whole sequence twice. A noisy block without supervised positions reaches no loss, and
neither does a clean block that no noisy block looks back at; both are left out here, which changes no loss.

Shape suffixes: B rows, M noisy positions, N clean positions, S supervised positions of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from dmax.models.masks import noisy_clean_mask
from dmax.training.data import Example


@dataclass(frozen=True)
class Layout:
    """A batch of sequences, before any corruption."""

    noisy_ids: Tensor
    """``(B, M)`` int64, the true tokens at the noisy positions."""
    noisy_positions: Tensor
    """``(B, M)`` int64 absolute positions, -1 for padding."""
    supervised: Tensor
    """``(B, M)`` bool, the noisy positions that may be corrupted and carry loss."""
    clean_ids: Tensor
    """``(B, N)`` int64."""
    clean_positions: Tensor
    """``(B, N)`` int64 absolute positions, -1 for padding."""
    group_starts: Tensor
    """``(B, M)`` int64, the first block of the group that a noisy position's block is in."""
    block_length: int

    def mask(self) -> Tensor:
        """Return ``(B, M + N, M + N)`` bool, True where a query may attend to a key; made where the positions are."""
        return noisy_clean_mask(
            self.noisy_positions, self.clean_positions, self.block_length, group_starts=self.group_starts
        )

    def positions(self) -> Tensor:
        """Return ``(B, M + N)`` int64 position ids of ``[noisy | clean]``, padding at 0."""
        return torch.cat([self.noisy_positions, self.clean_positions], 1).clamp(min=0)

    def sources(self, shifted: bool) -> Tensor:
        """Return where the supervised tokens are read, ``(S,)`` int64: places in ``[noisy | clean]``, row behind row.

        Args:
            shifted: whether a token is read one position before its own. For the first one of a block, or of a group
                of blocks, that is a clean position, as it is a stored one in decoding (algorithm.md#shifted-logits).
        """
        rows, noisy = self.noisy_positions.shape
        place_BM = torch.arange(noisy, device=self.noisy_ids.device).expand(rows, -1)
        if shifted:
            before_BM = self.noisy_positions - 1
            is_neighbour_BM = (self.noisy_positions.roll(1, 1) == before_BM) & (place_BM > 0)
            is_neighbour_BM = is_neighbour_BM & (self.group_starts.roll(1, 1) == self.group_starts)
            clean_BM = torch.where(before_BM >= 0, noisy + before_BM, place_BM)
            place_BM = torch.where(is_neighbour_BM, place_BM - 1, clean_BM)
        first_B1 = torch.arange(rows, device=place_BM.device)[:, None] * (noisy + self.clean_ids.shape[1])
        return (first_B1 + place_BM)[self.supervised]

    def to(self, device: torch.device) -> Layout:
        """Return the same batch on a device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "block_length"}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


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
        """Return the same batch on a device."""
        return replace(self, layout=self.layout.to(device), hidden=self.hidden.to(device, non_blocking=True))


def lay_out(examples: Sequence[Example], block_length: int, pad_token_id: int, multiple: int = 1) -> Layout:
    """Arrange examples as one batch, every noisy block a group of its own.

    Args:
        examples: sequences whose length is a whole number of blocks.
        block_length: tokens in a block.
        pad_token_id: token at padding positions, which nothing attends to.
        multiple: both halves are padded to a multiple of this, to keep the number of distinct shapes small.
    """
    rows = [_cut(example, block_length) for example in examples]
    noisy_length = _round_up(max(len(noisy) for noisy, _ in rows), multiple)
    clean_length = _round_up(max(clean for _, clean in rows), multiple)
    noisy_positions = torch.full((len(rows), noisy_length), -1)
    clean_positions = torch.full((len(rows), clean_length), -1)
    noisy_ids = torch.full((len(rows), noisy_length), pad_token_id)
    clean_ids = torch.full((len(rows), clean_length), pad_token_id)
    supervised = torch.zeros(len(rows), noisy_length, dtype=torch.bool)
    for row, (example, (noisy, clean)) in enumerate(zip(examples, rows, strict=True)):
        tokens = torch.tensor(example.token_ids)
        noisy_positions[row, : len(noisy)] = noisy
        noisy_ids[row, : len(noisy)] = tokens[noisy]
        supervised[row, : len(noisy)] = torch.tensor(example.supervised)[noisy]
        clean_positions[row, :clean] = torch.arange(clean)
        clean_ids[row, :clean] = tokens[:clean]
    group_starts = noisy_positions // block_length
    return Layout(noisy_ids, noisy_positions, supervised, clean_ids, clean_positions, group_starts, block_length)


def _cut(example: Example, block_length: int) -> tuple[Tensor, int]:
    """Return positions of the noisy half, and how many clean tokens the last noisy block looks back at."""
    supervised = torch.tensor(example.supervised)
    assert supervised.any() and len(supervised) % block_length == 0
    has_loss = supervised.view(-1, block_length).any(1)
    noisy = has_loss.repeat_interleave(block_length).nonzero().flatten()
    return noisy, int(noisy[-1]) // block_length * block_length


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
