"""The keys of a recipe's ``objective`` section that every objective has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from dmax.training.multi_block import GroupSection
from dmax.training.section import Section, Share

BlockLength = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Own:
    """Mark a key that objectives without it refuse; others are left unread, so that a recipe can change its kind."""

    refusal: str
    """What is said where another objective is given the key."""


class BlockLengthStage(Section):
    """The block length from ``step`` on; several take turns, one a forward pass."""

    step: int = Field(ge=0)
    block_length: BlockLength | Annotated[list[BlockLength], Field(min_length=1)]


class CommonOptions(Section):
    """What an objective is called, how long its blocks are, and how much of them it hides.

    ``masked`` draws a mask ratio per block from ``noise``, and hides every token where a block holds no other; the
    others use ``mask_ratio``. A share ``prefix_share`` of the blocks keeps a decoded prefix.
    """

    kind: str
    block_length: BlockLength | list[BlockLengthStage] = 32
    noise: tuple[Share, Share] = (0.0, 1.0)
    prefix_share: Share = 0.0
    mask_ratio: Share | tuple[Share, Share] = 0.75
    """One for all, or lowest and highest of one drawn per example."""

    @model_validator(mode="after")
    def _stages_in_order(self) -> CommonOptions:
        if isinstance(self.block_length, list):
            steps = [stage.step for stage in self.block_length]
            if not steps or steps[0] != 0 or steps != sorted(set(steps)):
                raise ValueError("block_length stages must start at step 0 and rise")
        for name, value in (("noise", self.noise), ("mask_ratio", self.mask_ratio)):
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{name} must be [lowest, highest]")
        return self

    def block_lengths_at(self, step: int) -> list[int]:
        """Return the block lengths in force at ``step``, which its forward passes take in turn."""
        if isinstance(self.block_length, int):
            return [self.block_length]
        lengths = [stage.block_length for stage in self.block_length if stage.step <= step][-1]
        return [lengths] if isinstance(lengths, int) else lengths


class GroupOptions(CommonOptions):
    """``group``, with which mask ratios are drawn for several blocks in a row."""

    group: GroupSection | None = None

    @model_validator(mode="after")
    def _one_noise(self) -> GroupOptions:
        unused = self.model_fields_set & {"noise", "prefix_share", "mask_ratio"}
        if self.group is not None and unused:
            raise ValueError(f"group draws its own mask ratios; leave out {' and '.join(sorted(unused))}")
        return self


class ObjectiveSection(GroupOptions):
    """The base of an objective's own options: what a recipe's ``objective`` section always may hold."""
