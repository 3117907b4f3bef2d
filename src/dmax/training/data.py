"""Training examples: token ids plus which of them a model is asked to produce.

A source is addressed by index, so that example ``i`` of a run is the same whenever and wherever it is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

MAX_SUPERVISED_PADDING = 32
"""EOS tokens after the answer's own EOS that may carry loss: one published block (algorithm.md#what-carries-loss)."""


class DataError(ValueError):
    """Training data that cannot be used."""


@dataclass(frozen=True)
class Example:
    """One training sequence, laid out from absolute position 0."""

    token_ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    """Which tokens may be corrupted and carry loss: the response and its EOS."""


class Source(Protocol):
    """An endless or finite stream of examples, addressed by index."""

    def example(self, index: int) -> Example:
        """Return the example at ``index``; the same index always gives the same example."""
        ...


class ChatEncoder(Protocol):
    """What turning text into examples needs of a tokenizer."""

    @property
    def eos_token_id(self) -> int | None: ...

    def encode(self, text: str) -> list[int]: ...

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> list[int]: ...


def conversation_example(tokenizer: ChatEncoder, turns: Sequence[tuple[str, str]]) -> Example:
    """Make an example of turns, each a request and its answer; the last answer and what closes it are supervised."""
    *before, (request, answer) = turns
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer names no EOS token, so no answer could end; add eos_token to its settings.")
    messages = []
    for user, assistant in before:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    messages.append({"role": "user", "content": request})
    prompt, said = tokenizer.apply_chat_template(messages), tokenizer.encode(answer)
    rendered = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}], False)
    opening = [*prompt, *said]
    closing = rendered[len(opening) :] if rendered[: len(opening)] == opening else []
    response = [*said, *until_eos(closing, tokenizer.eos_token_id)]
    return Example((*prompt, *response), (False,) * len(prompt) + (True,) * len(response))


def until_eos(closing: Sequence[int], eos_token_id: int) -> list[int]:
    """Return what ends an answer: the tokens with which the chat template closes a turn, up to EOS, and EOS."""
    ids = list(closing)
    return [*(ids[: ids.index(eos_token_id)] if eos_token_id in ids else ids), eos_token_id]


def pad_to_block(example: Example, block_length: int, eos_token_id: int) -> Example:
    """Fill the last block with EOS, of which at most :data:`MAX_SUPERVISED_PADDING` tokens carry loss.

    Only an example that ends with a supervised EOS is an answer whose padding means something; any other is filled
    with unsupervised EOS.
    """
    missing = -len(example.token_ids) % block_length
    is_answer = example.supervised[-1] and example.token_ids[-1] == eos_token_id
    supervised = tuple(is_answer and i < MAX_SUPERVISED_PADDING for i in range(missing))
    return Example((*example.token_ids, *(eos_token_id,) * missing), (*example.supervised, *supervised))


class Mixture:
    """Several sources in fixed proportions, each read from its first example on without a gap.

    Every round of :data:`ROUND` indices holds each source as often as its weight says, in an order of its own; so a
    finite source is read whole before it repeats, and where any index stands is known without counting from the start.
    """

    def __init__(self, sources: Sequence[tuple[Source, float]], seed: int) -> None:
        if not sources or any(weight <= 0 for _, weight in sources):
            raise DataError("a data mixture needs at least one source, each with a weight above 0.")
        self.sources = [source for source, _ in sources]
        self.seed = seed
        self.quotas = _quotas([weight for _, weight in sources])
        self._schedule: tuple[int, list[tuple[int, int]]] = (-1, [])

    def example(self, index: int) -> Example:
        if len(self.sources) == 1:
            return self.sources[0].example(index)
        number, place = divmod(index, ROUND)
        if self._schedule[0] != number:
            self._schedule = (number, self._draw_round(number))
        choice, position = self._schedule[1][place]
        return self.sources[choice].example(position)

    def _draw_round(self, number: int) -> list[tuple[int, int]]:
        """Draw for each place of a round a source and the position to read in it."""
        slots = [(i, number * quota + j) for i, quota in enumerate(self.quotas) for j in range(quota)]
        order = torch.randperm(ROUND, generator=generator_for(self.seed, number)).tolist()
        return [slots[i] for i in order]


ROUND = 1000
"""Indices in a round of a mixture: the grain of its proportions."""


def _quotas(weights: Sequence[float]) -> list[int]:
    """Compute whole shares of a round, in proportion to the weights; the largest rests get what rounding leaves."""
    shares = [weight / sum(weights) * ROUND for weight in weights]
    quotas = [int(share) for share in shares]
    by_rest = sorted(range(len(shares)), key=lambda i: quotas[i] - shares[i])
    for i in by_rest[: ROUND - sum(quotas)]:
        quotas[i] += 1
    if not all(quotas):
        raise DataError(
            f"the weight {min(weights)} is less than a {ROUND}th of all weights: raise it, or leave it out."
        )
    return quotas


def generator_for(*key: int) -> torch.Generator:
    """Make a CPU generator whose stream is a function of ``key`` alone, e.g. (seed, example index, purpose).

    Keys are folded with the splitmix64 finaliser, so that neighbouring keys give unrelated streams.
    """
    state = 0
    for part in key:
        state = (state + part + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return torch.Generator().manual_seed(state & (_MASK64 >> 1))


_MASK64 = (1 << 64) - 1
