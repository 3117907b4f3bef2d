"""Answers by a JSON schema, from the embedded model: whatever it says, they parse and validate, or were cut."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random
from typing import Any

import jsonschema_rs
import pytest
import tokenizers

from dmax import LLM, EngineConfig, GenerationOutput, GenerationParams, LLMEngine, Tokenizer
from dmax.engine import GenerationError
from dmax.engine.kv_cache import page_bytes

QUESTION = LLM.chat_prompt("Sam has 3 bags of 14 marbles. How many marbles is that?")
DECODERS: list[dict[str, Any]] = [
    {},
    {"decoder": "threshold"},
    {"decoder": "hierarchical"},
    {"decoder": "fixed-steps", "decoder_options": {"steps": 8}},
    {"decoder": "joint-threshold", "threshold": 0.5, "editing_threshold": 0.5},
    {"decoder": "joint-threshold-indel"},
    {"decoder": "entropy-bounded", "temperature": 0.5},
    {"decoder": "remask", "decoder_options": {"remask_threshold": 0.9}},
    {"threshold": 0.0, "temperature": 1.5, "top_p": 0.9},
    {"decoder_options": {"contiguous": False, "top_k": 3}},
    {"decoder": "threshold", "threshold": 0.3, "temperature": 0.7, "block_length": 16},
]
POINT = {
    "type": "object",
    "properties": {
        "sum": {"type": "integer", "minimum": 0, "maximum": 99},
        "even": {"type": "boolean"},
        "unit": {"enum": ["bags", "marbles", "é"]},
    },
    "required": ["sum", "even", "unit"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("nano")


def leaf(random: Random) -> dict[str, Any]:
    """A schema of values of a few tokens, so that most answers end before they are cut."""
    low = random.randrange(-20, 20)
    return random.choice(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": "integer", "minimum": low, "maximum": low + random.randrange(1, 50)},
            {"type": "number", "exclusiveMinimum": low / 8, "maximum": low / 8 + 1, "multipleOf": 0.125},
            {"type": "string", "minLength": 1, "maxLength": random.randrange(1, 6)},
            {"type": "string", "pattern": "^[a-c]{1,3}-\\d$"},
            {"enum": random.sample(["red", "é", 1, 2.5, None, True, {"k": ["v"]}, []], 3)},
            {"const": random.choice(["c", 0, {"z": {"y": 1}}])},
            {"type": ["string", "null"], "maxLength": 3},
        ]
    )


def schema_of(random: Random, depth: int) -> dict[str, Any]:
    """A schema so many levels deep."""
    if depth == 0:
        return leaf(random)
    inner, others = schema_of(random, depth - 1), [leaf(random) for _ in range(random.randrange(2))]
    kind = random.randrange(4)
    if kind < 2:
        names = random.sample(["a", "b", "name", "é", 'q"'], 1 + len(others))
        properties = dict(zip(names, [inner, *others], strict=True))
        required = [name for name in names if random.random() < 0.7]
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": kind == 0 and leaf(random),
        }
    if kind == 2:
        prefix = {"prefixItems": others} if others else {}
        return {"type": "array", **prefix, "items": inner, "minItems": 1, "maxItems": 2}
    return {"anyOf": [inner, *others]}


def check(schema: Any, output: GenerationOutput) -> bool:
    """Whether the answer is whole; then it must be as the schema says."""
    if output.finish_reason == "length":
        return False
    assert output.text is not None
    jsonschema_rs.validator_for(schema).validate(json.loads(output.text))
    return True


def answers(llm: LLM, schemas: list[Any], seed: int = 0) -> int:
    """How many of the answers are whole, each by its schema and one of the decoders."""
    params = [
        GenerationParams(json_schema=schema, gen_length=80, seed=seed + at, **DECODERS[at % len(DECODERS)])
        for at, schema in enumerate(schemas)
    ]
    outputs = llm.generate([QUESTION] * len(schemas), params)
    return sum(check(schema, output) for schema, output in zip(schemas, outputs, strict=True))


def tokens(output: GenerationOutput) -> tuple[Any, ...]:
    return output.token_ids, output.passes, output.revisions, output.finish_reason


def test_answers_by_schemas_of_growing_nesting(llm: LLM) -> None:
    random = Random(0)
    schemas = [schema_of(random, depth) for depth in range(5) for _ in range(8)]
    assert answers(llm, schemas) > len(schemas) // 2


@pytest.mark.slow
def test_answers_by_many_schemas(llm: LLM) -> None:
    random = Random(1)
    schemas = [schema_of(random, depth) for depth in range(8) for _ in range(25)]
    assert answers(llm, schemas, seed=100) > len(schemas) // 2


def test_every_decoder_answers_and_the_uncached_loop_gives_the_same(llm: LLM) -> None:
    params = [GenerationParams(json_schema=POINT, gen_length=64, **decoder) for decoder in DECODERS]
    outputs = llm.generate([QUESTION] * len(params), params)
    assert all(check(POINT, output) for output in outputs)
    kept = [at for at, one in enumerate(params) if one.temperature == 0]
    plain = llm.generate([QUESTION] * len(kept), [replace(params[at], use_cache=False) for at in kept])
    assert [tokens(output) for output in plain] == [tokens(outputs[at]) for at in kept]


def test_neighbours_are_answered_as_alone_and_so_is_the_answer_by_a_schema(llm: LLM) -> None:
    free = [GenerationParams(gen_length=48, **decoder) for decoder in DECODERS[:6]]
    bound = [GenerationParams(gen_length=48, json_schema=POINT, **decoder) for decoder in DECODERS[:6]]
    alone = llm.generate([QUESTION] * 6, free), llm.generate([QUESTION] * 6, bound)
    mixed = llm.generate([QUESTION] * 12, [one for pair in zip(free, bound, strict=True) for one in pair])
    for kind in (0, 1):
        assert [tokens(output) for output in mixed[kind::2]] == [tokens(output) for output in alone[kind]]


def test_an_answer_survives_preemption_and_shared_pages(llm: LLM) -> None:
    params = [GenerationParams(json_schema=POINT, gen_length=64, block_length=8, **one) for one in DECODERS[:5]]
    alone = [llm.generate([QUESTION], one)[0] for one in params]
    size = page_bytes(llm.model.config, 8, llm.model.dtype)
    engine = LLMEngine(llm.model, llm.tokenizer, EngineConfig(page_length=8, kv_memory=16 * size, max_batch_size=5))
    for at, one in enumerate(params):
        engine.add_request(QUESTION, one, str(at))
    final: dict[str, list[int]] = {str(at): [] for at in range(5)}
    while engine.has_requests():
        for update in engine.step():
            final[update.request_id] += update.final_ids
    assert list(final.values()) == [output.token_ids for output in alone]
    assert engine.stats().preemptions > 0
    assert engine.stats().prefix_hits > 0


def test_what_does_not_fit_is_cut_and_says_so(llm: LLM) -> None:
    for length in range(1, 12):
        [output] = llm.generate(
            QUESTION, GenerationParams(json_schema={"const": "marbles and bags"}, gen_length=length)
        )
        whole = output.text == '"marbles and bags"'
        assert output.finish_reason == ("stop" if whole and output.num_tokens < length else "length")
    [longer] = llm.generate(QUESTION, GenerationParams(json_schema={"const": 1}, gen_length=40, ignore_eos=True))
    assert (longer.finish_reason, longer.num_tokens, longer.text) == ("length", 40, "1")
    [least] = llm.generate(QUESTION, GenerationParams(json_schema={"const": 1}, gen_length=40, min_tokens=9))
    assert (least.finish_reason, least.text) == ("stop", "1")


def test_what_does_not_go_with_a_schema_is_refused(llm: LLM) -> None:
    with pytest.raises(GenerationError, match="a stop string would cut"):
        GenerationParams(json_schema=POINT, stop=("x",))
    with pytest.raises(GenerationError, match="one block in flight"):
        GenerationParams(json_schema=POINT, buffer_size=2)
    with pytest.raises(GenerationError, match="json_schema is no JSON"):
        GenerationParams(json_schema="{")
    with pytest.raises(GenerationError, match="json_schema is no JSON"):
        GenerationParams(json_schema={"const": float("nan")})
    with pytest.raises(GenerationError, match="this model has no tokenizer"):
        LLM(llm.model).generate([5], GenerationParams(json_schema=POINT))


def test_an_answer_that_cannot_go_on_fails_alone(llm: LLM) -> None:
    assert llm.tokenizer is not None
    parts = json.loads(llm.tokenizer.pipeline.to_str())
    del parts["model"]["vocab"]["~"]  # which no merge of this vocabulary has
    without = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(parts)), llm.tokenizer.settings)
    engine = LLMEngine(llm.model, without)
    prompt = llm.tokenizer.apply_chat_template(QUESTION)
    schemas = {"stuck": {"type": "string", "pattern": "^a~$"}, "goes on": {"type": "boolean"}}
    for name, schema in schemas.items():
        engine.add_request(prompt, GenerationParams(json_schema=schema, gen_length=32), name)
    ended: dict[str, Any] = {}
    while engine.has_requests():
        ended |= {update.request_id: update for update in engine.step() if update.finished}
    assert isinstance(ended["stuck"].failure, GenerationError)
    assert "cannot go on by its JSON schema" in str(ended["stuck"].failure)
    assert check(schemas["goes on"], ended["goes on"].output)
    with pytest.raises(GenerationError, match="cannot go on"):
        LLM(llm.model, without).generate(prompt, GenerationParams(json_schema=schemas["stuck"], use_cache=False))
