"""How a server behaves towards its clients."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class SettingsError(ValueError):
    """A setting that cannot be used; the message says what is allowed."""


@dataclass(frozen=True)
class ServerSettings:
    """How a server behaves towards its clients.

    Raises:
        SettingsError: what the server does by itself exceeds what it lets requests ask for.
    """

    model_name: str
    api_keys: tuple[str, ...] = ()
    """Accepted keys; without any, everybody may ask."""
    max_queue: int = 256
    """Requests that may wait beside those that run."""
    max_gen_length: int = 2048
    default_gen_length: int = 512
    block_length: int = 32
    max_positions_in_flight: int = 128
    """Most of ``block_length`` times ``buffer_size`` in a request; each takes a row of float32 logits in every pass."""
    timeout: float = 600.0
    """Seconds a request may take."""
    ping_seconds: float = 15.0
    """A stream that has nothing to send for so long sends a comment, lest something on the way takes it for dead."""
    max_body_bytes: int = 2**20
    cors_origins: tuple[str, ...] = ()
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if self.block_length > self.max_positions_in_flight:
            raise SettingsError(
                f"block_length is {self.block_length}, and a request may have {self.max_positions_in_flight} positions "
                "in flight; raise max_positions_in_flight to at least block_length, or lower block_length."
            )


def parse_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """Read the API keys that a server accepts.

    Raises:
        SettingsError: one is empty, which would let everybody in, or cannot be sent in a header.
    """
    if not all(re.fullmatch(r"[!-~]+", key) for key in keys):
        raise SettingsError(
            "an API key must be one or more printable ASCII characters without spaces; give another one."
        )
    return tuple(keys)


def gen_lengths(max_gen_length: int, positions: int) -> dict[str, int]:
    """Choose the lengths of answers for a model of so many positions.

    No answer is longer, and by default half is left to the prompt.
    """
    return {
        "max_gen_length": min(max_gen_length, positions),
        "default_gen_length": min(512, max_gen_length, max(1, positions // 2)),
    }


def parse_kv_memory(text: str) -> int:
    """Read the bytes of the KV cache from a size such as ``512M``.

    Raises:
        SettingsError: it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        raise SettingsError(f"kv_memory is {text!r}, which is no size; write a number with K, M, G or T, such as 512M.")
    return int(float(match[1]) * _UNITS[match[2].upper()])
