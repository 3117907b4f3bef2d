"""JSON schemas as constraints: what they let through is what they describe, and what cannot be held to is refused."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import jsonschema_rs
import pytest
import tokenizers

from dmax import ModelConfig, Tokenizer, load_tokenizer
from dmax.engine.json_schema import JsonConstraint, JsonSchemas, SchemaError, check_json
from dmax.models import load_config

EOS = 1


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = load_tokenizer("nano")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return load_config("nano")


@pytest.fixture(scope="module")
def schemas(config: ModelConfig, tokenizer: Tokenizer) -> JsonSchemas:
    return JsonSchemas(config, tokenizer)


def accepts(schemas: JsonSchemas, tokenizer: Tokenizer, schema: Any, text: str) -> bool:
    constraint = schemas.constraint(json.dumps(schema))
    return all(map(constraint.take, tokenizer.encode(text))) and constraint.take(EOS)


SCHEMAS: list[Any] = [
    {"type": "object"},
    {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 3},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
    {"type": "object", "properties": {"a": {}, 'é"\n': {"type": "null"}}, "required": ['é"\n', "b"]},
    {"type": "object", "patternProperties": {"^x": {"type": "boolean"}}, "additionalProperties": False},
    {"type": "object", "required": ["a"], "minProperties": 2},
    {"type": "array", "items": {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2}, "maxItems": 3},
    {"type": "array", "prefixItems": [{"const": "tab\t"}, {"type": "integer"}], "items": False},
    {"type": "array", "minItems": 2, "maxItems": 2},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^\\d{2}-[a-c]+\\.$"},
    {"type": "string", "format": "date"},
    {"type": ["string", "null"], "maxLength": 3},
    {"type": "integer", "multipleOf": 7, "minimum": -20, "maximum": 99},
    {"enum": [{"k": [1, "v"]}, "r", None, 2.5]},
    {"anyOf": [{"type": "boolean"}, {"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]}]},
    {"oneOf": [{"type": "integer", "maximum": 9, "minimum": 0}, {"type": "string", "maxLength": 2}]},
    {"allOf": [{"$ref": "#/$defs/d"}, {"maximum": 5}], "$defs": {"d": {"type": "integer", "minimum": 0}}},
    {"title": "t", "description": "\u0001", "default": 1, "examples": ["\u0002"], "type": "boolean"},
    True,
]


def walk(schemas: JsonSchemas, tokenizer: Tokenizer, schema: Any, source: random.Random) -> bool:
    """Whether an answer of allowed tokens, drawn at random, came to its end; then it must be as the schema says."""
    constraint = schemas.constraint(json.dumps(schema))
    token_ids: list[int] = []
    while token_ids[-1:] != [EOS] and len(token_ids) < 300:
        allowed = constraint.allowed().nonzero().flatten().tolist()
        ends = [one for one in allowed if one == EOS or set(tokenizer.decode([one])) & set('"}]')]
        token_ids.append(source.choice(ends if ends and source.random() < 0.3 else allowed))
        assert constraint.take(token_ids[-1]), (schema, tokenizer.decode(token_ids))
    if token_ids[-1] != EOS:
        return False
    text = tokenizer.decode(token_ids)
    check_json(text)
    assert jsonschema_rs.validator_for(schema).is_valid(json.loads(text)), (schema, text)
    assert constraint.allowed().nonzero().tolist() == [[EOS]]
    return True


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_whatever_is_allowed_ends_in_an_answer_that_the_schema_describes(
    schemas: JsonSchemas, tokenizer: Tokenizer, schema: Any
) -> None:
    source = random.Random(json.dumps(schema))
    assert sum(walk(schemas, tokenizer, schema, source) for _ in range(30)) > 10


LEAVES: list[Any] = [
    {"type": "boolean"}, {"type": "null"}, {"type": "integer", "minimum": -7, "maximum": 30},
    {"type": "integer", "multipleOf": 3, "exclusiveMinimum": -20, "maximum": 100}, {"type": "string", "maxLength": 3},
    {"type": "number", "exclusiveMinimum": -1.25, "maximum": 2.5}, {"type": "number", "multipleOf": 0.25, "minimum": 0},
    {"type": "string", "minLength": 2, "maxLength": 6}, {"type": ["string", "null"], "maxLength": 4},
    {"type": "string", "pattern": "^\\d{2}-\\w+$", "maxLength": 7},
    {"type": "string", "pattern": "x|yy", "maxLength": 4},
    {"type": "string", "pattern": "[^a-z]", "maxLength": 5}, {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uuid"}, {"enum": ["r", 1, 2.5, None, {"k": [1]}]},
    {"const": "tab\t"}, {"const": {"z": {"y": 1}}}, {"type": ["integer", "boolean"], "minimum": 2, "maximum": 4},
    {"$ref": "#/$defs/d"}, {"title": "t", "description": "d", "default": "x", "type": "string", "maxLength": 2},
]  # fmt: skip


def any_schema(source: random.Random, depth: int) -> Any:
    """A schema of any keywords; many cannot be held to, or describe nothing."""
    if depth == 0:
        return source.choice(LEAVES)
    inner = [any_schema(source, depth - 1) for _ in range(3)]
    names = source.sample(["a", "b", "ab", "é", "x\ny", 'q"'], 3)
    held = source.sample(names, 2) + (["extra"] if source.random() < 0.1 else [])
    described = {"type": "object", "properties": dict(zip(names, inner, strict=True)), "required": held}
    kinds: list[Any] = [
        described,
        described | {"additionalProperties": source.choice([True, False, inner[0]])},
        described | {"patternProperties": {"^p_": inner[0]}, "maxProperties": source.randrange(2, 6)},
        described | {"required": names, "minProperties": source.randrange(5), "additionalProperties": inner[0]},
        described | {"$ref": "#/$defs/d"},
        {"type": "array", "items": inner[0], "minItems": source.randrange(2), "maxItems": 3},
        {"type": "array", "prefixItems": inner[:2], "items": source.choice([False, inner[2]]), "maxItems": 4},
        {"anyOf": inner}, {"oneOf": inner[:2]}, {"allOf": inner[:2]}, described | {"anyOf": inner[:2]},
    ]  # fmt: skip
    return source.choice(kinds)


@pytest.mark.slow
def test_whatever_schema_is_taken_is_held_to(schemas: JsonSchemas, tokenizer: Tokenizer) -> None:
    source = random.Random(5)
    taken = refused = 0
    for _ in range(600):
        schema = any_schema(source, source.randrange(4)) | {"$defs": {"d": any_schema(source, source.randrange(2))}}
        try:
            schemas.constraint(json.dumps(schema))
        except SchemaError:
            refused += 1
            continue
        taken += 1
        for _ in range(3):
            walk(schemas, tokenizer, schema, source)
    assert taken > refused


def test_going_back_is_as_if_nothing_had_been_taken(schemas: JsonSchemas, tokenizer: Tokenizer) -> None:
    constraint = schemas.constraint('{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}')
    token_ids = [*tokenizer.encode('{"a": 12}'), EOS, EOS, EOS]
    seen = []
    for token_id in token_ids:
        seen.append(constraint.allowed())
        assert constraint.take(token_id)
    for steps in (1, 2, 5, len(token_ids)):
        constraint.back(steps)
        for place in range(len(token_ids) - steps, len(token_ids)):
            assert constraint.allowed().equal(seen[place])
            assert constraint.take(token_ids[place])


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"properties": {"a": {"type": "integer"}}, "additionalProperties": True}, '{"a": 1, "\\u0061": "x"}'),
        ({"properties": {"a": {"type": "integer"}}, "additionalProperties": True}, '{"a": 1, "a": "x"}'),
        ({"properties": {"a": {"type": "integer"}}}, '{"a": 1, "b": "x"}'),
        ({"type": "string"}, '"\\ud800"'),
        ({"type": "object"}, '{"a":  1}'),
        ({"type": "integer"}, "1.0"),
        ({"type": "integer"}, "1 "),
        ({"type": "string", "pattern": "^\\d$"}, '"٣"'),
    ],
)
def test_what_would_break_the_promise_is_not_allowed(
    schemas: JsonSchemas, tokenizer: Tokenizer, schema: Any, text: str
) -> None:
    assert not accepts(schemas, tokenizer, schema, text)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"properties": {"a": {}}, "additionalProperties": {}}, '{"b": 1}'),
        ({"properties": {"a": {}}, "patternProperties": {"b": {}}, "additionalProperties": False}, '{"b": 1}'),
        ({"properties": {"a": {}}, "required": ["b"]}, '{"b": 1}'),
        ({"properties": {"a": {}}, "minProperties": 1, "required": ["a"]}, '{"a": 1, "b": 1}'),
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, '{"b": 1}'),
        ({"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}]}, '{"b": 1}'),
        ({"properties": {"a": {}}, "$ref": "#/$defs/d", "$defs": {"d": {"properties": {"b": {}}}}}, '{"b": 1}'),
        ({"type": "object"}, '{"b": {"c": []}}'),
    ],
)
def test_further_properties_are_allowed_where_a_schema_speaks_of_them(
    schemas: JsonSchemas, tokenizer: Tokenizer, schema: Any, text: str
) -> None:
    assert accepts(schemas, tokenizer, schema, text)


@pytest.mark.parametrize(
    ("schema", "held", "beyond"),
    [
        ({"type": "integer"}, (0, 2**53 - 1, 1 - 2**53), (2**53, -(2**53))),
        ({"type": ["integer", "null"], "minimum": 5}, (5, 2**53 - 1), (4, 2**53)),
        ({"type": "integer", "exclusiveMaximum": 0}, (-1, 1 - 2**53), (0, -(2**53))),
        ({"type": "integer", "maximum": 10**17}, (10**17, 1 - 2**53), (10**17 + 1, -(2**53))),
        ({"type": "integer", "minimum": 10**17}, (10**17, 10**30), (10**16,)),
        ({"type": "integer", "enum": [10**17]}, (10**17,), (1,)),
        ({"type": "integer", "multipleOf": 7}, (14, -7), (15, 7 * 10**17)),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, (10**17,), ()),
    ],
)
def test_integers_without_bounds_are_those_that_every_reader_holds_exactly(
    schemas: JsonSchemas, tokenizer: Tokenizer, schema: Any, held: tuple[int, ...], beyond: tuple[int, ...]
) -> None:
    assert [value for value in (*held, *beyond) if accepts(schemas, tokenizer, schema, str(value))] == [*held]


def test_what_asks_for_nothing_is_taken(schemas: JsonSchemas, tokenizer: Tokenizer) -> None:
    pairs = {"type": "array", "items": {"type": "array", "uniqueItems": False}, "uniqueItems": False}
    assert accepts(schemas, tokenizer, pairs, "[[1, 1], [1, 1]]")
    assert accepts(schemas, tokenizer, {"const": {"uniqueItems": False}}, '{"uniqueItems": false}')


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        (False, "must be an object"),
        ([1], "must be an object"),
        ("text", "must be an object"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"properties": {"a": {"not": {"type": "null"}}}}, '"not"'),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "format": "regex"}, "Unknown format: regex"),
        ({"$ref": "http://example.com/schema"}, "http://example.com/schema"),
        ({"$ref": "#/$defs/none"}, "/$defs/none"),
        ({"$ref": "#"}, "leads to itself"),
        ({"type": "string", "pattern": "^\\u0000$"}, "control character"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"oneOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}}]}, "oneOf"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
        ({"type": "whole"}, "whole"),
        ({"type": "integer", "minimum": "a"}, "minimum"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"items": [{"x-guidance": {"lenient": True}}]}, "x-guidance"),
        ({"properties": {"minProperties": {"const": "\u0001"}}}, "'\\x01'"),
        ({"enum": ["\ud800"]}, "JSON schema"),
    ],
)
def test_what_cannot_be_held_to_is_refused_by_its_part(schemas: JsonSchemas, schema: Any, named: str) -> None:
    with pytest.raises(SchemaError) as refusal:
        schemas.constraint(json.dumps(schema))
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)


def without(tokenizer: Tokenizer, letters: str) -> Tokenizer:
    """The tokenizer without any token that has one of these letters of bytes."""
    parts = json.loads(tokenizer.pipeline.to_str())
    model = parts["model"]
    model["vocab"] = {token: one for token, one in model["vocab"].items() if not set(token) & set(letters)}
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    model["merges"] = [pair for pair in merges if {*pair, "".join(pair)} <= model["vocab"].keys()]
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(parts)), tokenizer.settings)


def test_a_tokenizer_that_lacks_a_character(config: ModelConfig, tokenizer: Tokenizer) -> None:
    with pytest.raises(SchemaError, match=r"needs the character '\}', which no token of this model spells"):
        JsonSchemas(config, without(tokenizer, "}")).constraint('{"type": "object"}')
    no_z_upper = JsonSchemas(config, without(tokenizer, "Z"))
    with pytest.raises(SchemaError, match="needs the character 'Z'"):
        no_z_upper.constraint('{"type": "object", "properties": {"Z": {}}}')
    assert no_z_upper.constraint('{"type": "object", "description": "Z"}').allowed().any()
    # A pattern's characters are not looked for: an answer that comes to one says why it cannot go on.
    stuck = no_z_upper.constraint('{"type": "string", "pattern": "^aZ$"}')
    assert all(map(stuck.take, tokenizer.encode('"a')))
    assert not any(map(stuck.take, stuck.allowed().nonzero().flatten().tolist() or [EOS]))
    assert stuck.problem is not None
    assert "no token of this model spells what would have to come next" in stuck.problem


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {f"k{at}": {"type": "boolean"} for at in range(1000)}},
        {"type": "string", "pattern": "^(?:a?){300}a{300}$"},
    ],
    ids=["properties", "pattern"],
)
def test_a_schema_beyond_the_librarys_limits_says_so(schemas: JsonSchemas, tokenizer: Tokenizer, schema: Any) -> None:
    constraint = schemas.constraint(json.dumps(schema))
    for token_id in tokenizer.encode('{"k7": true, ' if "properties" in schema else '"aaa'):
        if not (constraint.allowed()[token_id] and constraint.take(token_id)):
            constraint.take(token_id)
            break
    assert constraint.problem is not None
    assert "too intricate to be followed" in constraint.problem


def test_a_tokenizer_that_does_not_tell_bytes(config: ModelConfig, word_tokenizer: Any) -> None:
    with pytest.raises(SchemaError, match="does not tell the bytes of its tokens"):
        JsonSchemas(config, word_tokenizer(None)).constraint('{"type": "object"}')


def test_a_missing_library_is_one_sentence(
    config: ModelConfig, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(SchemaError, match=r"need llguidance; pip install 'dmax-llm\[structured\]'"):
        JsonSchemas(config, tokenizer).constraint("{}")


def test_what_is_no_json_is_not_returned() -> None:
    check_json('{"a": 1}')
    for text in (None, "", "{", "[" * 100_000):
        with pytest.raises(ValueError, match="no JSON"):
            check_json(text)


def test_a_token_that_may_not_come_is_refused_for_good(schemas: JsonSchemas, tokenizer: Tokenizer) -> None:
    constraint: JsonConstraint = schemas.constraint('{"type": "integer"}')
    assert not constraint.take(EOS)
    assert constraint.problem is not None
