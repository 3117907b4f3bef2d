"""JSON schemas as constraints of a decode, by ``llguidance``, which tells what may follow a beginning of JSON.

The library takes most of JSON Schema and refuses what it cannot hold an answer to. What it takes and yet does not hold
in every case is refused here.

Shape suffixes: V vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmax.engine.params import GenerationError
from dmax.models.config import ModelConfig
from dmax.models.tokenizer import Tokenizer

_STYLE = {
    # As json.dumps writes it: what a model has no choice in is decoded at once, and white space never goes on for ever.
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    # One spelling for every string: by another spelling of a key, an answer could give a property twice.
    "json_allowed_escapes": 'nrbtf\\"',
    "json_allow_general_unicode_escapes": False,
    "coerce_one_of": False,
    "lenient": False,
}
_SIGNS = '{}[]",:-0123456789.abcdefghijklmnopqrstuvwxyz'
"""What JSON cannot do without, by and large."""
_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords whose values are schemas by name."""
_MOST = 2**53 - 1
"""Greatest integer of I-JSON (RFC 7493)."""
_OF_VALUES = ("enum", "const", "default", "examples")
"""Keywords whose values are no schemas."""


class SchemaError(GenerationError):
    """No answer could be held to this JSON schema; the message says why."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "json_schema")


def check_json(text: str | None) -> None:
    """Check that a whole answer is JSON, which only a tokenizer that tells other bytes than it decodes can break.

    Raises:
        GenerationError: it is not.
    """
    try:
        json.loads(text or "")
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"the answer by a JSON schema turned out to be no JSON ({error}).") from error


class JsonConstraint:
    """One answer as far as it is JSON by a schema; see :class:`~dmax.decoding.constrained.Constraint`."""

    def __init__(self, matcher: Any, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self.problem: str | None = None
        """Why the answer cannot go on."""
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._ends = 0
        """EOS tokens behind the whole."""

    def allowed(self) -> Tensor:
        """Return ``(V,)`` bool on the CPU; behind the whole, EOS alone."""
        if self._ends:
            return torch.zeros(self._vocab_size, dtype=torch.bool).index_fill(
                0, torch.tensor(self._eos_token_ids), True
            )
        words = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            return torch.zeros(self._vocab_size, dtype=torch.bool)
        bits = np.unpackbits(np.frombuffer(words, np.uint8), count=self._vocab_size, bitorder="little")
        return torch.from_numpy(bits).bool()

    def take(self, token_id: int) -> bool:
        """Go on by a token."""
        if token_id in self._eos_token_ids and (self._ends or self._matcher.is_accepting()):
            self._ends += 1
            return True
        if not self._ends and self._matcher.consume_token(token_id):
            return True
        error = re.split(r"[;\n]|\s\(", self._matcher.get_error())[0]
        why = "it is too intricate to be followed, or no value by it ends"
        if "satisfy" in error:  # else the library has come to a limit of its own
            why = "no token of this model spells what would have to come next"
        self.problem = self.problem or (
            f"the answer cannot go on by its JSON schema: {why}; simplify the schema. ({error})"
        )
        return False

    def back(self, count: int) -> None:
        """Take back the last ``count`` tokens."""
        ends = min(count, self._ends)
        self._ends -= ends
        if count > ends:
            self._matcher.rollback(count - ends)


class JsonSchemas:
    """Makes constraints for one model.

    Args:
        config: of the model.
        tokenizer: its own.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        self._config = config
        self._tokenizer = tokenizer

    def constraint(self, schema: str) -> JsonConstraint:
        """Return what holds an answer to a schema, given as JSON.

        Raises:
            SchemaError: the schema is none, or asks for what cannot be held to; llguidance is not installed; or this
                model's tokens do not spell JSON.
        """
        value = json.loads(schema)
        value = {} if value is True else value
        if not isinstance(value, dict):
            raise SchemaError(f'the JSON schema is {schema[:40]}; it must be an object, such as {{"type": "object"}}.')
        library, tokens = self._library, self._tokens
        self._check(value)
        _leave_out_idle(value)
        if not any(map(_is_open, _schemas(value))):
            value = _narrowed(value)
        try:
            grammar = library.LLMatcher.grammar_from_json_schema(json.dumps(value), overrides=_STYLE)
            matcher = library.LLMatcher(
                tokens, grammar, log_level=0, limits=library.LLParserLimits(verbose_errors=False)
            )
        except ValueError as error:
            raise SchemaError(_refusal(str(error))) from error
        if matcher.is_error():
            raise SchemaError(_refusal(matcher.get_error()))
        constraint = JsonConstraint(matcher, self._config.vocab_size, self._config.eos_token_ids)
        if not constraint.allowed().any():
            raise SchemaError(
                "the JSON schema describes nothing that could be spelled: a reference leads to itself, or a text has a "
                "control character; mend it."
            )
        return constraint

    @cached_property
    def _library(self) -> Any:
        try:
            import llguidance
        except ImportError as error:
            raise SchemaError(
                "answers by a JSON schema need llguidance; pip install 'dmax-llm[structured]'."
            ) from error
        return llguidance

    @cached_property
    def _tokens(self) -> Any:
        try:
            return self._library.LLTokenizer(
                self._tokenizer.pipeline.to_str(),
                n_vocab=self._config.vocab_size,
                eos_token=list(self._config.eos_token_ids),
            )
        except ValueError as error:
            raise SchemaError(f"this model's tokenizer does not tell the bytes of its tokens ({error}).") from error

    @cached_property
    def _spelled(self) -> set[int]:
        """Bytes that are tokens by themselves: from them any text that has no others can be spelled."""
        single = (self._tokens.decode_bytes([token_id]) for token_id in range(self._tokens.vocab_size))
        return {spelled[0] for spelled in single if len(spelled) == 1}

    def _check(self, schema: dict[str, Any]) -> None:
        """Refuse what the library takes and does not hold in every case, and what cannot be spelled."""
        for part in _schemas(schema):
            if "x-guidance" in part:
                raise SchemaError("the JSON schema has x-guidance, which is no part of JSON Schema; leave it out.")
            fewest, required = part.get("minProperties"), part.get("required")
            if isinstance(fewest, int | float) and fewest > 1 + len(set(_strings(required))):
                raise SchemaError(
                    f"the JSON schema has minProperties {fewest}, and an answer may give one further property twice; "
                    "name the properties in required instead."
                )
            for text in _texts(part):
                self._check_text(text)
        self._check_text(_SIGNS)

    def _check_text(self, text: str) -> None:
        hidden = next((sign for sign in text if sign < " " and sign not in "\n\r\b\t\f"), None)
        if hidden is not None:
            raise SchemaError(
                f"the JSON schema has a text with the control character {hidden!r}, which is not supported."
            )
        missing = next((sign for sign in text if not self._spelled.issuperset(sign.encode(errors="replace"))), None)
        if missing is not None:
            raise SchemaError(f"the JSON schema needs the character {missing!r}, which no token of this model spells.")


def _refusal(reason: str) -> str:
    return (
        f"the JSON schema is not supported as it is: {' '.join(reason.split())[:300].rstrip('.')}; leave that part out."
    )


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every schema inside a schema, and it itself."""
    if isinstance(schema, list):
        for part in schema:
            yield from _schemas(part)
    if not isinstance(schema, dict):
        return
    yield schema
    for keyword, value in schema.items():
        if keyword in _OF_SCHEMAS and isinstance(value, dict):
            yield from _schemas(list(value.values()))
        elif keyword not in _OF_VALUES:
            yield from _schemas(value)


def _leave_out_idle(schema: Any) -> None:
    """Take out what asks for nothing, and would be refused for its keyword."""
    for part in _schemas(schema):
        if part.get("uniqueItems") is False:
            del part["uniqueItems"]


def _is_open(schema: Mapping[str, Any]) -> bool:
    """Tell whether other schemas speak of what a schema speaks of, so that it may not be closed by itself.

    They may name further properties; and of the alternatives of a ``oneOf`` only one may hold, as they were given.
    """
    beside = ("$ref", "anyOf") if "properties" in schema else ()
    return not schema.keys().isdisjoint(("allOf", "oneOf", *beside))


def _narrowed(schema: Any) -> Any:
    """Leave a schema no properties but those that it names, where it says nothing of others, and bound its integers.

    So an answer is by the schema all the more, and a model that is lost does not go on with properties or digits for
    ever.
    """
    if isinstance(schema, list):
        return [_narrowed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    narrowed = {
        keyword: {name: _narrowed(part) for name, part in value.items()}
        if keyword in _OF_SCHEMAS and isinstance(value, dict)
        else value
        if keyword in _OF_VALUES
        else _narrowed(value)
        for keyword, value in schema.items()
    }
    named = schema.get("properties")
    says_more = not schema.keys().isdisjoint(("additionalProperties", "patternProperties", "minProperties"))
    if isinstance(named, dict) and not says_more and named.keys() >= set(_strings(schema.get("required"))):
        narrowed["additionalProperties"] = False
    return narrowed | _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> dict[str, int]:
    """Return the bounds that a schema's integers lack: those within which every reader of JSON holds them exactly."""
    if "integer" not in _strings(schema.get("type")) or not schema.keys().isdisjoint(("enum", "const")):
        return {}
    low, high = (schema.get(f"{side}imum", schema.get(f"exclusive{side.capitalize()}imum")) for side in ("min", "max"))
    if not all(bound is None or isinstance(bound, int | float) for bound in (low, high)):
        return {}  # which the library refuses in its words
    bounds = {}
    if low is None and (high is None or high > -_MOST):
        bounds["minimum"] = -_MOST
    if high is None and (low is None or low < _MOST):
        bounds["maximum"] = _MOST
    return bounds


def _texts(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts of a schema, those inside of it apart, that an answer may have to spell."""
    names = schema.get("properties")
    yield from _strings([schema.get("enum"), schema.get("const"), schema.get("required")])
    yield from names if isinstance(names, dict) else ()


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
    elif isinstance(value, dict):
        yield from _strings([*value, *value.values()])
