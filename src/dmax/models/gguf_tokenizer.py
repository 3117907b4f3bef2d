"""The tokenizer that a GGUF file describes: byte-level BPE, as Qwen, Llama 3 and SmolLM have it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from dmax.models.source import CheckpointError
from dmax.models.tokenizer import Tokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS: dict[str, str] = {
    "qwen2": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST,
    "llama-bpe": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST,
}
"""How a text falls into words, by the name that the file gives it."""
_DIGITS = ("smollm",)
"""Digits one by one, then words as GPT-2 has them."""
_PLAIN = ("gpt-2", "default")
_CONTROL, _USER_DEFINED = 3, 4
"""Kinds of tokens: special ones, and others that are never cut."""


def read_tokenizer(place: Path, field: Callable[..., Any]) -> Tokenizer:
    """Rebuild a tokenizer from the fields of a GGUF file.

    Args:
        place: of the file, for messages.
        field: gives a field by its key, or a default.

    Raises:
        CheckpointError: it has none, or one of another kind.
    """
    kind, words = field("tokenizer.ggml.model"), field("tokenizer.ggml.pre", "default")
    known = (*_WORDS, *_DIGITS, *_PLAIN)
    if kind != "gpt2" or words not in known:
        found = "no tokenizer" if kind is None else f"a tokenizer of kind {kind}, {words}"
        raise CheckpointError(
            f"{place} has {found}; only byte-level BPE (gpt2; {', '.join(known)}) is rebuilt: name a folder that has "
            "the model's tokenizer.json (--tokenizer)."
        )
    tokens: list[str] = field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in field("tokenizer.ggml.merges", [])]
    vocabulary = {text: index for index, text in enumerate(tokens)}
    pipeline = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=words == "llama-bpe"))
    if words == "qwen2":
        pipeline.normalizer = normalizers.NFC()
    split: list[Any] = []
    if words in _WORDS:
        split = [pre_tokenizers.Split(Regex(_WORDS[words]), "isolated")]
    elif words in _DIGITS:
        split = [pre_tokenizers.Digits(individual_digits=True)]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words not in _WORDS)
    pipeline.pre_tokenizer = pre_tokenizers.Sequence([*split, level])
    pipeline.decoder = decoders.ByteLevel()
    kinds = field("tokenizer.ggml.token_type", [])
    pipeline.add_special_tokens([text for text, each in zip(tokens, kinds, strict=False) if each == _CONTROL])
    pipeline.add_tokens(
        [AddedToken(text, normalized=False) for text, each in zip(tokens, kinds, strict=False) if each == _USER_DEFINED]
    )
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {role: field(f"tokenizer.ggml.{key}_token_id") for role, key in roles.items()}
    settings = {role: tokens[index] for role, index in ids.items() if index is not None and index < len(tokens)}
    return Tokenizer(pipeline, settings, field("tokenizer.chat_template"))
