"""A problem's texts in pieces, and their rendering with other numbers and names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dmax.problems.gsm8k_variants.numbers import DIGITS, SPELLED, WORDS, Number, Written, decimals_of

_ARTICLE = re.compile(rf"\b([Aa])n?(?= \$?(?:{DIGITS}|(?:{'|'.join(WORDS)})\b))(?= (\$?)([\d,]+|\w+))")
_VOWEL = re.compile(r"8|11(?:,|$|\b(?!,))|18(?:,\d{3})?$|eight|eleven|eighteen")


class Slot(NamedTuple):
    """Where a text shows a value."""

    source: int
    """Which of the problem's values."""
    places: int
    """Decimals that it has at least, where it has any."""
    commas: bool
    """Whether thousands are set apart."""
    word: str = ""
    """The original word, where the number is spelled."""


class NameSlot(NamedTuple):
    """Where a text says a name."""

    name: int
    suffix: str


Piece = str | Slot | NameSlot


def slot_of(number: Written, source: int, commas: bool = False) -> Slot:
    if not number.text[0].isdigit():
        return Slot(source, 0, False, number.text)
    return Slot(source, len(number.text.partition(".")[2]), commas or "," in number.text)


def in_pieces(text: str, slots: Iterable[tuple[Written, Slot]]) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    at = 0
    for number, slot in sorted(slots):
        pieces += [text[at : number.start], slot]
        at = number.end
    return (*pieces, text[at:])


def rendered(pieces: Sequence[Piece], values: Sequence[Number], names: Sequence[str]) -> str:
    parts = []
    for piece in pieces:
        if isinstance(piece, str):
            parts.append(piece)
        elif isinstance(piece, NameSlot):
            parts.append(names[piece.name] + piece.suffix)
        elif piece.word:
            word = SPELLED.get(int(values[piece.source]), "")
            parts.append(word.capitalize() if piece.word[0].isupper() else word)
        else:
            parts.append(shown_number(values[piece.source], piece.places, piece.commas))
    return "".join(parts)


def shown_number(value: Number, places: int = 0, commas: bool = False) -> str:
    if not isinstance(value, int):
        places = max(places, decimals_of(value))
    elif not places:
        return f"{value:,}" if commas else str(value)
    scaled = int(value * 10**places)
    whole, decimals = divmod(scaled, 10**places)
    return f"{whole:{',' if commas else ''}}.{decimals:0{places}}"


def with_articles(text: str) -> str:
    """Return the text with *a* or *an* as the number after it wants."""
    return _ARTICLE.sub(lambda match: match[1] + ("n" if _VOWEL.match(match[3]) else ""), text)
