"""What an autoregressive checkpoint is to those who adapt it; and one as transformers writes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from dmax.models.source import (
    CONFIG_FILE,
    GENERATION_FILE,
    CheckpointError,
    StoredTensor,
    list_tensors,
    listing,
    open_tensors,
    read_json,
    resolve,
)
from dmax.models.tokenizer import Tokenizer


class AutoregressiveSource(Protocol):
    """Weights under the names that transformers gives them, read some rows at a time."""

    place: Path

    @property
    def values(self) -> Mapping[str, Any]:
        """Its ``config.json``, as transformers would write it."""
        ...

    @property
    def stored(self) -> Mapping[str, StoredTensor]:
        """Shapes and, where weights are packed, the dtype that they are unpacked to."""
        ...

    def tokenizer(self) -> Tokenizer | None:
        """Return its tokenizer; None where it has none."""
        ...

    def read(self, name: str, first: int, end: int) -> Tensor:
        """Return some rows of a tensor, or numbers of a vector, on the CPU."""
        ...


class FolderSource:
    """A folder of safetensors.

    Args:
        place: of the folder.
        stack: closes the files.
    """

    def __init__(self, place: Path, stack: ExitStack) -> None:
        self.place = place
        files = sorted(path.name for path in place.glob("*.gguf"))
        if files and not (place / CONFIG_FILE).exists():
            raise CheckpointError(f"{place} is a folder of GGUF files: name one of them ({listing(files, 3)}).")
        self.values: dict[str, Any] = read_json(place / CONFIG_FILE)
        if (place / GENERATION_FILE).exists():
            ends = read_json(place / GENERATION_FILE).get("eos_token_id")
            self.values["eos_token_id"] = self.values.get("eos_token_id") if ends is None else ends
        self.stored = list_tensors(place)
        paths = {tensor.file for tensor in self.stored.values()}
        self._files = {path: stack.enter_context(open_tensors(path)) for path in paths}

    @classmethod
    @contextmanager
    def opened(cls, path_or_id: str | Path) -> Iterator[FolderSource]:
        """Open the files of a folder, or of a Hugging Face Hub id."""
        with ExitStack() as stack:
            yield cls(resolve(path_or_id), stack)

    def tokenizer(self) -> Tokenizer | None:
        """Return its tokenizer; None where it has no ``tokenizer.json``."""
        return Tokenizer.from_folder(self.place)

    def read(self, name: str, first: int, end: int) -> Tensor:
        """Return some rows of a tensor."""
        return self._files[self.stored[name].file].get_slice(name)[first:end]
