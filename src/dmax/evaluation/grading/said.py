"""What an answer says in the end: without what was thought before, and without the tags around it."""

from __future__ import annotations

import re

_THOUGHT = r"think|thinking|thought|reasoning|reflection|scratchpad"
_THINKING = re.compile(rf"<(?:{_THOUGHT})>.*?</(?:{_THOUGHT})>", re.DOTALL | re.IGNORECASE)
_THOUGHT_ENDS = re.compile(rf"</(?:{_THOUGHT})>|<\|(?:end_of_thought|end_think)\|>", re.IGNORECASE)
_TAGGED = re.compile(r"<(?P<tag>answer|final_answer|solution)>(?P<inside>.*?)</(?P=tag)>", re.DOTALL | re.IGNORECASE)
_END = re.compile(
    r"<\|(?:end(?:_?of_?(?:text|turn|sentence))?|im_end|eo[mst](?:_id)?|role_end|return)\|>|<｜end[^｜]*｜>"
    r"|</s>|<(?:eos|EOS|end_of_turn)>|\[(?:EOS|END)\]"
)
"""How models write that an answer ends, where it was not taken off."""
_STRUCK = re.compile(r"~~[^~\n]+~~|<(?P<tag>del|s|strike)>[^<]*</(?P=tag)>")
_MARKUP = re.compile(
    r"</?(?:b|i|u|em|strong|mark|span|p|div|br|hr|code|pre|center|answer|final_answer|solution|result)"
    r"(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
_SPACE = re.compile(r"\s{64,}")
_REPEATED = re.compile(r"([^\d\s]\D{0,39}?)\1{63,}")
_LONGEST = 20_000
"""Characters that are read of what an answer ends with."""


def condensed(text: str) -> str:
    """Return a text without what stands in it more than 64 times in a row, as models write that are stuck.

    Digits stay as they are. Reading the rest takes no longer than it would of an answer that somebody wrote.
    """
    text = _SPACE.sub(lambda space: "\n\n" if "\n" in space[0] else " ", text)
    return _REPEATED.sub(lambda again: again[1] * 8, text)[-_LONGEST:]


def said(answer: str) -> str:
    """Return what an answer says behind its thoughts and before its end, inside of ``<answer>`` where it has that tag.

    All of it where there would be nothing left, as of a thought that was cut off.
    """
    text = _THINKING.sub("", answer)
    behind = _THOUGHT_ENDS.split(text)[-1]
    text = next((part for part in (behind, text) if part.strip()), answer)
    ended = _END.split(text, maxsplit=1)[0]
    text = condensed(ended if ended.strip() else text)
    tagged = [found["inside"] for found in _TAGGED.finditer(text) if found["inside"].strip()]
    return tagged[-1] if tagged else text


def without_markup(text: str) -> str:
    """Return text without HTML's tags, and without what is struck through."""
    return _MARKUP.sub("", _STRUCK.sub("", text))
