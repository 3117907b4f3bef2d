"""Text to token ids and back, from the tokenizer files of a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dmax.models.source import CheckpointError, read_json

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"

_PUBLISHED_MASK_TOKEN = "<|mask|>"
"""What the published tokenizers call the mask token without naming it as such in their settings."""

Message = Mapping[str, Any]
"""One chat turn: ``role`` and ``content``, as the chat template expects them."""


class Tokenizer:
    """A ``tokenizers`` pipeline with its special tokens and chat template.

    Args:
        pipeline: the tokenizer proper.
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
        self.pipeline = pipeline
        self.settings = dict(settings or {})
        self.chat_template = chat_template
        self._ids = dict(ids or {})
        self._render = None if chat_template is None else _compile(chat_template)

    @classmethod
    def from_folder(cls, folder: Path, ids: Mapping[str, int] | None = None) -> Tokenizer | None:
        """Read the tokenizer of a checkpoint folder; None where it ships no ``tokenizer.json``."""
        path = folder / TOKENIZER_FILE
        if not path.exists():
            return None
        try:
            pipeline = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for a file that it cannot parse
            raise CheckpointError(f"{path} is not a tokenizer file: {error}.") from error
        settings = read_json(folder / SETTINGS_FILE) if (folder / SETTINGS_FILE).exists() else {}
        template_file = folder / TEMPLATE_FILE
        template = template_file.read_text(encoding="utf-8") if template_file.exists() else _template_in(settings)
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
        """Token ids of a text, with nothing put before or after it.

        Raises:
            ValueError: the text holds half of a surrogate pair, which is no character.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError("the text holds half of a surrogate pair, which is not valid Unicode.") from error
        # As a batch, because that lets other threads run meanwhile; the pipeline's own `encode` does not.
        [found] = self.pipeline.encode_batch([text], add_special_tokens=False)
        return found.ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """:meth:`encode` of many texts, on all cores."""
        return [found.ids for found in self.pipeline.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids; special tokens, and ids beyond the vocabulary, give no text."""
        return self.pipeline.decode(list(token_ids), skip_special_tokens=True)

    def apply_chat_template(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation, in the form the model was trained on; see :meth:`render_chat`."""
        return self.encode(self.render_chat(messages, add_generation_prompt))

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """A conversation as the text that the model was trained on, special tokens written out.

        Args:
            messages: the turns, oldest first.
            add_generation_prompt: whether the text ends where the assistant's next turn begins.

        Raises:
            ValueError: there is no chat template, or it refuses these messages.
        """
        if self._render is None:
            raise ValueError("This model has no chat template: give the prompt as plain text or token ids.")
        names = {key: self._token(key) for key in self.settings if key.endswith("_token")}
        try:
            return self._render.render(messages=messages, add_generation_prompt=add_generation_prompt, **names)
        except Exception as error:  # a template is a program of the checkpoint's: it can fail in any way
            raise ValueError(f"The chat template does not take these messages: {error}.") from error

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
        """Id of a special token by its role, such as ``eos_token``; None where nothing names one."""
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
        """A special token's text; settings hold it plain or as an object with ``content``."""
        value = self.settings.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) else None


def _template_in(settings: Mapping[str, Any]) -> str | None:
    """The chat template inside ``tokenizer_config.json``: one source, or a list of named ones."""
    value = settings.get("chat_template")
    if isinstance(value, list):
        value = next((entry.get("template") for entry in value if entry.get("name") == "default"), None)
    return value if isinstance(value, str) else None


def _compile(source: str) -> Any:
    """A template in Jinja's immutable sandbox: a checkpoint's template can format text and nothing else."""

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = to_json  # Jinja's own escapes for HTML
    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise CheckpointError(f"The chat template is not valid Jinja: {error}.") from error
