"""``gsm8k-variants``: GSM8K's training problems with other numbers and names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, Literal, Self

from dmax.problems import show_working
from dmax.problems.gsm8k_variants import Gsm8kVariants
from dmax.problems.splits import first_number
from dmax.training.conversations import LINES, read_rows
from dmax.training.data import ChatEncoder
from dmax.training.data_sections import FileSection, HubSection, JsonlSection
from dmax.training.problem_sources.base import DrawnConversations, Turn

STEP_BY_STEP = "\nLet's think step by step"
"""What GSM8K's questions end with when models are evaluated."""
STEP_BY_STEP_SHARE = 0.4


class Gsm8kVariantsSection(FileSection):
    """Variants of GSM8K's training problems (see :mod:`dmax.problems.gsm8k_variants`)."""

    source: Literal["gsm8k-variants"]
    path: str = "openai/gsm8k"
    """A JSONL file with ``question`` and ``answer``, or the id of the data set on the Hugging Face Hub."""
    worked: bool = False
    """Carry equations out in small steps."""


@dataclass(frozen=True, kw_only=True)
class Gsm8kSource(DrawnConversations):
    """Variants of GSM8K's training problems with other numbers and names; many end as GSM8K is usually asked."""

    name = "gsm8k-variants"
    section = Gsm8kVariantsSection

    variants: Gsm8kVariants
    """Of the rows."""
    worked: bool = False
    """Whether equations are carried out in small steps (see :mod:`dmax.problems.working`)."""

    @classmethod
    def of(cls, section: Any, tokenizer: ChatEncoder) -> Self:
        return cls(tokenizer, variants=gsm8k_variants(section.path), worked=section.worked)

    @classmethod
    def texts(cls, section: Any, count: int) -> Iterator[str]:
        variants = gsm8k_variants(section.path)
        for index in range(min(count, variants.total)):
            row = variants.problem("train", index)
            yield "\n".join((row["question"], row["solution"]))

    def fingerprint(self) -> str:
        """Return a hash of all rows, 16 hexadecimal digits: other rows, another fingerprint."""
        found = hashlib.blake2b(digest_size=8)
        for index in range(self.variants.total):
            found.update(repr(sorted(self.variants.plain(index).items())).encode())
        return found.hexdigest()

    def turns(self, index: int) -> Sequence[Turn]:
        row = self.variants.problem(self.split, index, self.seed)
        solution = show_working(row["solution"]) if self.worked else row["solution"]
        asked_by_steps = Random(f"gsm8k {first_number(self.split, self.seed)} {index}").random() < STEP_BY_STEP_SHARE
        return [(row["question"] + (STEP_BY_STEP if asked_by_steps else ""), solution)]


@cache
def gsm8k_variants(path: str) -> Gsm8kVariants:
    """Read GSM8K's training set and find the problems that can be drawn anew.

    Args:
        path: a JSONL file, or the id of the data set on the Hugging Face Hub.

    Raises:
        DataError: it cannot be had or read.
    """
    if LINES.search(path):
        rows = read_rows(JsonlSection(source="jsonl", path=path))
    else:
        rows = read_rows(HubSection(source="hub", path=path, subset="main"))
    return Gsm8kVariants(rows.to_list())
