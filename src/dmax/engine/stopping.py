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

    eos_token_ids: tuple[int, ...]
    """Empty where no token ends an answer."""
    gen_length: int
    strings: tuple[str, ...] = ()
    decode: Decode | None = None
    """Token ids to text; needed where there are stop strings."""
    min_tokens: int = 0
    """EOS and stop strings before so many tokens do not count."""

    @property
    def certain_ends(self) -> tuple[int, ...]:
        """The tokens behind which no block need begin; none where an EOS may not count."""
        return () if self.min_tokens else self.eos_token_ids

    def ending(self, answer_ids: list[int]) -> Ending | None:
        """Return the finished answer, or None where decoding has to go on.

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
        if ended:
            return Ending(within[: len(words) + 1], len(words), text, "stop")
        return Ending(words, len(words), text, "length")

    def _end_of_words(self, within: list[int]) -> int | None:
        """Find where the first EOS stands that counts."""
        found = (at for at, token_id in enumerate(within) if token_id in self.eos_token_ids and at >= self.min_tokens)
        return next(found, None)

    def _cut(self, words: list[int], text: str) -> Ending:
        """Keep the fewest tokens that spell ``text``; the last of them may reach into the stop string."""
        decode = self.decode
        assert decode is not None
        count = bisect_left(range(len(words) + 1), True, key=lambda n: decode(words[:n]).startswith(text))
        return Ending(words[:count], count, text, "stop")
