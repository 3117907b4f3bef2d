"""An answer while it is being decoded: what the live view shows, as pure state and rich text."""

from __future__ import annotations

from collections.abc import Collection
from itertools import groupby
from typing import Protocol

from rich.color import Color, blend_rgb
from rich.color_triplet import ColorTriplet
from rich.console import Console
from rich.style import Style
from rich.text import Text

from dmax.engine import PassRecord

MASK = "░░░"
END = "■"
FLASH_SECONDS = 0.5

_MASK_STYLE = Style(dim=True)
_END_STYLE = Style(dim=True)
_FLASH_STYLE = Style(bold=True, color="black", bgcolor="yellow")
_AFTERGLOW_STYLE = Style(bold=True, color="yellow")
# Mid-tones, so that both ends can be read on a dark and on a light background.
_UNSURE = ColorTriplet(128, 118, 150)
_SURE = ColorTriplet(0, 165, 190)
# A model may emit any byte; none of them may steer the terminal.
_CONTROLS = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")


class Decodes(Protocol):
    """The part of a tokenizer that a view needs."""

    def decode(self, token_ids: list[int], /) -> str: ...


def printable(text: str) -> str:
    """Strip ``text`` of the control characters that could steer a terminal."""
    return text.translate(_CONTROLS)


def shade(confidence: float) -> Style:
    """Return the style of a soft token: grey where the model is unsure, a clear tone where it is certain."""
    certainty = min(max(confidence, 0.0), 1.0) ** 2
    return Style(color=Color.from_triplet(blend_rgb(_UNSURE, _SURE, certainty)))


def pieces(tokenizer: Decodes | None, token_ids: list[int]) -> list[str]:
    """List the text that each token adds to those before; a character spread over tokens belongs to its last one."""
    if tokenizer is None:
        return [f"{token_id} " for token_id in token_ids]
    texts: list[str] = []
    written = ""
    for end in range(1, len(token_ids) + 1):
        text = tokenizer.decode(token_ids[:end])
        unfinished = text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(token_ids)
        texts.append("" if unfinished else text[len(written) :])
        written = written if unfinished else text
    return texts


class Canvas:
    """Builds the picture of one answer from its passes.

    The block being decoded shows masks and soft tokens shaded by confidence; what has converged is plain text; a
    token that was revised flashes for a moment, whichever of the two it is by then.
    """

    def __init__(
        self, tokenizer: Decodes | None, mask_token_id: int, eos_token_ids: Collection[int], gen_length: int
    ) -> None:
        self._tokenizer = tokenizer
        self._mask_token_id = mask_token_id
        self._eos_token_ids = eos_token_ids
        self._gen_length = gen_length
        self._settled: list[int] = []
        self._settled_text = ""
        # The block that converged last, which may still flash, and the one being decoded.
        self._tail: list[PassRecord] = []
        self._revised_at: dict[int, float] = {}
        self._wrapped: list[Text] = []
        self._wrapped_for = ("", 0)
        self.passes = 0

    def apply(self, record: PassRecord, now: float) -> None:
        """Take in one pass, shown at time ``now`` in seconds."""
        self.passes += 1
        self._revised_at.update({record.start + offset: now for offset in record.revised})
        if self._tail and self._tail[-1].block == record.block:
            self._tail[-1] = record
            return
        if len(self._tail) > 1:
            self._settle(self._tail.pop(0))
        self._tail.append(record)

    @property
    def tokens(self) -> int:
        """Answer tokens decided so far, settled or not."""
        tail = [record.tokens[offset] for record in self._tail for offset in record.active]
        decided = [token_id for token_id in tail if token_id != self._mask_token_id]
        ended = not self._tail or self._tail[-1].final
        return min(len(self._answer(self._settled + decided) if ended else self._settled + decided), self._gen_length)

    def text(self, now: float) -> Text:
        """Return the whole answer as it stands at time ``now``."""
        picture = Text(self._settled_text)
        self._draw_tail(picture, now)
        return picture

    def lines(self, console: Console, width: int, now: float) -> tuple[list[Text], int]:
        """Wrap the answer to ``width``, and tell how many of its first lines no later pass can change."""
        paragraphs, newline, last = self._settled_text.rpartition("\n")
        # Wrapping is most of the work, and finished paragraphs wrap the same every time.
        if (paragraphs, width) != self._wrapped_for:
            self._wrapped = list(Text(paragraphs).wrap(console, width)) if newline else []
            self._wrapped_for = (paragraphs, width)
        fixed = len(self._wrapped) + max(len(Text(last).wrap(console, width)) - 1, 0)
        picture = Text(last)
        self._draw_tail(picture, now)
        return [*self._wrapped, *picture.wrap(console, width)], fixed

    def _settle(self, record: PassRecord) -> None:
        self._settled.extend(record.tokens[offset] for offset in record.active)
        token_ids = self._answer(self._settled)
        text = "".join(pieces(None, token_ids)) if self._tokenizer is None else self._tokenizer.decode(token_ids)
        self._settled_text = printable(text)

    def _answer(self, token_ids: list[int]) -> list[int]:
        ends = (at for at, token_id in enumerate(token_ids) if token_id in self._eos_token_ids)
        return token_ids[: min(next(ends, len(token_ids)), self._gen_length)]

    def _draw_tail(self, picture: Text, now: float) -> None:
        before = list(self._settled)
        for record in self._tail:
            offsets = record.active[: self._gen_length - len(before)]
            token_ids = [record.tokens[offset] for offset in offsets]
            if record.final:
                offsets = offsets[: len(self._answer(token_ids))]
            self._draw_block(picture, record, offsets, before[-1:], now)
            before += token_ids

    def _draw_block(self, picture: Text, record: PassRecord, offsets: list[int], anchor: list[int], now: float) -> None:
        for masked, group in groupby(offsets, lambda offset: record.tokens[offset] == self._mask_token_id):
            if masked:
                for _ in group:
                    _append_apart(picture, MASK, _MASK_STYLE)
            else:
                self._draw_run(picture, record, list(group), anchor, now)

    def _draw_run(self, picture: Text, record: PassRecord, run: list[int], anchor: list[int], now: float) -> None:
        # A settled token goes in front, so that the first piece keeps the space before its word.
        texts = pieces(self._tokenizer, [*anchor, *(record.tokens[offset] for offset in run)])[len(anchor) :]
        for offset, text in zip(run, texts, strict=True):
            style = self._style(record, offset, now)
            if record.tokens[offset] in self._eos_token_ids:
                text, style = END, _END_STYLE
            if picture.plain.endswith(MASK):
                _append_apart(picture, printable(text), style)
            else:
                picture.append(printable(text), style)

    def _style(self, record: PassRecord, offset: int, now: float) -> Style:
        age = now - self._revised_at.get(record.start + offset, float("-inf"))
        if age < FLASH_SECONDS / 2:
            return _FLASH_STYLE
        if age < FLASH_SECONDS:
            return _AFTERGLOW_STYLE
        return Style.null() if record.final else shade(record.confidence[offset])


def _append_apart(picture: Text, text: str, style: Style) -> None:
    """Append with white space before, where neither side brings it: masks are drawn as words."""
    if picture.plain and not picture.plain[-1].isspace() and not text[:1].isspace():
        picture.append(" ")
    picture.append(text, style)
