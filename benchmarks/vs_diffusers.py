"""Our engine beside the diffusers pipeline for the same model family: same weights, same rule, same machine, one run.

    pip install diffusers
    python benchmarks/vs_diffusers.py [--model M] [--dtype D] [--gen-length 128 256] [--prompts N] [--json FILE]

All decode by threshold, greedily, one sequence at a time, turn by turn, past any EOS to the whole length. Diffusers
drives our model definition, wrapped to take its arguments: version 0.42 hands the model a mask of which tokens are
padding and leaves block-causal attention to it. It does so twice: with the model as plain PyTorch runs it, as a user
of the pipeline would, and with the forward that our engine uses on a CPU (packed weights). What then still differs is
what is around the forward: diffusers runs the whole sequence in every pass, and reads the state on the host.

    speedup                   seconds of diffusers / seconds of ours: the median over prompts and repeats for each
                              length, of the lengths the smallest
    speedup_with_our_forward  the same where diffusers has our forward too
    identical_tokens          whether all gave the same tokens for every prompt and length

Then, of ours alone: time and passes as the answer grows and as the batch grows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import BlockRefinementScheduler, LLaDA2Pipeline
from run_record import compile_first, describe_model, describe_run, parse_arguments, report
from torch import Tensor, nn

from dmax import LLM, BlockDiffusionLM, GenerationParams, load_model, load_tokenizer
from dmax.engine.backends.cpu import CpuBackend
from dmax.problems import problem

BLOCK_LENGTH = 32
LONGEST = 8192
"""Positions that the growth runs may use; beyond what the model was trained on, where only the time means anything."""


class Wrapped(nn.Module):
    """Our model, called the way the pipeline calls one."""

    def __init__(self, model: BlockDiffusionLM) -> None:
        super().__init__()
        self.inner = model
        self.device, self.dtype = model.device, model.dtype

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> SimpleNamespace:
        """Compute logits of whole sequences from position 0; there is no padding that ``attention_mask`` could hide."""
        return SimpleNamespace(logits=self.inner.logits(input_ids, BLOCK_LENGTH))


def without_end(name: str, dtype: torch.dtype) -> BlockDiffusionLM:
    """Give the model the mask token as its EOS: it is never chosen, so every answer has its full length."""
    model = load_model(name, torch.device("cpu"), dtype)
    config = replace(model.config, eos_token_id=model.config.mask_token_id, max_position_embeddings=LONGEST)
    with torch.device("meta"):
        endless = BlockDiffusionLM(config)
    endless.load_state_dict(model.state_dict(), assign=True)
    return endless.eval()


def by_diffusers(pipeline: Any, prompt: list[int], gen_length: int, threshold: float) -> list[int]:
    output = pipeline(
        input_ids=torch.tensor([prompt]),
        gen_length=gen_length,
        block_length=BLOCK_LENGTH,
        num_inference_steps=BLOCK_LENGTH,
        threshold=threshold,
        editing_threshold=None,
        sampling_method="greedy",
        eos_early_stop=False,
        mask_token_id=pipeline.model.inner.config.mask_token_id,
        output_type="seq",
    )
    return output.sequences[0].tolist()


def timed(work: Callable[[], list[int]]) -> tuple[float, list[int]]:
    started = time.perf_counter()
    tokens = work()
    return time.perf_counter() - started, tokens


def pipeline_over(model: BlockDiffusionLM) -> Any:
    pipeline = LLaDA2Pipeline(model=Wrapped(model), scheduler=BlockRefinementScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def compare(
    llm: LLM, plain: BlockDiffusionLM, prompts: list[list[int]], length: int, threshold: float, repeats: int
) -> dict[str, Any]:
    """Run all in turn on every prompt; lengths are filled up to the end of a block, where all end alike."""
    pipelines = {
        "diffusers": pipeline_over(plain),
        "diffusers_with_our_forward": pipeline_over(CpuBackend(llm.model).modules),
    }
    runs: list[dict[str, Any]] = []
    for index, prompt in enumerate(prompts):
        gen_length = length + -(len(prompt) + length) % BLOCK_LENGTH
        params = GenerationParams(decoder="threshold", threshold=threshold, gen_length=gen_length)
        rivals: dict[str, Callable[[], list[int]]] = {
            name: partial(by_diffusers, pipeline, prompt, gen_length, threshold) for name, pipeline in pipelines.items()
        }
        rivals["dmax"] = lambda p=prompt, s=params: llm.generate([p], s)[0].token_ids
        for work in rivals.values():
            work()
        for _ in range(repeats):
            results = {name: timed(work) for name, work in rivals.items()}
            runs.append(
                {
                    "prompt": index,
                    "tokens": gen_length,
                    "seconds": {name: seconds for name, (seconds, _) in results.items()},
                    "identical": all(tokens == results["dmax"][1] for _, tokens in results.values()),
                }
            )

    def median_ratio(name: str) -> float:
        return statistics.median(run["seconds"][name] / run["seconds"]["dmax"] for run in runs)

    return {
        "gen_length": length,
        "speedup": median_ratio("diffusers"),
        "speedup_with_our_forward": median_ratio("diffusers_with_our_forward"),
        "identical_tokens": all(run["identical"] for run in runs),
        "tokens_per_second": {
            name: statistics.median(run["tokens"] / run["seconds"][name] for run in runs) for name in runs[0]["seconds"]
        },
        "runs": runs,
    }


def growth(llm: LLM, prompts: list[list[int]], lengths: list[int], batches: list[int], decoder: str) -> dict[str, Any]:
    """Time of ours by the length of the answer and by the number of rows, in both cases beside the passes it took."""

    def run(rows: list[list[int]], length: int) -> dict[str, Any]:
        params = GenerationParams(decoder=decoder, gen_length=length)
        llm.generate(rows, replace(params, gen_length=BLOCK_LENGTH))
        started = time.perf_counter()
        outputs = llm.generate(rows, params)
        seconds = time.perf_counter() - started
        passes = max(output.passes for output in outputs)
        tokens = sum(output.num_tokens for output in outputs)
        return {
            "gen_length": length, "batch": len(rows), "seconds": seconds, "tokens": tokens,
            "tokens_per_second": tokens / seconds, "passes_of_the_slowest": passes,
            "ms_per_pass": 1000 * seconds / passes,
        }  # fmt: skip

    return {
        "by_length": [run(prompts[:1], length) for length in lengths],
        "by_batch": [run((prompts * batch)[:batch], 128) for batch in batches],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano-base")
    parser.add_argument("--threshold", type=float, default=0.95)
    parser.add_argument("--gen-length", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of both")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--growth-lengths", type=int, nargs="*", default=[64, 128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--growth-batches", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--growth-decoder", default="threshold")
    parser.add_argument("--plain", action="store_true", help="do not compile first what `dmax compile` does")
    arguments = parse_arguments(parser)
    dtype = getattr(torch, arguments.dtype)
    model = without_end(arguments.model, dtype)
    with torch.inference_mode():
        plain = without_end(arguments.model, dtype)
    tokenizer = load_tokenizer(arguments.model)
    if tokenizer is None:
        parser.error(f"model {arguments.model} has no tokenizer; give one that has.")
    llm = LLM(model, tokenizer)
    if not arguments.plain:
        compile_first(model)
    questions = [problem("test", index, arguments.seed)["question"] for index in range(arguments.prompts)]
    prompts = [tokenizer.apply_chat_template(llm.chat_prompt(question)) for question in questions]
    compared = [
        compare(llm, plain, prompts, length, arguments.threshold, arguments.repeats) for length in arguments.gen_length
    ]
    result = {
        "speedup": min(entry["speedup"] for entry in compared),
        "speedup_with_our_forward": min(entry["speedup_with_our_forward"] for entry in compared),
        "identical_tokens": all(entry["identical_tokens"] for entry in compared),
        "by_gen_length": compared,
        "growth": growth(llm, prompts, arguments.growth_lengths, arguments.growth_batches, arguments.growth_decoder),
        **describe_run(),
        "diffusers": version("diffusers"),
        "model": describe_model(arguments.model, model),
        "threshold": arguments.threshold,
        "prompts": arguments.prompts,
        "repeats": arguments.repeats,
        "seed": arguments.seed,
    }
    report(result, arguments.json)


if __name__ == "__main__":
    main()
