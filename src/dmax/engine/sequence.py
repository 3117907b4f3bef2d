"""One row of a call: its tokens, how far its blocks have come, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from dmax.engine.outputs import PassRecord
from dmax.engine.params import GenerationParams
from dmax.engine.stopping import Ending, StopRule


@dataclass
class Sequence:
    """A prompt and the answer that grows behind it, block by block from absolute position 0.

    ``tokens`` holds the prompt and every converged block. The block being decoded lives in the decoder's state; what
    ``tokens`` has of it is the prompt's tail, if the prompt ends inside it.
    """

    index: int
    """Place in the call."""
    tokens: list[int]
    params: GenerationParams
    stop_rule: StopRule
    passes: int = 0
    blocks: int = 0
    """Blocks that have converged."""
    revisions: int = 0
    """Times a pass changed a token that was decoded already."""
    trace: list[PassRecord] = field(default_factory=list)
    ending: Ending | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)

    @property
    def block_start(self) -> int:
        """Position of the current block's first token."""
        return len(self.tokens) // self.params.block_length * self.params.block_length

    @property
    def prompt_blocks_end(self) -> int:
        """Position behind the last block that the prompt fills."""
        return self.prompt_length // self.params.block_length * self.params.block_length

    @property
    def first_active(self) -> int:
        """Offset of the current block's first answer position; all behind it are answer positions too."""
        return max(self.prompt_length - self.block_start, 0)

    @property
    def furthest_end(self) -> int:
        """Position behind the last block this sequence can come to, which may reach past ``gen_length``."""
        length = self.params.block_length
        return -(-(self.prompt_length + self.params.gen_length) // length) * length

    @property
    def nfe(self) -> int:
        """Forward passes by the convention of SPEC section 1: a prompt of whole blocks counts as one.

        Recomputing without a cache gives the same number, so that the two can be compared.
        """
        return self.passes + (self.prompt_blocks_end > 0)

    def close_block(self, block_tokens: list[int]) -> None:
        """Take the hard tokens of the converged block; afterwards either ``ending`` is set or the next block begins."""
        self.tokens[self.block_start :] = block_tokens
        self.blocks += 1
        self.ending = self.stop_rule.ending(self.tokens[self.prompt_length :])
