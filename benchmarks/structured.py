"""What a JSON schema costs: a pass under one against a pass without, and where the difference goes.

Under a schema every pass walks along its blocks and asks at each position which tokens may follow. For every decoder
and batch size: seconds a pass with and without, seconds of head and walk in a pass under the schema, positions asked
and tokens per forward; the two kinds in turn, medians of `--turns`. Beside them what one question costs with
vocabularies of several sizes, made of random letters, and what it costs to read a schema, the first time and later.

    python benchmarks/structured.py [--model M] [--batch B ...] [--turns N] [--seed N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import tokenizers
from run_record import compile_first, describe_model, describe_run, parse_arguments, report

from dmax import LLM, GenerationParams, ModelConfig, Tokenizer
from dmax.decoding.constrained import ConstrainedDecoder
from dmax.decoding.registry import BUILT_IN
from dmax.engine.json_schema import JsonConstraint, JsonSchemas
from dmax.evaluation.word_problems import fresh_problems

GEN_LENGTH = 128
VOCABULARIES = (1536, 32_768, 157_184)
STEP = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "minLength": 8, "maxLength": 40},
        "result": {"type": "number", "minimum": -9999, "maximum": 9999},
        "unit": {"enum": ["kg", "litres", "marbles", "minutes", "pounds"]},
    },
    "required": ["text", "result", "unit"],
}
SCHEMA = {
    "type": "object",
    "properties": {"steps": {"type": "array", "items": STEP, "minItems": 9}},
    "required": ["steps"],
}
"""No answer by it ends before ``GEN_LENGTH`` tokens."""


@dataclass
class Clock:
    """What walks took."""

    seconds: float = 0.0
    asked: int = 0


@contextmanager
def watched() -> Iterator[Clock]:
    """Time every walk, and count the positions at which it asks."""
    clock, step, allowed = Clock(), ConstrainedDecoder.step, JsonConstraint.allowed

    def timed_step(*arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return step(*arguments)
        finally:
            clock.seconds += time.perf_counter() - started

    def counted(constraint: JsonConstraint) -> Any:
        clock.asked += 1
        return allowed(constraint)

    ConstrainedDecoder.step, JsonConstraint.allowed = timed_step, counted  # type: ignore[method-assign]
    try:
        yield clock
    finally:
        ConstrainedDecoder.step, JsonConstraint.allowed = step, allowed  # type: ignore[method-assign]


def cost_of_passes(llm: LLM, prompts: list[Any], decoder: str, turns: int) -> dict[str, float]:
    """Medians over turns in which answers with and without the schema alternate; all are of the same length."""
    free = GenerationParams(decoder=decoder, gen_length=GEN_LENGTH, ignore_eos=True)
    kinds = {"free": free, "schema": replace(free, json_schema=SCHEMA)}
    found: dict[str, list[float]] = {f"{kind}_seconds_per_pass": [] for kind in kinds}
    found |= {"walk_seconds_per_pass": [], "positions_asked_per_pass_and_sequence": []}
    per_forward: dict[str, float] = {}
    for turn in range(turns + 1):
        for kind, params in kinds.items():
            with watched() as clock:
                started = time.perf_counter()
                outputs = llm.generate(prompts, params)
                seconds = time.perf_counter() - started
            passes, sequences = max(output.passes for output in outputs), len(outputs)
            per_forward[f"{kind}_tokens_per_forward"] = GEN_LENGTH * sequences / sum(output.nfe for output in outputs)
            if turn == 0:
                continue  # warms up
            found[f"{kind}_seconds_per_pass"].append(seconds / passes)
            if kind == "schema":
                found["walk_seconds_per_pass"].append(clock.seconds / passes)
                asked = clock.asked / sum(output.passes for output in outputs)
                found["positions_asked_per_pass_and_sequence"].append(asked)
    return {name: statistics.median(values) for name, values in found.items()} | per_forward


def cost_of_questions(size: int, seed: int, turns: int) -> dict[str, float]:
    """Microseconds of one question, and milliseconds to read the schema, with a vocabulary of random words."""
    source = random.Random(seed)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = {"<mask>": None, "<eos>": None, **dict.fromkeys(letters)}
    while len(words) < size:
        words["".join(source.choices('etaoinshrdlu\u0120":,{}', k=source.randrange(2, 9)))] = None
    vocabulary = {word: at for at, word in enumerate(words)}
    pipeline = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    pipeline.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = tokenizers.decoders.ByteLevel()
    pipeline.add_special_tokens(["<mask>", "<eos>"])
    config = ModelConfig(
        vocab_size=size, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, mask_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    schemas, schema = JsonSchemas(config, Tokenizer(pipeline)), json.dumps(SCHEMA)
    first = _milliseconds(lambda: schemas.constraint(schema))
    later = statistics.median(_milliseconds(lambda: schemas.constraint(schema)) for _ in range(turns))
    step = {"text": "thirteen of these are ours", "result": 42.5, "unit": "marbles"}
    token_ids = pipeline.encode(json.dumps({"steps": [step] * 5})[:-2]).ids
    took: list[float] = []
    for _ in range(turns):
        constraint = schemas.constraint(schema)
        for token_id in token_ids:
            took.append(1000 * _milliseconds(constraint.allowed))
            assert constraint.take(token_id)
    return {
        "vocabulary": size,
        "microseconds_per_question": statistics.median(took),
        "microseconds_per_question_95th": statistics.quantiles(took, n=20)[-1],
        "milliseconds_to_read_the_first_schema": first,
        "milliseconds_to_read_a_schema": later,
    }


def _milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--plain", action="store_true", help="do not compile first what `dmax compile` does")
    arguments = parse_arguments(parser)
    llm = LLM(arguments.model)
    if not arguments.plain:
        compile_first(llm.model)
    rows = fresh_problems("test", max(arguments.batch), arguments.seed)
    prompts = [LLM.chat_prompt(row["question"]) for row in rows]
    passes = [
        {"decoder": decoder, "batch": batch, **cost_of_passes(llm, prompts[:batch], decoder, arguments.turns)}
        for decoder in BUILT_IN
        for batch in arguments.batch
    ]
    questions = [cost_of_questions(size, arguments.seed, arguments.turns) for size in VOCABULARIES]
    result = {
        "passes": passes, "questions": questions, "schema": SCHEMA, "gen_length": GEN_LENGTH,
        "turns": arguments.turns, "seed": arguments.seed, **describe_run(),
        "model": describe_model(arguments.model, llm.model),
    }  # fmt: skip
    report(result, arguments.json)


if __name__ == "__main__":
    main()
