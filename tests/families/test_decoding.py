"""Answers of every family: with and without cache, alone and in company, by every backend; and in training."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dmax import LLM, EngineConfig, GenerationOutput, GenerationParams, LLMEngine
from dmax.engine import GenerationError
from dmax.engine.backends import Backend
from dmax.engine.backends.cpu import CpuBackend
from dmax.engine.backends.torch import TorchBackend
from dmax.engine.requests import RequestReader
from dmax.kernels.cpu.library import compile_kernels
from dmax.models import BlockDiffusionLM
from dmax.training.data import Example
from dmax.training.layout import lay_out
from dmax.training.multi_block import group_starts
from dmax.training.predictor import Predictor

VOCAB, MASK = 48, 1
DECODERS: dict[str, dict[str, Any]] = {
    "soft-parallel": {"threshold": 0.1},
    "threshold": {"threshold": 0.3},
}


def essence(output: GenerationOutput) -> tuple[Any, ...]:
    tokens_of_passes = None if output.trace is None else [record.tokens for record in output.trace]
    return output.token_ids, output.passes, output.nfe, output.finish_reason, tokens_of_passes


def prompts_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("block_length", [4, 8, 32])
@pytest.mark.parametrize("decoder", DECODERS)
def test_neither_cache_nor_company_changes_an_answer(model: BlockDiffusionLM, decoder: str, block_length: int) -> None:
    batch = prompts_of(0, 3, block_length, 2 * block_length + 1)
    params = GenerationParams(
        decoder=decoder, block_length=block_length, gen_length=block_length + 5, trace=True, **DECODERS[decoder]
    )
    cached, recomputed = (LLM(model).generate(batch, replace(params, use_cache=kept)) for kept in (True, False))
    assert [essence(output) for output in cached] == [essence(output) for output in recomputed]
    [alone] = LLM(model).generate([batch[-1]], replace(params, seed=len(batch) - 1))
    assert essence(alone) == essence(cached[-1])
    assert len({tuple(output.token_ids) for output in cached}) > 1, "or nothing is compared"


def test_blocks_in_flight_need_neither(model: BlockDiffusionLM) -> None:
    batch = prompts_of(3, 17)
    params = GenerationParams(
        decoder="soft-parallel", block_length=8, gen_length=30, buffer_size=3, semi_threshold=0.5, add_threshold=0.0,
        threshold=0.1, trace=True,
    )  # fmt: skip
    cached, recomputed = (LLM(model).generate(batch, replace(params, use_cache=kept)) for kept in (True, False))
    assert [essence(output) for output in cached] == [essence(output) for output in recomputed]
    assert any(len({r.block for r in o.trace or [] if r.pass_number == n}) > 1 for o in cached for n in range(30))


def test_what_a_shifted_model_needs_beside_keys_and_values_survives(make: Callable[..., Any]) -> None:
    """Sequences take one another's slots and pages, are preempted, and begin alike."""
    llm = LLM(make("Fast_dLLM_Qwen").folder)
    prompt = prompts_of(24)[0]
    batch = [*prompts_of(3, 9, 17, 5, 12), prompt, prompt, prompt[:16]]
    params = GenerationParams(decoder="soft-parallel", block_length=8, gen_length=40, threshold=0.9)
    page_bytes = 2 * 2 * 2 * 16 * 8 * 4
    engine = LLMEngine(
        llm.model, config=EngineConfig(page_length=8, kv_memory=16 * page_bytes, prefill_tokens=8, max_batch_size=4)
    )
    for index, ids in enumerate(batch):
        engine.add_request(ids, replace(params, seed=index), str(index))
    answers = {}
    while engine.has_requests():
        answers |= {update.request_id: update.output for update in engine.step() if update.output is not None}
    stats = engine.stats()
    assert stats.preemptions > 0 < stats.prefix_hits
    for index, alone in enumerate(llm.generate(batch, params)):
        assert essence(answers[str(index)]) == essence(alone)


@pytest.mark.parametrize("model", ["llada2_moe, block routing"], indirect=True)
def test_blocks_that_experts_are_not_chosen_for_are_refused(model: BlockDiffusionLM) -> None:
    with pytest.raises(GenerationError, match="block_length is 6; this model chooses experts for blocks of 4"):
        LLM(model).generate([5], GenerationParams(block_length=6, gen_length=8))


def test_a_model_brings_block_length_and_decoder(make: Callable[..., Any]) -> None:
    asked = {"gen_length": 6}
    expected = {
        "sdar": (4, "threshold"), "sdar_moe": (4, "threshold"), "a2d-qwen3": (32, "threshold"),
        "a2d-qwen2": (32, "threshold"), "a2d-llama": (32, "threshold"), "Fast_dLLM_Qwen": (32, "threshold"),
    }  # fmt: skip
    for name, (block_length, decoder) in expected.items():
        [output] = LLM(make(name).folder).generate([5, 6], GenerationParams(**asked))
        assert (output.params["block_length"], output.decoder) == (block_length, decoder)
    [output] = LLM(make("sdar").folder).generate(
        [5, 6], GenerationParams(**asked, decoder="fixed-steps", block_length=2)
    )
    assert (output.params["block_length"], output.decoder) == (2, "fixed-steps")


def engine_answers(
    backend: Backend, model: BlockDiffusionLM, launch_ahead: bool = False, gen_length: int = 14
) -> list[Any]:
    """Of requests that differ in all that a backend tells apart."""
    rules: list[dict[str, Any]] = [
        {"decoder": "soft-parallel", "threshold": 0.05, "acceptance_threshold": 0.3, "block_length": 8},
        {"decoder": "soft-parallel", "threshold": 0.05, "buffer_size": 2, "semi_threshold": 0.5, "block_length": 8},
        {"decoder": "threshold", "threshold": 0.1, "block_length": 4},
    ]
    reader = RequestReader(model.config, None)
    rows = [
        reader.read(str(index), ids, GenerationParams(gen_length=gen_length, **rule), time.perf_counter())
        for index, (ids, rule) in enumerate(zip(prompts_of(3, 9, 17), rules, strict=True))
    ]
    engine = LLMEngine(
        model,
        config=EngineConfig(pages=16, page_length=8, max_batch_size=3, prefill_tokens=16, launch_ahead=launch_ahead),
        backend=backend,
    )
    for row in rows:
        engine.add(row)
    while engine.has_requests():
        engine.step()
    return [(row.ending.token_ids, row.passes) for row in rows if row.ending]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the C++ kernels are compiled."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        compile_kernels()
    return folder


def test_compiled_kernels_give_the_same_answers(
    model: BlockDiffusionLM, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = engine_answers(TorchBackend(model), model)
    monkeypatch.setenv("XDG_CACHE_HOME", str(library))
    backend = CpuBackend(model)
    assert engine_answers(backend, model) == expected
    assert backend.name == "cpu-compiled"
    assert (backend._weights is None) == bool(model.config.expert_capacity), "all layers in one call, or not"


def test_the_gpu_backend_gives_the_same_answers(model: BlockDiffusionLM) -> None:
    pytest.importorskip("triton")
    from dmax.engine.backends.cuda import CudaBackend

    expected = engine_answers(TorchBackend(model), model, gen_length=7)
    for launch_ahead in {False, model.config.shift_logits}:  # the interpreter takes its time
        assert engine_answers(CudaBackend(model, graphs=False), model, launch_ahead, gen_length=7) == expected


def test_training_reads_what_decoding_reads(model: BlockDiffusionLM) -> None:
    """Logits of noisy blocks, by themselves and in a group, are those of decoding them behind the clean ones."""
    ids = prompts_of(16)[0]
    supervised = [position >= 3 for position in range(16)]
    layout = lay_out([Example(tuple(ids), tuple(supervised))], 4, pad_token_id=0)
    hidden = torch.rand(layout.noisy_ids.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    noisy = torch.where(hidden & layout.supervised, MASK, layout.noisy_ids)
    grouped = replace(layout, group_starts=torch.tensor([[0] * 8 + [2] * 8]))
    assert group_starts(torch.arange(4), torch.tensor([True, False, True, False])).tolist() == [0, 0, 2, 2]
    predict = Predictor(model, torch.float32)
    with torch.no_grad():
        by_block, by_group = predict(noisy, layout), predict(noisy, grouped)
        for block in range(4):
            start, end = 4 * block, 4 * block + 4
            own = slice(max(start - 3, 0), end - 3)
            before = [*ids[:start], *noisy[0, start:end].tolist()]
            expected = model.logits(torch.tensor([before]), 4)[0, max(start, 3) :]
            torch.testing.assert_close(by_block[own], expected, rtol=0, atol=1e-4)
            first = start // 8 * 8
            before = [*ids[:first], *noisy[0, first:end].tolist()]
            expected = model.logits(torch.tensor([before]), 4)[0, max(start, 3) :]
            torch.testing.assert_close(by_group[own], expected, rtol=0, atol=1e-4)
