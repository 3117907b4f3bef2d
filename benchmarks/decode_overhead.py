"""What a decoded pass costs beyond the forward it is made of.

Decodes one prompt at batch 1, and replays the very forwards of that decoding (same embeddings, positions, masks and
cache, language-model head included) without anything around them. Both are timed turn by turn in one process:

    overhead = (time from the end of the prefill to the answer) / (time of the same forwards, bare)

so the mix of plain passes (L positions) and passes that also store the block before (2L positions) is the one that
the decoding had. Tokenization and the prefill are left out on both sides; everything else that `LLM.generate` does is
counted.

    python benchmarks/decode_overhead.py [--model M] [--plain] [--threads N] [--repeats N] [--json FILE]

`--model random` takes random weights of about 6 million parameters, for use without a checkpoint.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from run_record import compile_first, describe_model, describe_run, parse_arguments, report
from torch import Tensor

from dmax import LLM, GenerationParams, LLaDA2, ModelConfig
from dmax.models.llada2 import initialize

QUESTION = (
    "Nadia packs 14 boxes with 6 jars each. She gives 9 jars to a neighbour, and a friend brings her 3 boxes more of "
    "the same size. How many jars does Nadia have now?"
)


@dataclass(frozen=True)
class Forward:
    """One forward of a decoding, ready to be run again."""

    inputs: tuple[Any, ...]
    rows: int

    def run(self, model: LLaDA2) -> Tensor:
        return model.head(model(*self.inputs)[-self.rows :])

    @property
    def positions(self) -> int:
        embeds = self.inputs[0]
        return embeds.shape[0] * embeds.shape[1]


def random_model(seed: int) -> LLaDA2:
    """A dense model of about 6 million parameters."""
    config = ModelConfig(
        vocab_size=1536, hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=4, head_dim=64, mask_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return initialize(LLaDA2(config), torch.Generator().manual_seed(seed))


def record(llm: LLM, prompt: Any, params: GenerationParams) -> tuple[list[Forward], int]:
    """The forwards of the passes of one decoding, and how many prefill forwards went before them."""
    calls: list[tuple[Any, ...]] = []
    handle = llm.model.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    output = llm.generate(prompt, params)[0]
    handle.remove()
    prefills = len(calls) - output.passes
    return [Forward(inputs, rows=1) for inputs in calls[prefills:]], prefills


def time_decoding(llm: LLM, prompt: Any, params: GenerationParams, prefills: int) -> float:
    """Seconds from the end of the prefill to the answer."""
    forwards_done = 0
    started = 0.0

    def after_forward(*_: Any) -> None:
        nonlocal forwards_done, started
        forwards_done += 1
        if forwards_done == prefills:
            started = time.perf_counter()

    handle = llm.model.register_forward_hook(after_forward)
    started = time.perf_counter()
    llm.generate(prompt, params)
    seconds = time.perf_counter() - started
    handle.remove()
    return seconds


@torch.inference_mode()
def time_bare(model: LLaDA2, forwards: list[Forward]) -> float:
    """Seconds of these forwards, one after another."""
    started = time.perf_counter()
    for forward in forwards:
        forward.run(model)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(llm: LLM, prompt: Any, params: GenerationParams, repeats: int) -> dict[str, Any]:
    forwards, prefills = record(llm, prompt, params)
    shortest = min(forward.positions for forward in forwards)
    plain = [forward for forward in forwards if forward.positions == shortest]
    fused = [forward for forward in forwards if forward.positions != shortest]
    tasks: dict[str, Callable[[], float]] = {
        "decoded": lambda: time_decoding(llm, prompt, params, prefills) / len(forwards),
        "bare": lambda: time_bare(llm.model, forwards) / len(forwards),
        "bare_plain": lambda: time_bare(llm.model, plain) / max(len(plain), 1),
        "bare_fused": lambda: time_bare(llm.model, fused) / max(len(fused), 1),
    }
    for task in tasks.values():
        task()
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            times[name].append(task())
    ratios = [decoded / bare for decoded, bare in zip(times["decoded"], times["bare"], strict=True)]
    return {
        "overhead": statistics.median(ratios),
        "overhead_quartiles": statistics.quantiles(ratios, n=4),
        "pass_ms": {name: 1000 * statistics.median(values) for name, values in times.items()},
        "passes": {"all": len(forwards), "plain": len(plain), "fused": len(fused)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="a folder, a Hub id, an embedded model, or 'random'")
    parser.add_argument("--decoder", default="soft-parallel")
    parser.add_argument("--gen-length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--plain", action="store_true", help="do not compile first what `dmax compile` does")
    arguments = parse_arguments(parser)
    llm = LLM(random_model(arguments.seed)) if arguments.model == "random" else LLM(arguments.model)
    if not arguments.plain:
        compile_first(llm.model)
    generator = torch.Generator().manual_seed(arguments.seed)
    random_ids = torch.randint(3, llm.model.config.vocab_size, (75,), generator=generator).tolist()
    prompt = random_ids if llm.tokenizer is None else llm.chat_prompt(QUESTION)
    params = GenerationParams(decoder=arguments.decoder, gen_length=arguments.gen_length)
    result = {
        **measure(llm, prompt, params, arguments.repeats),
        **describe_run(),
        "model": describe_model(arguments.model, llm.model),
        "decoder": arguments.decoder,
        "repeats": arguments.repeats,
        "seed": arguments.seed,
    }
    report(result, arguments.json)


if __name__ == "__main__":
    main()
