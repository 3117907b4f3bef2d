"""Where an answer ends: at the first EOS, before a stop string, or at its greatest length (algorithm.md#stop)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Ending:
    """A finished answer."""

    token_ids: list[int]
    """Up to the first EOS, which is included."""
    num_tokens: int
    """Without the EOS."""
    text: str | None
    reason: str
    """``"stop"`` or ``"length"``."""


@dataclass(frozen=True)
class StopRule:
    """When an answer is finished."""

    eos_token_id: int | None
    """None where no token ends an answer."""
    gen_length: int
    strings: tuple[str, ...] = ()
    decode: Decode | None = None
    """Token ids to text; needed where there are stop strings."""
    min_tokens: int = 0
    """EOS and stop strings before so many tokens do not count."""

    @property
    def certain_end(self) -> int | None:
        """The token behind which no block need begin; None where an EOS may not count."""
        return None if self.min_tokens else self.eos_token_id

    def ending(self, answer_ids: list[int]) -> Ending | None:
        """The finished answer, or None where decoding has to go on.

        Args:
            answer_ids: the tokens of all converged blocks, without the prompt.
        """
        within = answer_ids[: self.gen_length]
        end = self._end_of_words(within)
        ended = end is not None
        words = within[:end]
        finished = ended or len(answer_ids) >= self.gen_length
        text = self.decode(words) if self.decode is not None and (finished or self.strings) else None
        first = len(self.decode(words[: self.min_tokens])) if self.decode is not None and self.min_tokens else 0
        found = [at for string in self.strings if text is not None and (at := text.find(string, first)) >= 0]
        if found and text is not None:
            return self._cut(words, text[: min(found)])
        if not finished:
            return None
        if self.eos_token_id is not None and ended:
            return Ending([*words, self.eos_token_id], len(words), text, "stop")
        return Ending(words, len(words), text, "length")

    def _end_of_words(self, within: list[int]) -> int | None:
        """Where the first EOS stands that counts."""
        if self.eos_token_id is None or self.eos_token_id not in within[self.min_tokens :]:
            return None
        return within.index(self.eos_token_id, self.min_tokens)

    def _cut(self, words: list[int], text: str) -> Ending:
        """Keep the fewest tokens that spell ``text``; the last of them may reach into the stop string."""
        decode = self.decode
        assert decode is not None
        count = bisect_left(range(len(words) + 1), True, key=lambda n: decode(words[:n]).startswith(text))
        return Ending(words[:count], count, text, "stop")
