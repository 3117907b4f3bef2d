"""How often an answer decoded in a batch differs from the same answer decoded alone.

The rows of a batch never influence one another, but a matrix product may round differently when it has more rows, and
a rounding may turn a close decision. In float32 that is next to impossible; in bfloat16 it happens, and this measures
how often, on word problems the model was not trained on.

    python benchmarks/batch_invariance.py [--model M] [--problems N] [--batch-size B] [--json FILE]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from run_record import describe_model, describe_run, parse_arguments, report

from dmax import LLM, GenerationOutput, GenerationParams
from dmax.evaluation.word_problems import fresh_problems

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def share_that(differ: list[bool]) -> float:
    return sum(differ) / len(differ)


def compare(alone: list[GenerationOutput], batched: list[GenerationOutput]) -> dict[str, Any]:
    """Count shares of rows that differ, and what the differences cost or save."""
    pairs = list(zip(alone, batched, strict=True))
    nfe_alone, nfe_batched = (sum(output.nfe for output in outputs) for outputs in (alone, batched))
    return {
        "answers_differ": share_that([one.token_ids != other.token_ids for one, other in pairs]),
        "passes_differ": share_that([one.passes != other.passes for one, other in pairs]),
        "nfe_total_alone": nfe_alone,
        "nfe_total_batched": nfe_batched,
        "tokens_total_alone": sum(output.num_tokens for output in alone),
        "tokens_total_batched": sum(output.num_tokens for output in batched),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="a folder, a Hub id or an embedded model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--decoder", default="soft-parallel")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--gen-length", type=int, default=256)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    arguments = parse_arguments(parser)
    rows = fresh_problems("test", arguments.problems, arguments.seed)
    prompts = [LLM.chat_prompt(row["question"]) for row in rows]
    params = GenerationParams(decoder=arguments.decoder, gen_length=arguments.gen_length)
    results: dict[str, Any] = {}
    for name in arguments.dtypes:
        llm = LLM(arguments.model, device=arguments.device, dtype=DTYPES[name], max_batch_size=arguments.batch_size)
        alone = [llm.generate([prompt], params)[0] for prompt in prompts]
        results[name] = {
            **compare(alone, llm.generate(prompts, params)),
            "model": describe_model(arguments.model, llm.model),
        }
    settings = {
        "problems": arguments.problems,
        "batch_size": arguments.batch_size,
        "gen_length": arguments.gen_length,
        "decoder": arguments.decoder,
        "seed": arguments.seed,
    }
    report({"results": results, "settings": settings, **describe_run()}, arguments.json)


if __name__ == "__main__":
    main()
