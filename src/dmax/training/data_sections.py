"""The sections of a recipe's ``data`` that name files, folders or data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field

from dmax.training.section import Section

Weight = Annotated[float, Field(gt=0)]
"""A source's share of the mixture."""


class FileSection(Section):
    """A source that is read from a file, a folder or the Hugging Face Hub."""

    source: str
    path: str
    weight: Weight = 1.0

    def found_in(self, local: Mapping[str, str]) -> Self:
        """Return the section with what is here in place of its data set, where ``local`` has that."""
        return self.model_copy(update={"path": local[self.path]}) if self.path in local else self


class JsonlSection(FileSection):
    """Conversations in a JSONL file, or a folder of them: ``messages``, or ``question`` and ``answer``, a line each."""

    source: Literal["jsonl"]
    path: str


class HubSection(FileSection):
    """Conversations in a data set of the Hugging Face Hub, or a folder in the form of one, with the same columns."""

    source: Literal["hub"]
    path: str
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    """Branch, tag or commit; a commit makes a run repeatable."""
