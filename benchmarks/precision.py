"""What fewer bits cost and bring: accuracy, tokens per forward and tokens per second of one model in several formats.

Answers the same unseen word problems in float32, in bfloat16, and in bfloat16 over weights of 8 and 4 bits, as
`dmax convert --quantize` stores them. Tokens per second are taken one prompt at a time, in turns, so that every format
sees the same machine; accuracy and TPF over all problems, 32 at a time; the relative error of the quantised weights.

    python benchmarks/precision.py [--model M] [--problems N] [--alone N] [--compile] [--seed N] [--json FILE]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from answered import GEN_LENGTH, Problems
from run_record import compile_first, describe_model, describe_run, parse_arguments, report

from dmax import LLM, GenerationParams
from dmax.models import resolve
from dmax.models.convert import Quantization, convert_checkpoint

TURNS = 5
QUANTIZED = {
    "int8": Quantization("int8"),
    "int8, embeddings int8": Quantization("int8", embeddings="int8"),
    "fp8": Quantization("fp8"),
    "int4, groups of 64": Quantization("int4"),
    "int4, groups of 32": Quantization("int4", group=32),
    "int4, groups of 32, search": Quantization("int4", group=32, method="search"),
    "int4, groups of 32, search, embeddings int8": Quantization("int4", group=32, method="search", embeddings="int8"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="an embedded model or a folder")
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--alone", type=int, default=32, help="problems answered one at a time, in every turn")
    parser.add_argument("--compile", action="store_true", help="compile first what `dmax compile` does")
    arguments = parse_arguments(parser)
    problems = Problems(arguments.problems, arguments.seed)
    params = GenerationParams(gen_length=GEN_LENGTH)
    with tempfile.TemporaryDirectory() as scratch:
        folders = {"float32": arguments.model, "bfloat16": arguments.model}
        errors: dict[str, float] = {}
        for name, quantization in QUANTIZED.items():
            folders[name] = str(Path(scratch) / name)
            found = convert_checkpoint(resolve(arguments.model), folders[name], quantization=quantization)
            wrong, whole = (sum(sums) for sums in zip(*(error.squares for error in found), strict=True))
            errors[name] = (wrong / whole) ** 0.5
        formats: dict[str, Any] = {}
        llms: dict[str, LLM] = {}
        for name, folder in folders.items():
            llms[name] = LLM(folder, dtype=torch.float32 if name == "float32" else torch.bfloat16)
            if arguments.compile:
                compile_first(llms[name].model)
            formats[name] = problems.point(name, llms[name], params) | {"relative_error": errors.get(name, 0.0)}
    rates: dict[str, list[float]] = {name: [] for name in llms}
    for _ in range(TURNS):
        for name, llm in llms.items():
            rates[name].append(problems.alone(llm, params, arguments.alone))
    for name, values in rates.items():
        formats[name] |= {"tokens_per_second_alone": statistics.median(values), "tokens_per_second_turns": values}
    result = {
        "formats": formats, **describe_run(), "model": describe_model(arguments.model, llms["float32"].model),
        "seed": arguments.seed, "split": "test", "problems": arguments.problems,
    }  # fmt: skip
    report(result, arguments.json)


if __name__ == "__main__":
    main()
