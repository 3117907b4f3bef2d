"""One answer at a time from a model that several GPUs share, or, for comparison, that one holds alone.

    torchrun --nproc-per-node 2 benchmarks/tensor_parallel.py --model M [--dtype bfloat16] [--json FILE]

All processes load the checkpoint into main memory, keep their share and decode the same prompt; the first one reports.
The first answer, in which kernels are compiled and CUDA graphs captured, is not counted. `--model random` takes random
weights of about 6 million parameters. Without GPUs the processes are joined by gloo.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
from decode_overhead import QUESTION, random_model
from run_record import describe_model, describe_run, parse_arguments, report
from torch.distributed.device_mesh import init_device_mesh

from dmax import LLM, GenerationParams, load_model, load_tokenizer
from dmax.models.parallel import tensor_parallel


def build(arguments: argparse.Namespace, device: torch.device) -> LLM:
    """Make this process's share, ready to generate."""
    dtype = getattr(torch, arguments.dtype)
    random = arguments.model == "random"
    model = random_model(arguments.seed).to(dtype) if random else load_model(arguments.model, "cpu", dtype)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    return LLM(tensor_parallel(model, mesh).to(device), None if random else load_tokenizer(arguments.model))


def measure(llm: LLM, params: GenerationParams, repeats: int) -> dict[str, Any]:
    prompt: Any = list(range(3, 78)) if llm.tokenizer is None else llm.chat_prompt(QUESTION)
    llm.generate(prompt, params)
    seconds, output = [], None
    for _ in range(repeats):
        dist.barrier()
        started = time.perf_counter()
        output = llm.generate(prompt, params)[0]
        seconds.append(time.perf_counter() - started)
    assert output is not None
    return {
        "processes": dist.get_world_size(),
        "tokens_per_second": output.num_tokens / statistics.median(seconds),
        "seconds": seconds,
        "tokens": output.num_tokens,
        "passes": output.passes,
        "token_ids": output.token_ids,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="a folder, a Hub id, an embedded model, or 'random'")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--gen-length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parse_arguments(parser)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    llm = build(arguments, device)
    result = measure(llm, GenerationParams(gen_length=arguments.gen_length), arguments.repeats)
    if dist.get_rank() == 0:
        share = describe_model(arguments.model, llm.model)
        report({**result, **describe_run(), "share_of_a_process": share, "seed": arguments.seed}, arguments.json)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
