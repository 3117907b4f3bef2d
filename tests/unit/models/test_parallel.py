"""Shares of a model in several processes against the whole model in one."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from dmax import LLM, GenerationParams
from dmax.models import BlockDiffusionLM, ModelConfig, load_model, save_model
from dmax.models.convert import Quantization, convert_checkpoint
from dmax.models.parallel import tensor_parallel
from dmax.models.transformer import initialize

CONFIG = ModelConfig(
    vocab_size=48, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=2, head_dim=16, partial_rotary_factor=0.5, num_experts=4, num_experts_per_tok=2,
    num_shared_experts=2, moe_intermediate_size=16, first_k_dense_replace=1, n_group=2, topk_group=1,
    mask_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.3,
)  # fmt: skip
PARAMS = GenerationParams(threshold=0.2, acceptance_threshold=0.5, gen_length=24, block_length=8)
PROMPTS = [[5, 6, 7], list(range(3, 22)), [40] * 9]


def answers(model: BlockDiffusionLM) -> dict[str, Any]:
    """What a model says, with all that decoding needs: the cache, the decoder and the head."""
    return {
        "tokens": [output.token_ids for output in LLM(model).generate(PROMPTS, PARAMS)],
        "logits": model.logits(torch.tensor([PROMPTS[1]]), block_length=8).tolist(),
        "weights": [layer.attention.dense.weight.numel() for layer in model.model.layers],
    }


def run_process(rank: int, processes: int, folder: Path) -> None:
    """One process of a group; it was forked, so it must not count on the threads of its parent."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=processes)
    mesh = init_device_mesh("cpu", (processes,))
    results = {name: answers(tensor_parallel(load_model(folder / name), mesh)) for name in ("whole", "int8")}
    (folder / f"{rank}.json").write_text(json.dumps(results), encoding="utf-8")
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_together_answer_as_one_model(processes: int, tmp_path: Path) -> None:
    save_model(initialize(BlockDiffusionLM(CONFIG), torch.Generator().manual_seed(0)), tmp_path / "whole")
    convert_checkpoint(tmp_path / "whole", tmp_path / "int8", quantization=Quantization("int8"))
    context = multiprocessing.get_context("fork")
    members = [context.Process(target=run_process, args=(rank, processes, tmp_path)) for rank in range(processes)]
    for member in members:
        member.start()
    expected = {name: answers(load_model(tmp_path / name).eval()) for name in ("whole", "int8")}
    for member in members:
        member.join(timeout=300)
        assert member.exitcode == 0
    results = [json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(processes)]
    assert all(result == results[0] for result in results)
    for name, whole in expected.items():
        found = results[0][name]
        assert found["tokens"] == whole["tokens"]
        assert found["weights"] == [count // processes for count in whole["weights"]]
        torch.testing.assert_close(torch.tensor(found["logits"]), torch.tensor(whole["logits"]), rtol=0, atol=1e-4)


def test_what_cannot_be_shared_evenly_is_named() -> None:
    class Three:
        """As much of a mesh as is looked at before anything is exchanged."""

        @staticmethod
        def size() -> int:
            return 3

    with torch.device("meta"):
        model = BlockDiffusionLM(CONFIG)
    with pytest.raises(ValueError, match=r"num_attention_heads is 8, which 3 processes cannot share evenly"):
        tensor_parallel(model, Three())  # type: ignore[arg-type]
