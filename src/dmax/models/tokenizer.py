"""Text to token ids and back, from the tokenizer files of a Hugging Face folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from dmax.models.chat_template import ChatTemplate, Message
from dmax.models.foreign import is_pointer
from dmax.models.source import CheckpointError, fetched_in_part, read_json

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"

_PUBLISHED_MASK_TOKEN = "<|mask|>"
"""What the published tokenizers call the mask token without naming it as such in their settings."""


class Tokenizer:
    """A ``tokenizers`` pipeline with its special tokens and chat template.

    Args:
        pipeline: the tokenizer proper. Truncation and padding that its last caller left switched on are switched off.
        settings: ``tokenizer_config.json``; its ``*_token`` entries name the special tokens.
        chat_template: Jinja source; None where the model has no chat form.
        ids: special-token ids that a model configuration fixes (``eos_token_id``, ``mask_token_id``); they win over
            the names in ``settings``.
    """

    def __init__(
        self,
        pipeline: tokenizers.Tokenizer,
        settings: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        ids: Mapping[str, int] | None = None,
    ) -> None:
        pipeline.no_truncation()
        pipeline.no_padding()
        self.pipeline = pipeline
        self.settings = dict(settings or {})
        self.chat_template = chat_template
        self._ids = dict(ids or {})
        self._template = None if chat_template is None else ChatTemplate(chat_template)

    @classmethod
    def from_folder(cls, folder: Path, ids: Mapping[str, int] | None = None) -> Tokenizer | None:
        """Read the tokenizer of a checkpoint folder; None where it ships no ``tokenizer.json``."""
        path = folder / TOKENIZER_FILE
        if path.is_symlink() and not path.exists():
            raise CheckpointError(fetched_in_part(folder, [path.name]))
        if not path.exists():
            return None
        try:
            pipeline = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for a file that it cannot parse
            if is_pointer(path):
                reason = f"{path} is a Git LFS pointer, not the tokenizer: run `git lfs pull` there."
            else:
                reason = f"{path} is not a tokenizer file: {error}."
            raise CheckpointError(reason) from error
        named, template_file = folder / SETTINGS_FILE, folder / TEMPLATE_FILE
        settings = read_json(named) if named.exists() or named.is_symlink() else {}
        try:
            template = template_file.read_text(encoding="utf-8") if template_file.exists() else _template_in(settings)
        except ValueError as error:
            raise CheckpointError(f"{template_file} is not UTF-8 text ({error}): fetch or write it again.") from error
        return cls(pipeline, settings, template, ids)

    def save(self, folder: Path) -> None:
        """Write the files that :meth:`from_folder`, and Hugging Face's loaders, read."""
        self.pipeline.save(str(folder / TOKENIZER_FILE))
        settings = {key: value for key, value in self.settings.items() if key != "chat_template"}
        settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if self.chat_template is not None:
            (folder / TEMPLATE_FILE).write_text(self.chat_template, encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Encode a text, with nothing put before or after it.

        Raises:
            ValueError: the text holds half of a surrogate pair, which is no character.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError("the text holds half of a surrogate pair, which is not valid Unicode.") from error
        if _MARK in text:
            return self._encode_marked(text)
        return _ids(self.pipeline, text)

    def fewest_tokens(self, text: str) -> int:
        """Return how many tokens a text has at least, by its length alone; 0 where its length does not tell."""
        return 0 if self._longest is None else (len(text) - text.count(_MARK)) // self._longest

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts as :meth:`encode` does, on all cores but for those with marks."""
        plain = iter(
            self.pipeline.encode_batch([text for text in texts if _MARK not in text], add_special_tokens=False)
        )
        return [self._encode_marked(text) if _MARK in text else next(plain).ids for text in texts]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode token ids; special tokens, and ids beyond the vocabulary, give no text."""
        return self.pipeline.decode(list(token_ids), skip_special_tokens=True)

    def encode_content(self, text: str) -> list[int]:
        """Return the token ids of somebody's words, in which the name of a special token is text like any other.

        Raises:
            ValueError: the text holds half of a surrogate pair.
        """
        return self.encode(self.as_words(text))

    def apply_chat_template(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Return the token ids of a conversation, in the form the model was trained on.

        Special tokens are those that the template writes; their names in the turns themselves are text.

        Raises:
            ValueError: as :meth:`render_chat`.
        """
        return self.encode(self.render_chat(messages, add_generation_prompt, marked=True))

    def render_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        marked: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Return a conversation as the text that the model was trained on, special tokens written out.

        Args:
            messages: the turns, oldest first.
            add_generation_prompt: whether the text ends where the assistant's next turn begins.
            marked: put marks around names of special tokens in the turns, by which :meth:`encode` takes them for text.
            tools: which the model may call, for templates that tell it so.

        Raises:
            ValueError: there is no chat template, it is not valid Jinja, or it refuses these messages.
        """
        texts = [text_of(turn.get("content")) for turn in messages]
        turns: list[dict[str, Any]] = [{**turn, "content": text} for turn, text in zip(messages, texts, strict=True)]
        if marked:
            turns, tools = self._marked(turns), self._marked(list(tools))
        return self._render(turns, add_generation_prompt, tools)

    def _marked(self, value: Any) -> Any:
        """Take every text in a JSON value for somebody's words, names and keys too: all may come from outside."""
        if isinstance(value, str):
            return self.as_words(value)
        if isinstance(value, Mapping):
            return {self._marked(key): self._marked(part) for key, part in value.items()}
        return [self._marked(part) for part in value] if isinstance(value, list | tuple) else value

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, tools: Sequence[Any]) -> str:
        if self._template is None:
            raise ValueError("This model has no chat template: give the prompt as plain text or token ids.")
        names = {key: self._token(key) for key in self.settings if key.endswith("_token")}
        return self._template.render(messages, add_generation_prompt, names, tools)

    def as_words(self, text: str) -> str:
        """Return somebody's words with marks, which no template touches, around the names of special tokens."""
        return self._special.sub(rf"{_MARK}\g<0>{_MARK}", text.replace(_MARK, "")) if self._special else text

    def _encode_marked(self, text: str) -> list[int]:
        parts = text.split(_MARK)  # every other one is the name of a special token that somebody wrote
        ids: list[int] = []
        for place, part in enumerate(parts):
            if part:
                ids += _ids(self._without_special, part) if place % 2 else self.encode(part)
        return ids

    @cached_property
    def _longest(self) -> int | None:
        """Most characters that one token can stand for; None where the pipeline may leave characters out."""
        parts = json.loads(self.pipeline.to_str())
        model, added = parts["model"], parts["added_tokens"]
        steps = parts["pre_tokenizer"] or {}
        kinds = {step["type"] for step in steps.get("pretokenizers", [steps])} if steps else set()
        normalizers = {"type": "NFC", **(parts["normalizer"] or {})}
        keeps_all = (
            model["type"] == "BPE"
            and {"ByteLevel"} <= kinds <= {"ByteLevel", "Digits", "Split"}
            and "Removed" not in json.dumps(steps)
            and normalizers["type"] == "NFC"
            and all(letter in model["vocab"] for letter in tokenizers.pre_tokenizers.ByteLevel.alphabet())
            and not any(token["lstrip"] or token["rstrip"] for token in added)
        )
        longest = max(map(len, (*model["vocab"], *(token["content"] for token in added))), default=1)
        # NFC makes one character of up to four (https://unicode.org/faq/normalization.html).
        return longest * (4 if parts["normalizer"] else 1) if keeps_all else None

    @cached_property
    def _special(self) -> re.Pattern[str] | None:
        """Matches the name of any special token, the longest first."""
        added = self.pipeline.get_added_tokens_decoder().values()
        names = sorted((token.content for token in added if token.special), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names))) if names else None

    @cached_property
    def _without_special(self) -> tokenizers.Tokenizer:
        """The pipeline that takes the names of special tokens for text."""
        pipeline = tokenizers.Tokenizer.from_str(self.pipeline.to_str())
        pipeline.encode_special_tokens = True
        return pipeline

    @property
    def eos_token_id(self) -> int:
        """Id of the token that ends an answer; ValueError where nothing names one."""
        return self._known_id("eos_token")

    @property
    def mask_token_id(self) -> int:
        """Id of the token that stands for "not decided yet"; ValueError where nothing names one."""
        return self._known_id("mask_token")

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model's vocabulary may be padded beyond it."""
        return self.pipeline.get_vocab_size()

    def special_id(self, key: str) -> int | None:
        """Find the id of a special token by its role, such as ``eos_token``; None where nothing names one."""
        if f"{key}_id" in self._ids:
            return self._ids[f"{key}_id"]
        token = self._token(key)
        if token is None and key == "mask_token":
            token = _PUBLISHED_MASK_TOKEN
        return None if token is None else self.pipeline.token_to_id(token)

    def _known_id(self, key: str) -> int:
        found = self.special_id(key)
        if found is None:
            raise ValueError(
                f"The tokenizer has no {key}: name it in {SETTINGS_FILE}, or give {key}_id in config.json."
            )
        return found

    def _token(self, key: str) -> str | None:
        """Return a special token's text; settings hold it plain or as an object with ``content``."""
        value = self.settings.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) else None


def _template_in(settings: Mapping[str, Any]) -> str | None:
    """Find the chat template inside ``tokenizer_config.json``: one source, or a list of named ones."""
    value = settings.get("chat_template")
    if isinstance(value, list):
        value = next((entry.get("template") for entry in value if entry.get("name") == "default"), None)
    return value if isinstance(value, str) else None


_SHORT = 4096
"""Characters that are encoded within a millisecond or two."""
_MARK = "\ufdd0"
"""A code point that Unicode keeps free for a program's own use: it is in nobody's text."""


def _ids(pipeline: tokenizers.Tokenizer, text: str) -> list[int]:
    if len(text) <= _SHORT:
        return pipeline.encode(text, add_special_tokens=False).ids
    # As a batch, because that lets other threads run meanwhile; the pipeline's own `encode` does not. But a batch is
    # handed to another thread, which waits for a core where all are busy.
    [found] = pipeline.encode_batch([text], add_special_tokens=False)
    return found.ids


def text_of(content: Any) -> str:
    """Return the text of a turn's content: a string, none, or a list of text parts as OpenAI's clients write it.

    Raises:
        ValueError: a part is something else than text.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"a turn's content is a {type(content).__name__}; give a text, or a list of text parts.")
    for place, part in enumerate(content, 1):
        kind = part.get("type", "?") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"part {place} of a turn's content is {kind}; only text is taken.")
    return "".join(part["text"] for part in content)
