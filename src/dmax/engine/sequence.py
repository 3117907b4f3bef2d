"""One request: its tokens, how far its blocks have come, where its keys and values are, and how it ends."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

from dmax.decoding import BlockState, Decoder, MultiBlockRule
from dmax.decoding.constrained import Constraint
from dmax.engine.outputs import PassRecord, RequestUpdate, TokenLogprob
from dmax.engine.page_allocator import Key
from dmax.engine.params import GenerationError, GenerationParams
from dmax.engine.stopping import Ending, StopRule


@dataclass(eq=False)
class Sequence:
    """A prompt and the answer that grows behind it, block by block from absolute position 0.

    ``tokens`` holds the prompt and every converged block. The block being decoded lives in the decoder's state; what
    ``tokens`` has of it is the prompt's tail, if the prompt ends inside it.
    """

    request_id: str
    tokens: list[int]
    params: GenerationParams
    stop_rule: StopRule
    decoder: Decoder
    started: float = 0.0
    """``time.perf_counter`` of the request."""
    seconds: float = 0.0
    """From ``started`` to the end of the answer."""
    passes: int = 0
    blocks: int = 0
    """Blocks that have converged."""
    revisions: int = 0
    """Times a pass changed a token that was decoded already."""
    trace: list[PassRecord] = field(default_factory=list)
    open_blocks: int = 1
    """Blocks in flight: the current one and those behind it that have begun."""
    ending: Ending | None = None
    failure: Exception | None = None
    """Why it was given up; then there is no ending."""
    stored: int = 0
    """Positions, from 0, whose final keys and values are in the cache."""
    slot: int | None = None
    """Its place among the sequences that hold pages; None where it holds none."""
    pages: list[int] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    """Keys of the first pages, as far as they are known to be final."""
    prompt_keys: list[Key] | None = None
    """Keys of the whole pages before the current block, while it waits and has been looked at; they do not change."""
    paused: BlockState | None = None
    """The state of the blocks in flight, one row each, where it was preempted."""
    constraint: Constraint | None = None
    """What the answer's tokens may be, behind those that are final; None where they may be anything."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of the final tokens, where they are asked for."""
    generator: torch.Generator | None = None
    """Draws the noise of this sequence; None for greedy decoding."""

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)
        params = self.params
        self.blocks_rule = MultiBlockRule(
            params.buffer_size, params.add_threshold, params.stable_threshold, params.semi_threshold
        )

    def decoding(self) -> Hashable:
        """Return what sequences have to agree in to step together."""
        options = sorted(self.params.decoder_arguments().items())
        return self.params.decoder, repr(options), self.block_length, self.constraint is None

    @property
    def block_length(self) -> int:
        """Positions of a block."""
        assert self.params.block_length is not None, "the checkpoint's defaults are filled in"
        return self.params.block_length

    @property
    def block_start(self) -> int:
        """Position of the current block's first token."""
        return len(self.tokens) // self.block_length * self.block_length

    @property
    def block_end(self) -> int:
        """Position behind the last block in flight."""
        return self.block_start + self.open_blocks * self.block_length

    @property
    def prompt_blocks_end(self) -> int:
        """Position behind the last block that the prompt fills."""
        return self.prompt_length // self.block_length * self.block_length

    @property
    def first_active(self) -> int:
        """Offset of the current block's first answer position; all behind it are answer positions too."""
        return max(self.prompt_length - self.block_start, 0)

    @property
    def furthest_end(self) -> int:
        """Position behind the last block this sequence can come to, which may reach past ``gen_length``."""
        length = self.block_length
        return -(-(self.prompt_length + self.params.gen_length) // length) * length

    @property
    def nfe(self) -> int:
        """Forward passes by the convention of algorithm.md#counting: a prompt of whole blocks counts as one.

        Recomputing without a cache, or after a preemption, gives the same number, so that runs can be compared.
        """
        return self.passes + (self.prompt_blocks_end > 0)

    def close_block(self, block_tokens: list[int], logprobs: list[TokenLogprob] | None = None) -> list[int]:
        """Take the hard tokens of the converged block; afterwards either ``ending`` is set or the next block begins.

        Args:
            block_tokens: of the whole block, the prompt's tail included.
            logprobs: of the block's answer tokens, where they are asked for.

        Returns:
            The answer tokens that have become final: those of the block that belong to the answer.
        """
        before = len(self.tokens) - self.prompt_length
        if self.constraint is not None:
            for token_id in block_tokens[self.first_active :]:
                self.constraint.take(token_id)
        self.logprobs += logprobs or []
        self.tokens[self.block_start :] = block_tokens
        self.blocks += 1
        answer = self.tokens[self.prompt_length :]
        self.ending = self.stop_rule.ending(answer)
        return (answer if self.ending is None else self.ending.token_ids)[before:]

    @property
    def obstacle(self) -> GenerationError | None:
        """Why it cannot go on under its constraint; None where it can."""
        problem = None if self.constraint is None else self.constraint.problem
        return None if problem is None else GenerationError(problem, "json_schema")

    @property
    def ended(self) -> bool:
        """Whether there is an answer, or there will be none."""
        return self.ending is not None or self.failure is not None

    def begin_pass(self) -> None:
        """Count a pass over the blocks in flight."""
        self.passes += 1

    def revise(self, count: int) -> None:
        """Count tokens that were decoded already and that a pass changed."""
        self.revisions += count

    def open(self, blocks: int) -> None:
        """Take the number of blocks in flight from now on."""
        self.open_blocks = blocks

    def update(
        self, final_ids: list[int], records: list[PassRecord], logprobs: list[TokenLogprob] | None = None
    ) -> RequestUpdate:
        """Keep the records of a pass if they are asked for, and tell of it; the answer is not in it yet."""
        if self.params.trace:
            self.trace += records
        return RequestUpdate(self.request_id, final_ids, records, None, None, logprobs or [])

    def fail(self, error: Exception) -> RequestUpdate:
        """Note that the sequence cannot go on, because of its decoder or the model, and tell of it."""
        self.failure, self.ending = error, None
        return RequestUpdate(self.request_id, [], [], None, error)

    def end(self, now: float) -> None:
        """Note when it ended."""
        self.seconds = now - self.started

    def seed_generator(self, device: torch.device) -> None:
        """Make the generator of its noise, if it has none yet."""
        if self.generator is None:
            self.generator = torch.Generator(device).manual_seed(self.params.seed)

    def pause(self, state: BlockState) -> None:
        """Keep the state of the blocks in flight until the sequence is admitted again."""
        self.paused = state

    def resume(self) -> BlockState:
        """Give that state back."""
        state, self.paused = self.paused, None
        assert state is not None
        return state

    def admit(self, slot: int, pages: list[int], keys: list[Key], stored: int) -> None:
        """Hold a slot and pages, the first of which are known by their keys and hold ``stored`` positions."""
        self.slot, self.pages, self.keys, self.stored = slot, pages, keys, stored
        self.prompt_keys = None

    def look_up(self, keys: list[Key]) -> None:
        """Keep the keys of the whole pages before the current block while the sequence waits for pages."""
        self.prompt_keys = keys

    def grow(self, page: int) -> None:
        """Hold one more page."""
        self.pages.append(page)

    def store(self, end: int, keys: list[Key]) -> None:
        """Note that positions up to ``end`` are in the cache, and the keys of pages that are final by that."""
        self.stored = end
        self.keys += keys

    def release(self) -> None:
        """Hold no slot and no pages any more."""
        self.slot, self.pages, self.keys, self.stored = None, [], [], 0
