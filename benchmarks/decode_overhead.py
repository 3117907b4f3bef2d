"""What a decoded pass costs beyond the forward it is made of.

Decodes one prompt at batch 1 on a CPU, and replays the very forwards of that decoding (same embeddings, positions and
cache, layers by the same kernels) without anything around them, each with `BlockDiffusionLM.head` over its block; the
engine has its head from that module, too, or from the kernel that decides the pass as well. Both are timed turn by turn
in one process:

    overhead = (time from the end of the prefill to the answer) / (time of the same forwards, bare)

so the mix of plain passes (L positions) and passes that also store the block before (2L positions) is the one that
the decoding had. Tokenization and the prefill are left out on both sides; everything else that an engine does for an
answer is counted.

    python benchmarks/decode_overhead.py [--model M] [--plain] [--threads N] [--repeats N] [--json FILE]

`--model random` takes random weights of about 6 million parameters, for use without a checkpoint.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from run_record import compile_first, describe_model, describe_run, parse_arguments, report
from torch import Tensor

from dmax import LLM, BlockDiffusionLM, GenerationParams, ModelConfig
from dmax.engine.backends import Backend
from dmax.engine.backends.cpu import CpuBackend
from dmax.engine.backends.torch import Layers
from dmax.engine.config import EngineConfig
from dmax.engine.engine import LLMEngine
from dmax.engine.requests import RequestReader, output_of
from dmax.engine.scheduler import IDLE_PREFILL_TOKENS
from dmax.engine.span import Span
from dmax.models.transformer import initialize

LENGTH = 32

QUESTION = (
    "Nadia packs 14 boxes with 6 jars each. She gives 9 jars to a neighbour, and a friend brings her 3 boxes more of "
    "the same size. How many jars does Nadia have now?"
)


class RecordingBackend(CpuBackend):
    """Remembers what its forwards computed, and from what."""

    def __init__(self, model: BlockDiffusionLM) -> None:
        super().__init__(model)
        self.forwards: list[tuple[Layers, Tensor]] = []

    def over(self, spans: list[Span]) -> Layers:
        forward = super().over(spans)

        def recorded(embeds_ND: Tensor) -> Tensor:
            self.forwards.append((forward, embeds_ND))
            return forward(embeds_ND)

        return recorded


def random_model(seed: int) -> BlockDiffusionLM:
    """Make a dense model of about 6 million parameters."""
    config = ModelConfig(
        vocab_size=1536, hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=4, head_dim=64, mask_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return initialize(BlockDiffusionLM(config), torch.Generator().manual_seed(seed))


def decode(llm: LLM, prompt: Any, params: GenerationParams, backend: Backend | None = None) -> tuple[float, int]:
    """Decode: seconds from the end of the prefill to the answer, and passes."""
    row = RequestReader(llm.model.config, llm.tokenizer).read("0", prompt, params, time.perf_counter())
    pages = row.furthest_end // LENGTH
    engine = LLMEngine(
        llm.model,
        config=EngineConfig(pages=pages, page_length=LENGTH, max_batch_size=1, prefill_tokens=IDLE_PREFILL_TOKENS),
        backend=backend,
    )
    engine.add(row)
    started = time.perf_counter()
    while engine.has_requests():
        engine.step()
        if not engine.stats().decoded:
            started = time.perf_counter()
    output = output_of(row)
    return time.perf_counter() - started, output.passes


def record(llm: LLM, prompt: Any, params: GenerationParams) -> list[tuple[Layers, Tensor]]:
    """Record the forwards of the passes of one decoding, without those of the prefill."""
    backend = RecordingBackend(llm.model)
    _, passes = decode(llm, prompt, params, backend)
    return backend.forwards[-passes:]


@torch.inference_mode()
def time_bare(model: BlockDiffusionLM, forwards: list[tuple[Layers, Tensor]]) -> float:
    """Time these forwards, one after another, in seconds; the model is that whose modules the engine calls."""
    started = time.perf_counter()
    for forward, embeds_ND in forwards:
        model.head(forward(embeds_ND)[None, -LENGTH:])
    return time.perf_counter() - started


def measure(llm: LLM, prompt: Any, params: GenerationParams, repeats: int) -> dict[str, Any]:
    forwards = record(llm, prompt, params)
    assert len(forwards) == decode(llm, prompt, params)[1], "both sides have to do the same passes"
    modules = CpuBackend(llm.model).modules
    plain = [forward for forward in forwards if len(forward[1]) == LENGTH]
    fused = [forward for forward in forwards if len(forward[1]) != LENGTH]
    tasks: dict[str, Callable[[], float]] = {
        "decoded": lambda: decode(llm, prompt, params)[0] / len(forwards),
        "bare": lambda: time_bare(modules, forwards) / len(forwards),
        "bare_plain": lambda: time_bare(modules, plain) / max(len(plain), 1),
        "bare_fused": lambda: time_bare(modules, fused) / max(len(fused), 1),
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
