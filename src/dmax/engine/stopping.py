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

    eos_token_id: int
    gen_length: int
    strings: tuple[str, ...] = ()
    decode: Decode | None = None
    """Token ids to text; needed where there are stop strings."""

    def ending(self, answer_ids: list[int]) -> Ending | None:
        """The finished answer, or None where decoding has to go on.

        Args:
            answer_ids: the tokens of all converged blocks, without the prompt.
        """
        within = answer_ids[: self.gen_length]
        ended = self.eos_token_id in within
        words = within[: within.index(self.eos_token_id)] if ended else within
        finished = ended or len(answer_ids) >= self.gen_length
        text = self.decode(words) if self.decode is not None and (finished or self.strings) else None
        found = [at for string in self.strings if text is not None and (at := text.find(string)) >= 0]
        if found and text is not None:
            return self._cut(words, text[: min(found)])
        if not finished:
            return None
        if ended:
            return Ending([*words, self.eos_token_id], len(words), text, "stop")
        return Ending(words, len(words), text, "length")

    def _cut(self, words: list[int], text: str) -> Ending:
        """Keep the fewest tokens that spell ``text``; the last of them may reach into the stop string."""
        decode = self.decode
        assert decode is not None
        count = bisect_left(range(len(words) + 1), True, key=lambda n: decode(words[:n]).startswith(text))
        return Ending(words[:count], count, text, "stop")
