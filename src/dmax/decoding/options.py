"""Checks of decoder options, with one sentence for each way to get them wrong."""

from __future__ import annotations

import math

from dmax.decoding.base import DecoderError

MAX_COUNT = 2**31 - 1
"""Most of anything that is counted; larger numbers would overflow the arithmetic of tensors."""


def check_probability(name: str, value: object) -> None:
    """A number from 0 to 1."""
    if not _is_number(value) or not 0 <= value <= 1:  # type: ignore[operator]
        raise DecoderError(f"{name} is {value!r}; it must be a number from 0 to 1.")


def check_temperature(value: object) -> None:
    """A finite number, 0 or above."""
    if not _is_number(value) or not 0 <= value < math.inf:  # type: ignore[operator]
        raise DecoderError(f"temperature is {value!r}; it must be 0 (take the best token) or a number above 0 (draw).")


def check_count(name: str, value: object, minimum: int, maximum: int = MAX_COUNT) -> None:
    """A whole number from ``minimum`` to ``maximum``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise DecoderError(f"{name} is {value!r}; it must be a whole number, at least {minimum}.")
    if value > maximum:
        raise DecoderError(f"{name} is {value}; it must be a whole number, at most {maximum}.")


def check_steps(value: object) -> None:
    """None or a whole number, 1 or above."""
    if value is not None:
        check_count("steps", value, 1)


def check_switch(name: str, value: object) -> None:
    """True or False, and nothing that merely counts as one of them: the string ``"false"`` would count as true."""
    if not isinstance(value, bool):
        raise DecoderError(f"{name} is {value!r}; it must be True or False.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
