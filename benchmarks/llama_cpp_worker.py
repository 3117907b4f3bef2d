"""Tokens per second of llama.cpp over random weights of a shape; started by ``llama_cpp.py``, in an environment with
``llama-cpp-python`` and ``gguf``, which need not have dmax.

Reads a JSON object from standard input (see ``llama_cpp.py``), writes a GGUF file of random blocks, decodes one token
after another behind a context, and prints a JSON object.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

Tensors = Iterator[tuple[str, tuple[int, ...], str]]
"""Names, shapes and formats: "F32", or those of matrices and of the embedding table."""


def tensors(shape: dict[str, Any]) -> Tensors:
    """List the tensors of a model, as llama.cpp names them."""
    width, heads, of_keys = shape["hidden"], shape["heads"] * shape["channels"], shape["kv_heads"] * shape["channels"]
    yield "token_embd.weight", (shape["vocabulary"], width), "table"
    if not shape["tied"]:
        yield "output.weight", (shape["vocabulary"], width), "table"
    yield "output_norm.weight", (width,), "F32"
    for layer in range(shape["layers"]):
        at = f"blk.{layer}."
        for norm, size in (("attn_norm", width), ("ffn_norm", width), ("attn_q_norm", shape["channels"])):
            yield f"{at}{norm}.weight", (size,), "F32"
        yield f"{at}attn_k_norm.weight", (shape["channels"],), "F32"
        if shape["arch"] == "bailingmoe2":
            yield f"{at}attn_qkv.weight", (heads + 2 * of_keys, width), "matrix"
        else:
            for part, size in (("q", heads), ("k", of_keys), ("v", of_keys)):
                yield f"{at}attn_{part}.weight", (size, width), "matrix"
        yield f"{at}attn_output.weight", (width, heads), "matrix"
        if not shape["experts"] or layer < shape["dense_layers"]:
            yield from _feed_forward(at, "", width, shape["intermediate"])
            continue
        experts, of_expert = shape["experts"], shape["expert_width"]
        yield f"{at}ffn_gate_inp.weight", (experts, width), "F32"
        yield f"{at}exp_probs_b.bias", (experts,), "F32"
        yield from _feed_forward(at, "_exps", width, of_expert, experts)
        yield from _feed_forward(at, "_shexp", width, of_expert * shape["shared"])


def _feed_forward(at: str, suffix: str, width: int, inner: int, *stack: int) -> Tensors:
    for part, matrix in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
        yield f"{at}ffn_{part}{suffix}.weight", (*stack, *matrix), "matrix"


def write(path: Path, shape: dict[str, Any], matrix: str) -> None:
    """Write a model of random weights."""
    writer, arch, add = gguf.GGUFWriter(path, shape["arch"]), shape["arch"], {}
    add = {
        "block_count": shape["layers"], "context_length": shape["positions"], "embedding_length": shape["hidden"],
        "feed_forward_length": shape["intermediate"], "attention.head_count": shape["heads"],
        "attention.head_count_kv": shape["kv_heads"], "attention.key_length": shape["channels"],
        "attention.value_length": shape["channels"], "rope.dimension_count": shape["rotary"],
        "vocab_size": shape["vocabulary"],
    }  # fmt: skip
    if shape["experts"]:
        add |= {
            "expert_count": shape["experts"], "expert_used_count": shape["chosen"],
            "expert_shared_count": shape["shared"],
            "expert_feed_forward_length": shape["expert_width"], "leading_dense_block_count": shape["dense_layers"],
            "expert_group_count": shape["groups"], "expert_group_used_count": shape["groups_kept"],
            "expert_gating_func": 2,
        }  # fmt: skip
        writer.add_expert_weights_scale(2.5)
        writer.add_expert_weights_norm(True)
    for name, value in add.items():
        writer.add_uint32(f"{arch}.{name}", value)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_tokenizer_model("none")
    formats = {"matrix": matrix, "table": "Q8_0", "F32": "F32"}
    made = list(tensors(shape))
    for name, size, kind in made:
        block, item = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[formats[kind]]]
        count = int(np.prod(size)) // block * item
        if kind == "F32":
            writer.add_tensor_info(name, size, np.dtype(np.float32), count)
        else:
            stored = (*size[:-1], size[-1] // block * item)
            kind_of = gguf.GGMLQuantizationType[formats[kind]]
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), count, raw_dtype=kind_of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(0)
    for _, size, kind in made:
        writer.write_tensor_data(_draw(random, size, formats[kind]))
    writer.close()


def _draw(random: np.random.Generator, size: tuple[int, ...], kind: str) -> np.ndarray:
    """Draw weights of a standard deviation of about 0.02."""
    if kind == "F32":
        return np.ones(size, np.float32) if len(size) == 1 else random.standard_normal(size, np.float32) * 0.02
    block, item = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = random.integers(0, 256, (int(np.prod(size)) // block, item), np.uint8)
    scale = np.array([0.02 / {"Q4_0": 4.6, "Q8_0": 73.9}[kind]], np.float16)  # each block begins with its scale
    blocks[:, :2] = scale.view(np.uint8)
    return blocks.reshape(*size[:-1], -1)


def decode(path: Path, task: dict[str, Any]) -> dict[str, float]:
    """Time the tokens behind a context, and the context's own."""
    llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    loading = llama_cpp.llama_model_default_params()
    loading.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), loading)
    if not model:
        raise SystemExit(f"llama.cpp does not load a {task['shape']['arch']} model of this shape.")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch = task["context"] + task["tokens"] + 64, 512
    params.n_threads = params.n_threads_batch = task["threads"]
    context = llama_cpp.llama_init_from_model(model, params)
    random = np.random.default_rng(1)

    def feed(count: int) -> float:
        tokens = (llama_cpp.llama_token * count)(*map(int, random.integers(0, task["shape"]["vocabulary"], count)))
        began = time.perf_counter()
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, count)):
            raise SystemExit("llama.cpp could not decode.")
        llama_cpp.llama_synchronize(context)
        return time.perf_counter() - began

    prefill = sum(feed(min(512, task["context"] - at)) for at in range(0, task["context"], 512))
    for _ in range(4):
        feed(1)
    seconds = [feed(1) for _ in range(task["tokens"])]
    lower, median, upper = statistics.quantiles(seconds, n=4)
    return {
        "tokens_per_second": 1 / median, "token_ms": 1000 * median, "quartile_1_ms": 1000 * lower,
        "quartile_3_ms": 1000 * upper, "prefill_tokens_per_second": task["context"] / prefill,
        "bytes": path.stat().st_size,
    }  # fmt: skip


@llama_cpp.llama_log_callback
def _quiet(level: int, text: bytes, _: ctypes.c_void_p) -> None:
    if level >= 4:  # errors
        sys.stderr.write(text.decode(errors="replace"))


def main() -> None:
    task = json.load(sys.stdin)
    found = {}
    with tempfile.TemporaryDirectory(dir=task["folder"]) as folder:
        for kind in task["formats"]:
            path = Path(folder) / f"{kind}.gguf"
            write(path, task["shape"], kind)
            found[kind] = decode(path, task)
            path.unlink()
    json.dump({"version": llama_cpp.__version__, "formats": found}, sys.stdout)


if __name__ == "__main__":
    main()
