"""What a source of problems is: it draws conversations by index, and makes training examples of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from dmax.problems import Split
from dmax.training.data import ChatEncoder, Example, conversation_example
from dmax.training.section import Section

Turn = tuple[str, str]
"""A request and its answer."""


class ProblemSource(ABC):
    """A source of training examples without an end: example ``index`` is a function of the options and the index."""

    name: ClassVar[str]
    """The ``source`` of a recipe's ``data`` section."""
    keys: ClassVar[tuple[str, ...]] = ()
    """Which of the section's options it reads; it takes each under its name."""
    section: ClassVar[type[Section] | None] = None
    """The options that a recipe may give, where they are others than those of most problems."""

    @classmethod
    def of(cls, section: Any, tokenizer: ChatEncoder) -> Self:
        """Return the source that a recipe's ``data`` section describes.

        Raises:
            DataError: what it is drawn from cannot be had.
        """
        return cls(tokenizer, **{key: getattr(section, key) for key in cls.keys})  # type: ignore[call-arg]

    @classmethod
    def texts(cls, section: Any, count: int) -> Iterator[str]:
        """Yield the first ``count`` problems as plain text, to train a tokenizer on.

        By default none: the words are those of other sources.
        """
        return iter(())

    @abstractmethod
    def example(self, index: int) -> Example:
        """Return example ``index``."""

    def fingerprint(self) -> str | None:
        """Return a hash of the data that problems are drawn from; None where the package has all of it."""
        return None


@dataclass(frozen=True)
class DrawnConversations(ProblemSource):
    """Conversations drawn by index, as chat examples: the last answer is the response."""

    tokenizer: ChatEncoder
    """Of the model."""
    split: Split = "train"
    """Which problems."""
    seed: int = 0
    """Of the split."""

    @abstractmethod
    def turns(self, index: int) -> Sequence[Turn]:
        """Return the turns of conversation ``index``, the last of which is trained on."""

    def example(self, index: int) -> Example:
        return conversation_example(self.tokenizer, self.turns(index))
