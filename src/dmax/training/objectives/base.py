"""What a training objective is: it corrupts batches and gives the losses on them.

Shape suffixes: B rows, M noisy positions, V vocabulary, S supervised positions of the batch (flattened).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from dmax.decoding.base import SoftMix
from dmax.models.config import ModelConfig
from dmax.training.corruption import block_mask
from dmax.training.data import generator_for
from dmax.training.layout import Batch, Layout
from dmax.training.multi_block import draw_groups
from dmax.training.objectives.options import CommonOptions, ObjectiveSection, Own

NOISE = 1
"""Part of the key of the random numbers that say what is hidden."""


class Predict(Protocol):
    """The model as objectives see it."""

    def __call__(self, noisy_ids: Tensor, layout: Layout, mix: SoftMix | None = None) -> Tensor:
        """Return float32 logits ``(S, V)`` at the supervised noisy positions, in row order.

        Args:
            noisy_ids: ``(B, M)`` int64.
            layout: the batch.
            mix: ``(B, M)``, what some of the noisy positions read instead of their tokens.
        """
        ...


Options = TypeVar("Options", bound=CommonOptions)


@dataclass(frozen=True)
class LossPart:
    """One term of an objective, ready for its own backward pass."""

    name: str
    loss: Tensor
    """Scalar, mean cross-entropy in nats over the term's positions (plus the term's regulariser, if any)."""
    tallies: dict[str, Tensor]
    """What is reported, each as ``(2,)`` float32: a sum and the number of positions that it is over."""


@dataclass(frozen=True)
class Pass:
    """Where in a run a batch is read, and by which model."""

    number: int
    """Of the forward pass, counted over steps and processes."""
    seed: int
    """Of the run."""
    config: ModelConfig


class Objective(ABC, Generic[Options]):
    """A training objective; its options are all that it keeps, so that a run can go on anywhere.

    A package adds one through the entry-point group ``dmax.objectives``. By default each row hides supervised
    positions at the recipe's ``mask_ratio``, or in groups of blocks where the recipe asks for these.

    Args:
        options: the recipe's ``objective`` section.
    """

    name: ClassVar[str]
    """The section's ``kind``."""
    section: ClassVar[type[CommonOptions]] = ObjectiveSection
    """The options that a recipe may give, a subclass of :class:`ObjectiveSection`."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @classmethod
    def check(cls, section: CommonOptions) -> None:
        """Refuse what a recipe's section asks for and this objective does not do.

        Raises:
            ValueError: a key is another objective's own, or goes against what this one does.
        """
        for name, field in type(section).model_fields.items():
            own = next((mark for mark in field.metadata if isinstance(mark, Own)), None)
            given = name in section.model_fields_set and getattr(section, name) is not None
            if own is not None and given and name not in cls.section.model_fields:
                raise ValueError(own.refusal)

    @property
    def rows_per_example(self) -> int:
        """How many rows each example gives, one after the other."""
        return 1

    @property
    def forwards_of_a_batch(self) -> int:
        """Forward passes that a batch costs, a backward pass counted as two, recomputation not counted."""
        return 3

    def corrupt(self, layout: Layout, seed: int, indices: Sequence[int]) -> tuple[Layout, Tensor]:
        """Choose what of a batch is corrupted, as a function of the seed and of each row's index alone.

        Args:
            layout: the batch, every block a group of its own.
            seed: of the run.
            indices: of the rows in the run.

        Returns:
            The layout, in other groups where they are asked for, and ``(B, M)`` bool: the positions to corrupt.
        """
        group = getattr(self.options, "group", None)
        if group is not None:
            return draw_groups(layout, group, seed, indices)
        return layout, torch.stack([self._hide(layout, row, seed, index) for row, index in enumerate(indices)])

    @abstractmethod
    def losses(self, predict: Predict, batch: Batch, where: Pass) -> Iterator[LossPart]:
        """Yield the losses of a batch; each may be run backward before the next is computed.

        Args:
            predict: the model.
            batch: what :meth:`corrupt` chose, on the model's device.
            where: the pass.
        """

    def _hide(self, layout: Layout, row: int, seed: int, index: int) -> Tensor:
        """Return the positions that one row hides: ``(M,)`` bool."""
        generator = generator_for(seed, index, NOISE)
        blocks = layout.noisy_positions[row] // layout.block_length
        noise = self._noise(generator)
        return block_mask(layout.supervised[row], blocks, noise, self.options.prefix_share, generator)

    def _noise(self, generator: torch.Generator) -> tuple[float, float]:
        """Return the lowest and the highest mask ratio of an example's blocks."""
        ratio = self.options.mask_ratio
        if isinstance(ratio, tuple):
            ratio = ratio[0] + (ratio[1] - ratio[0]) * torch.rand((), generator=generator).item()
        return ratio, ratio


def supervised(layout: Layout, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Return the targets, and which of them are corrupted, at the supervised positions: ``(S,)`` each."""
    return layout.noisy_ids[layout.supervised], hidden[layout.supervised]


def tallies(
    name: str, loss: Tensor, logits_SV: Tensor, targets_S: Tensor, hidden_S: Tensor, counted_S: Tensor | None = None
) -> dict[str, Tensor]:
    """Tally the loss over the counted positions (all of them if not given), accuracy over the corrupted ones."""
    positions = torch.tensor(float(targets_S.numel())) if counted_S is None else counted_S.sum().float()
    positions = positions.to(loss.device)
    right_S = logits_SV.detach().argmax(-1) == targets_S
    return {
        f"loss_{name}": torch.stack([loss.detach() * positions, positions]),
        f"accuracy_{name}": share(right_S & hidden_S, hidden_S),
    }


def share(part: Tensor, whole: Tensor) -> Tensor:
    """Return two counts as one tally, ``(2,)`` float32."""
    return torch.stack([part.sum(), whole.sum()]).float()
