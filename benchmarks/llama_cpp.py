"""dmax beside llama.cpp on the same cores: random weights of the same shape, tokens per second of one answer.

llama.cpp decodes a token a pass. dmax decodes a block, and a pass gives as many tokens as the model is sure of (TPF);
what a pass costs is measured, and the rate is given at several TPF, because random weights have none of their own. Each
format is timed in turn, so that what else the machine does meets both.

llama.cpp needs an environment with `llama-cpp-python` and `gguf`, which may be another one than dmax's:

    python -m venv llama && llama/bin/pip install llama-cpp-python gguf numpy
    python benchmarks/llama_cpp.py --llama-python llama/bin/python --json benchmarks/results/llama_cpp.json

`--layers` cuts the shapes, for a trial. `--page` fills the tables of docs/results/cpu.md from a result.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from run_record import describe_run, parse_arguments, report

from dmax.kernels.cpu.library import compile_kernels
from dmax.machine import processors
from dmax.measurement.bench import BenchOptions, bench
from dmax.measurement.shapes import SHAPES, random_model
from dmax.models import ModelConfig
from dmax.models.convert import Quantization

FORMATS = {"int4": "Q4_0", "int8": "Q8_0"}
"""Ours, and llama.cpp's of as many bits; embeddings and head are in 8 bits in all of them."""
TPF = (1, 3, 6)
BLOCKS = {"sdar-1.7b": (4, 32), "llada2-mini": (32,)}
"""Shapes, and the positions of a pass."""
PAGE = Path(__file__).parents[1] / "docs" / "results" / "cpu.md"
_BEGIN, _END = "<!-- figures: benchmarks/llama_cpp.py --page -->", "<!-- end of figures -->"


def of_llama(config: ModelConfig) -> dict[str, Any]:
    """Say a shape in the words of ``llama_cpp_worker.py``."""
    experts = config.num_experts or 0
    return {
        "arch": "bailingmoe2" if experts else "qwen3", "vocabulary": config.vocab_size, "hidden": config.hidden_size,
        "intermediate": config.intermediate_size, "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads, "kv_heads": config.num_key_value_heads, "channels": config.head_dim,
        "rotary": config.rotary_dim, "tied": config.tie_word_embeddings, "positions": 4096, "experts": experts,
        "chosen": config.num_experts_per_tok, "shared": config.num_shared_experts or 0,
        "expert_width": config.moe_intermediate_size or 0, "dense_layers": config.first_k_dense_replace,
        "groups": config.n_group, "groups_kept": config.topk_group,
    }  # fmt: skip


def time_llama(config: ModelConfig, kind: str, arguments: argparse.Namespace, threads: int) -> dict[str, Any]:
    """Return what the worker measured of one format."""
    task = {
        "shape": of_llama(config), "formats": [kind], "context": arguments.context, "tokens": arguments.tokens,
        "threads": threads, "folder": arguments.folder,
    }  # fmt: skip
    worker = Path(__file__).with_name("llama_cpp_worker.py")
    done = subprocess.run(
        [arguments.llama_python, "-I", worker], input=json.dumps(task), stdout=subprocess.PIPE, text=True, check=True
    )
    said = json.loads(done.stdout)
    return {"version": said["version"], **said["formats"][kind]}


def time_dmax(
    name: str, config: ModelConfig, weights: str, positions: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return what a pass of so many positions costs, and the rates that it gives."""
    SHAPES[name] = replace(config, block_length=positions)
    formats = Quantization(weights, embeddings="int8")  # type: ignore[arg-type]
    model = random_model(name, device=torch.device("cpu"), dtype=arguments.dtype, weights=formats, seed=arguments.seed)
    found = bench(model, BenchOptions(context=arguments.context, repeats=arguments.tokens, seed=arguments.seed))
    kept = {key: found[key] for key in ("positions", "pass_ms", "bound_ms", "share_of_bound", "bytes")}
    rates = {str(tpf): 1000 * tpf / found["pass_ms"]["median"] for tpf in TPF if tpf <= positions}
    return {**kept, "bytes": found["bytes"]["total"], "tokens_per_second_by_tpf": rates}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time all shapes and formats."""
    compile_kernels()
    threads = min(torch.get_num_threads(), processors())
    shapes: dict[str, Any] = {}
    for name in arguments.shapes:
        config = SHAPES[name]
        if arguments.layers:
            config = replace(config, num_hidden_layers=arguments.layers)
        of_shape = shapes[name] = {"layers": config.num_hidden_layers, "formats": {}}
        for weights, kind in FORMATS.items():
            if weights not in arguments.formats:
                continue
            print(f"{name} in {kind} by llama.cpp", file=sys.stderr, flush=True)
            row = {"llama.cpp": {"format": kind, **time_llama(config, kind, arguments, threads)}, "dmax": []}
            of_shape["formats"][weights] = row
            for positions in BLOCKS[name]:
                print(f"{name} in {weights} by dmax, {positions} positions", file=sys.stderr, flush=True)
                row["dmax"].append(time_dmax(name, config, weights, positions, arguments))
    dtype = str(arguments.dtype).removeprefix("torch.")
    return {"threads": threads, "context": arguments.context, "dtype": dtype, "shapes": shapes, **describe_run()}


def tables(result: dict[str, Any]) -> str:
    """Write the figures of a result as Markdown."""
    hardware = result["hardware"]
    lines = [
        f"{hardware['processor']}, {result['threads']} threads, {result['context']:,} positions of context, "
        f"activations in {result['dtype']}; tokens per second.", "",
        "| shape | bits | llama.cpp | positions of a pass | pass | share of the bound | "
        + " | ".join(f"TPF {tpf}" for tpf in TPF) + " | even at TPF |",
        "|---|---|---|---|---|---|" + "---|" * (len(TPF) + 1),
    ]  # fmt: skip
    for name, of_shape in result["shapes"].items():
        for weights, row in of_shape["formats"].items():
            theirs = row["llama.cpp"]["tokens_per_second"]
            for ours in row["dmax"]:
                rates = [ours["tokens_per_second_by_tpf"].get(str(tpf)) for tpf in TPF]
                shown = " | ".join("–" if rate is None else _marked(rate, theirs) for rate in rates)
                pass_ms = ours["pass_ms"]["median"]
                lines.append(
                    f"| {name} | {weights.removeprefix('int')} | {theirs:.1f} | {ours['positions']} "
                    f"| {pass_ms:.0f} ms | "
                    f"{ours['share_of_bound']:.0%} | {shown} | {theirs * pass_ms / 1000:.1f} |"
                )
    return "\n".join(lines)


def _marked(rate: float, other: float) -> str:
    """Write a rate, in bold where it is the higher one."""
    return f"**{rate:.1f}**" if rate > other else f"{rate:.1f}"


def fill_page(result: dict[str, Any]) -> None:
    """Put the tables into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    behind = rest.partition(_END)[2]
    PAGE.write_text(f"{before}{_BEGIN}\n\n{tables(result)}\n\n{_END}{behind}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", default=sys.executable, help="of an environment with llama-cpp-python, gguf")
    parser.add_argument("--shapes", nargs="+", choices=BLOCKS, default=list(BLOCKS))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--layers", type=int, help="of every shape, for a trial")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=32, help="timed of llama.cpp, and passes of dmax")
    parser.add_argument(
        "--dtype", type=lambda name: getattr(torch, name), default=torch.bfloat16, help="of activations"
    )
    parser.add_argument("--folder", help="for llama.cpp's files; 17 GB at most")
    parser.add_argument("--page", type=Path, metavar="RESULT", help="only fill docs/results/cpu.md from this file")
    arguments = parse_arguments(parser)
    if arguments.page is not None:
        fill_page(json.loads(arguments.page.read_text(encoding="utf-8")))
        return
    report(measure(arguments), arguments.json)


if __name__ == "__main__":
    main()
