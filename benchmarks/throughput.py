"""Tokens per second over concurrency: the same prompts through the engine, so many at a time.

    python benchmarks/throughput.py [--model M] [--concurrency 1 2 4 …] [--prompts N] [--dtype D] [--json FILE]

On a CPU, what `dmax compile` does is done first, unless `--plain` is given. Every concurrency answers the same prompts
with an engine of its own, after a warm-up that is not counted. Beside tokens per second stands the share of the
machine's matmul peak: floating-point operations over the time, over what a large matrix product reaches here in the
model's dtype. Operations are those of the matrix products that the answers needed:

* the layers' weights that are active for a token, for every position that ran: prompts, blocks in flight in every pass,
  and finished blocks once more when they are stored;
* the head for the positions of blocks in flight alone, since nothing else has logits;
* attention of every one of those positions over all it sees, from the start of its sequence to the end of its block.

Norms, softmax, the decoder's rule, and what a machine computes in vain (padding, masked keys) are not among them.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import torch
from run_record import compile_first, describe_model, describe_run, parse_arguments, report

from dmax import LLM, EngineConfig, GenerationParams, LLMEngine
from dmax.measurement.costs import count_flops
from dmax.measurement.peaks import matmul_peak
from dmax.problems import problem


def run(llm: LLM, prompts: list[Any], params: GenerationParams, concurrency: int) -> dict[str, Any]:
    """Answer all prompts, at most ``concurrency`` at a time."""
    engine = LLMEngine(
        llm.model,
        llm.tokenizer,
        EngineConfig(
            max_batch_size=concurrency, page_length=params.block_length or llm.model.config.usual_block_length
        ),
    )
    for index, prompt in enumerate(prompts):
        engine.add_request(prompt, replace(params, seed=index))
    outputs = []
    started = time.perf_counter()
    while engine.has_requests():
        outputs += [update.output for update in engine.step() if update.output is not None]
    seconds = time.perf_counter() - started
    stats = engine.stats()
    tokens, nfe = sum(o.num_tokens for o in outputs), sum(o.nfe for o in outputs)
    return {
        "concurrency": concurrency,
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "tokens": tokens,
        "tpf_pooled": tokens / nfe,
        "forwards": stats.steps,
        "positions": stats.positions,
        "prefilled": stats.prefilled,
        "decoded": stats.decoded,
        "attended": stats.attended,
        "flops": count_flops(llm.model.config, stats.positions, stats.decoded, stats.attended),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--gen-length", type=int, default=256)
    parser.add_argument("--decoder", default="soft-parallel")
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--plain", action="store_true", help="do not compile first what `dmax compile` does")
    arguments = parse_arguments(parser)
    llm = LLM(arguments.model, dtype=getattr(torch, arguments.dtype))
    if not arguments.plain:
        compile_first(llm.model)
    params = GenerationParams(decoder=arguments.decoder, threshold=arguments.threshold, gen_length=arguments.gen_length)
    questions = [problem("test", index, arguments.seed)["question"] for index in range(arguments.prompts)]
    prompts = [llm.chat_prompt(question) for question in questions]
    peak = matmul_peak(llm.model.device, llm.model.dtype)
    run(llm, prompts[:4], params, 4)
    runs = []
    for concurrency in arguments.concurrency:
        result = run(llm, prompts, params, concurrency)
        share = sum(result["flops"].values()) / result["seconds"] / peak
        runs.append({**result, "share_of_matmul_peak": share})
        print(
            f"concurrency {concurrency:3d}: {result['tokens_per_second']:8.0f} tokens/s, "
            f"{share:.1%} of the matmul peak ({peak / 1e12:.2f} TFLOP/s)",
            flush=True,
        )
    alone = next((run["tokens_per_second"] for run in runs if run["concurrency"] == 1), None)
    if alone is not None:
        runs = [{**run, "speedup": run["tokens_per_second"] / alone} for run in runs]
    result = {
        "runs": runs,
        "matmul_peak_flops": peak,
        **describe_run(),
        "model": describe_model(arguments.model, llm.model),
        "decoder": arguments.decoder,
        "threshold": arguments.threshold,
        "prompts": arguments.prompts,
        "seed": arguments.seed,
    }
    report(result, arguments.json)


if __name__ == "__main__":
    main()
