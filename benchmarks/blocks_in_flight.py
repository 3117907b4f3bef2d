"""Several blocks in flight: accuracy, tokens per forward and tokens per second for N = 1, 2 and 4.

Answers the same unseen word problems with every model and every number of blocks in flight (`soft-parallel` at a
model's default), and with the base model one block at a time (`threshold` 0.95), the measure of the TPFs. With two
blocks each threshold of the rule is also varied by itself. Tokens per second are taken apart, one prompt at a time, as
is the cost of a forward of N blocks beside one of a single block: every N in turn, several times over, and of these the
medians.

    python benchmarks/blocks_in_flight.py [--models nano …] [--two-blocks M …] [--problems N] [--seed N] [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from answered import GEN_LENGTH, Problems
from run_record import compile_first, describe_model, describe_run, parse_arguments, report

from dmax import LLM, BlockDiffusionLM, GenerationParams
from dmax.engine.backends.cpu import CpuBackend
from dmax.engine.requests import RequestReader
from dmax.engine.span import Span

BUFFER_SIZES = (1, 2, 4)
VARIED: tuple[dict[str, float], ...] = (
    {"add_threshold": 0.5},
    {"add_threshold": 0.9},
    {"stable_threshold": 0.0},
    {"stable_threshold": 0.9},
    {"semi_threshold": 0.5},
    {"semi_threshold": 1.0},
)
"""Beside the defaults 0.1, 0.5 and 0.9."""
LENGTH = 32
CONTEXT = 160
TURNS = 5


def forward_ms(model: BlockDiffusionLM, blocks: int, repeats: int) -> float:
    """Time a bare forward of so many blocks behind a context, as the engine runs it: median milliseconds."""
    end = CONTEXT + blocks * LENGTH
    backend = CpuBackend(model)
    backend.open(end // LENGTH, LENGTH, 1)
    sequence = RequestReader(model.config, None).read("0", [], GenerationParams(), 0.0)
    span = Span(sequence, tuple(range(end // LENGTH)), CONTEXT, CONTEXT, end, LENGTH)
    seconds = []
    with torch.inference_mode():
        forward = backend.over([span])
        embeds_ND = model.embed(torch.arange(3, 3 + blocks * LENGTH) % model.config.vocab_size)
        for _ in range(repeats + 5):
            started = time.perf_counter()
            backend.modules.head(forward(embeds_ND)[None])
            seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[5:])


def times(llm: LLM, problems: Problems, alone: int) -> list[dict[str, float]]:
    """Time every number of blocks: tokens per second of one prompt after another, and the forward's milliseconds."""
    rates: dict[int, list[float]] = {blocks: [] for blocks in BUFFER_SIZES}
    forwards: dict[int, list[float]] = {blocks: [] for blocks in BUFFER_SIZES}
    for _ in range(TURNS):
        for blocks in BUFFER_SIZES:
            params = GenerationParams(buffer_size=blocks, gen_length=GEN_LENGTH)
            rates[blocks].append(problems.alone(llm, params, alone))
            forwards[blocks].append(forward_ms(llm.model, blocks, 100))
    one_block = statistics.median(forwards[1])
    return [
        {
            "tokens_per_second_alone": statistics.median(rates[blocks]),
            "forward_ms": statistics.median(forwards[blocks]),
            "forward_over_one_block": statistics.median(forwards[blocks]) / one_block,
        }
        for blocks in BUFFER_SIZES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["nano"], help="embedded models or folders")
    parser.add_argument("--two-blocks", nargs="*", default=[], help="models that are asked with two blocks alone")
    parser.add_argument("--base", default="nano-base", help="model decoded with `threshold` 0.95")
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--alone", type=int, default=32, help="problems answered one at a time, in every turn")
    arguments = parse_arguments(parser)
    problems = Problems(arguments.problems, arguments.seed)
    dtype = getattr(torch, arguments.dtype)
    base = LLM(arguments.base, dtype=dtype)
    compile_first(base.model)
    reference = problems.point(arguments.base, base, GenerationParams("threshold", 0.95, gen_length=GEN_LENGTH))

    def measure(name: str, llm: LLM, **options: Any) -> dict[str, Any]:
        point = problems.point(name, llm, GenerationParams(gen_length=GEN_LENGTH, **options))
        return {**point, "tpf_over_base": point["tpf"] / reference["tpf"]}

    points: list[dict[str, Any]] = []
    varied: list[dict[str, Any]] = []
    models: dict[str, Any] = {arguments.base: describe_model(arguments.base, base.model)}
    for name in arguments.models:
        llm = LLM(name, dtype=dtype)
        compile_first(llm.model)
        points += [measure(name, llm, buffer_size=blocks) for blocks in BUFFER_SIZES]
        for point, timed in zip(points[-len(BUFFER_SIZES) :], times(llm, problems, arguments.alone), strict=True):
            point |= timed
        if name == arguments.models[0]:
            varied = [{**thresholds, **measure(name, llm, buffer_size=2, **thresholds)} for thresholds in VARIED]
        models[name] = describe_model(name, llm.model)
    for name in arguments.two_blocks:
        llm = LLM(name, dtype=dtype)
        points.append(measure(name, llm, buffer_size=2))
        models[name] = describe_model(name, llm.model)
    result = {
        "base": reference, "points": points, "thresholds_varied": varied,
        **describe_run(), "models": models,
        "seed": arguments.seed, "split": "test", "problems": arguments.problems,
    }  # fmt: skip
    report(result, arguments.json)


if __name__ == "__main__":
    main()
