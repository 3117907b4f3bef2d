"""A model whose logits are NaN ends the answer with an error, and no other answer changes."""

from __future__ import annotations

import copy
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dmax import LLM, EngineConfig, GenerationOutput, GenerationParams, LLMEngine
from dmax.engine import NumericalError
from dmax.engine.backends import choose_backend
from dmax.kernels.cpu.library import compile_kernels
from dmax.models import BlockDiffusionLM

POISON = 7
"""A token whose embedding is no number."""
PARAMS = GenerationParams(gen_length=24, block_length=8, threshold=0.3)
DECODERS: dict[str, Any] = {
    "soft-parallel": PARAMS,
    "top-k": replace(PARAMS, decoder_options={"top_k": 3}),
    "drawn": replace(PARAMS, temperature=0.7, top_p=0.9),
    "in flight": replace(PARAMS, buffer_size=2),
    "threshold": GenerationParams(decoder="threshold", gen_length=24, block_length=8),
    "hierarchical": GenerationParams(decoder="hierarchical", gen_length=24, block_length=8),
    "fixed-steps": GenerationParams(decoder="fixed-steps", gen_length=24, block_length=8),
    "joint-threshold": GenerationParams(decoder="joint-threshold", gen_length=24, block_length=8),
    "joint-threshold-indel": GenerationParams(decoder="joint-threshold-indel", gen_length=24, block_length=8),
    "entropy-bounded": GenerationParams(decoder="entropy-bounded", gen_length=24, block_length=8),
    "remask": GenerationParams(decoder="remask", gen_length=24, block_length=8),
}
NEIGHBOURS = [[9, 10, 11], [12] * 9, [13, 14]]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture(params=["plain", pytest.param("compiled", marks=needs_compiler)])
def model(
    request: pytest.FixtureRequest,
    tiny_model: BlockDiffusionLM,
    library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> BlockDiffusionLM:
    """The tiny model with and without compiled kernels, one embedding of which is infinite."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(library if request.param == "compiled" else tmp_path))
    model = copy.deepcopy(tiny_model)
    assert choose_backend(model).name == ("cpu-compiled" if request.param == "compiled" else "cpu")
    with torch.no_grad():
        model.model.word_embeddings.weight[POISON] = math.inf
        model.lm_head.weight[POISON] = 0  # so that no answer holds it
    return model


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    if shutil.which("g++"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(folder))
            compile_kernels()
    return folder


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", DECODERS)
def test_a_prompt_that_overflows_is_told(model: BlockDiffusionLM, name: str, use_cache: bool) -> None:
    with pytest.raises(NumericalError, match=r"logits were NaN in pass 1 .*load it in bfloat16 or float32"):
        LLM(model).generate([5, POISON], replace(DECODERS[name], use_cache=use_cache))


@pytest.mark.parametrize("name", DECODERS)
def test_neighbours_and_those_that_follow_get_what_they_get_alone(model: BlockDiffusionLM, name: str) -> None:
    params = DECODERS[name]
    alone = [LLM(model).generate([prompt], params)[0] for prompt in NEIGHBOURS]
    engine = LLMEngine(model, config=EngineConfig(page_length=8, kv_memory=2**17))
    bad = [engine.add_request([POISON, 5] * 6, params), engine.add_request([5, POISON], params)]
    found: dict[str, GenerationOutput | Exception | None] = {}
    names = [engine.add_request(prompt, params) for prompt in NEIGHBOURS]
    for again in (False, True):  # the second time in pages that held NaN
        names = [engine.add_request(prompt, params) for prompt in NEIGHBOURS] if again else names
        while engine.has_requests():
            found |= {update.request_id: update.output or update.failure for update in engine.step() if update.finished}
        outputs = [found[one] for one in names]
        assert [output.token_ids for output in outputs if isinstance(output, GenerationOutput)] == [
            output.token_ids for output in alone
        ]
    assert all(isinstance(found[one], NumericalError) for one in bad)
    assert engine.stats().pages_held == 0


@pytest.mark.parametrize("place", ["one logit", "one panel", "all", "infinite"])
@pytest.mark.parametrize("name", ["soft-parallel", "threshold", "in flight"])
def test_nan_anywhere_in_the_vocabulary_counts(model: BlockDiffusionLM, name: str, place: str) -> None:
    with torch.no_grad():
        head = model.lm_head.weight
        if place == "one logit":
            head[20] = math.nan
        elif place == "one panel":
            head[32:] = math.nan
        elif place == "all":
            head[:] = math.nan
        else:
            head[20] = math.inf
    with pytest.raises(NumericalError):
        LLM(model).generate([5, 6], DECODERS[name])


def test_float16_is_named_where_it_is_the_cause(tiny_model: BlockDiffusionLM) -> None:
    model = copy.deepcopy(tiny_model).half()
    with torch.no_grad():
        model.model.norm.weight *= 60_000
        model.lm_head.weight *= 1000
    with pytest.raises(NumericalError, match="it overflows in float16; load it in bfloat16 or float32"):
        LLM(model).generate([5, 6], PARAMS)
