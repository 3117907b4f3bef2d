"""What runs next: admission by free pages, prompts in chunks, and preemption of the youngest when pages run out.

Sequences wait, then have their prompt stored (chunk by chunk, beside the passes of others), then decode. All pages of a
prompt and of the current block are taken at admission, further ones block by block. A sequence that is preempted
gives its pages back and waits in front; later its tokens so far are stored again, like a prompt, and it goes on with
the very state its block had.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from dmax.engine.page_allocator import Key, PagePool, page_keys
from dmax.engine.sequence import Sequence
from dmax.engine.span import Span

IDLE_PREFILL_TOKENS = 4096
"""Most prompt positions of a step in which no sequence decodes; bounds the memory that a long prompt takes."""


@dataclass(frozen=True)
class SchedulerOutput:
    """What a step is to do."""

    preempted: list[Sequence]
    """Lost their pages; they wait."""
    starting: list[Sequence]
    """Decode from this step on."""
    chunks: list[Span]


class Scheduler:
    """Owns the queues, and asks the pool for pages on behalf of sequences.

    Queues are dictionaries, so that a sequence leaves one in the same time wherever it stands.

    Args:
        pool: the pages.
        page_length: positions of a page.
        max_batch_size: most sequences admitted at a time.
        prefill_tokens: most prompt positions of a step in which others decode.
        reuse_prefixes: whether sequences that begin alike share pages.
        computes_last: whether every sequence computes the last block before its first one in flight itself, because
            more of it is needed than its keys and values.
    """

    def __init__(
        self,
        pool: PagePool,
        page_length: int,
        max_batch_size: int,
        prefill_tokens: int,
        reuse_prefixes: bool,
        computes_last: bool = False,
    ) -> None:
        self.waiting: OrderedDict[Sequence, None] = OrderedDict()
        """Those that hold none yet, in the order in which they are to be admitted."""
        self.admitted: dict[Sequence, None] = {}
        """Those that hold pages, oldest first."""
        self.preemptions = 0
        self._pool = pool
        self._page_length = page_length
        self._max_batch_size = max_batch_size
        self._prefill_tokens = prefill_tokens
        self._reuse_prefixes = reuse_prefixes
        self._computes_last = computes_last
        self._prefilling: dict[Sequence, None] = {}  # admitted ones that do not decode yet
        self._slots = list(reversed(range(max_batch_size)))

    def add(self, sequence: Sequence) -> None:
        """Put a request at the end of the queue."""
        self.waiting[sequence] = None

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence and free its pages."""
        for queue in (self.waiting, self._prefilling, self.admitted):
            queue.pop(sequence, None)
        self._release(sequence)

    def settled(self) -> bool:
        """Tell whether all sequences decode."""
        return not self.waiting and not self._prefilling

    def pages_for(self, positions: int) -> int:
        """Count pages that hold so many positions."""
        return -(-positions // self._page_length)

    def schedule(self) -> SchedulerOutput:
        """Decide what the next step does."""
        preempted = self._make_room()
        if not preempted:  # what has just been preempted would only have the next one preempted
            self._admit()
        starting = [sequence for sequence in self._prefilling if sequence.stored >= sequence.block_start]
        for sequence in starting:
            del self._prefilling[sequence]
        return SchedulerOutput(preempted, starting, self._chunks())

    def _make_room(self) -> list[Sequence]:
        """Give every running sequence the pages of its blocks in flight; preempt the youngest where there are none."""
        preempted: list[Sequence] = []
        for sequence in list(self.admitted):
            while sequence in self.admitted and len(sequence.pages) < self.pages_for(sequence.block_end):
                if self._pool.available:
                    sequence.grow(self._pool.take(after=sequence.pages[-1] if sequence.pages else None))
                else:
                    preempted.append(self._preempt_youngest())
        return preempted

    def _preempt_youngest(self) -> Sequence:
        victim, _ = self.admitted.popitem()
        self._prefilling.pop(victim, None)
        self._release(victim)
        self.waiting[victim] = None
        self.waiting.move_to_end(victim, last=False)
        self.preemptions += 1
        return victim

    def _release(self, sequence: Sequence) -> None:
        self._pool.release(sequence.pages)
        if sequence.slot is not None:
            self._slots.append(sequence.slot)
        sequence.release()

    def _admit(self) -> None:
        if not self.waiting or len(self.admitted) >= self._max_batch_size:
            return
        # A page is left to each of the others that still grow, or one more would soon have to leave again.
        growing = sum(self._grows(other) for other in self.admitted)
        while self.waiting and len(self.admitted) < self._max_batch_size:
            sequence = next(iter(self.waiting))
            keys = sequence.prompt_keys
            if keys is None:
                keys = self._keys(sequence)
                sequence.look_up(keys)
            pages = self._pool.reuse(keys)
            known, missing = len(pages), self.pages_for(sequence.block_end) - len(pages)
            if self._pool.available < missing + growing:
                self._pool.release(pages)
                return
            self._pool.count(len(keys), known)
            for _ in range(missing):
                pages.append(self._pool.take(after=pages[-1] if pages else None))
            sequence.admit(self._slots.pop(), pages, keys[:known], known * self._page_length)
            del self.waiting[sequence]
            self.admitted[sequence] = None
            self._prefilling[sequence] = None
            growing += self._grows(sequence)

    def _grows(self, sequence: Sequence) -> bool:
        """Tell whether a sequence may come to need more pages than it holds."""
        return len(sequence.pages) < self.pages_for(sequence.furthest_end)

    def _keys(self, sequence: Sequence) -> list[bytes]:
        """Return keys of the whole pages before the current block that may be those of others."""
        if not self._shares(sequence):
            return []
        end = max(sequence.block_start - self._computes_last, 0)
        return list(page_keys(sequence.tokens[:end], self._page_length, sequence.block_length))

    def _shares(self, sequence: Sequence) -> bool:
        return self._reuse_prefixes and self._page_length % sequence.block_length == 0

    def _chunks(self) -> list[Span]:
        none_decodes = len(self._prefilling) == len(self.admitted)
        budget = max(self._prefill_tokens, IDLE_PREFILL_TOKENS) if none_decodes else self._prefill_tokens
        chunks: list[Span] = []
        for sequence in self._prefilling:
            length = sequence.block_length
            size = min(sequence.block_start - sequence.stored, max(budget // length, not chunks) * length)
            if size <= 0:
                break
            end = sequence.stored + size
            chunks.append(Span.of(sequence, sequence.stored, end, end, self._page_length))
            budget -= size
        return chunks

    def stored(self, sequence: Sequence, end: int) -> None:
        """Note that positions up to ``end`` are final and in the cache; whole pages can be reused."""
        keys: list[Key] = []
        if self._shares(sequence):
            length, known = self._page_length, len(sequence.keys)
            fresh = sequence.tokens[known * length : end // length * length]
            before = sequence.keys[-1] if sequence.keys else None
            keys = list(page_keys(fresh, length, sequence.block_length, before))
            for page, key in zip(sequence.pages[known:], keys, strict=False):
                self._pool.publish(page, key)
        sequence.store(end, keys)
