"""Engines over large quantised weights, whose modules call the compiled kernels for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dmax import LLM, GenerationParams
from dmax.engine.backends import packed
from dmax.kernels.cpu.library import PROCESSOR, compile_kernels, kernels_folder
from dmax.kernels.cpu.quantized import CpuQuantized
from dmax.measurement.shapes import SHAPES, random_model
from dmax.models import BlockDiffusionLM, ModelConfig
from dmax.models.convert import Quantization

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")

PARAMS = GenerationParams(gen_length=32, block_length=8, threshold=0.05)
PROMPTS = [[3, 9, 27], [5, 6, 7, 8, 9, 10, 11, 12, 13], list(range(3, 24))]
TINY = ModelConfig(
    vocab_size=96, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, num_experts=16, num_experts_per_tok=2, num_shared_experts=1,
    moe_intermediate_size=128, first_k_dense_replace=1, n_group=4, topk_group=2, routed_scaling_factor=2.5,
    routing_block_length=8,
    mask_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def build(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., BlockDiffusionLM]:
    """A format -> a model in it, all of whose weights count as large."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv(PROCESSOR, raising=False)
    monkeypatch.setattr(packed, "MOST_WEIGHTS", 0)
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    compile_kernels()

    def make(weights: str, dtype: torch.dtype = torch.float32) -> BlockDiffusionLM:
        formats = Quantization(weights, embeddings="int8")  # type: ignore[arg-type]
        return random_model("tiny", device=torch.device("cpu"), dtype=dtype, weights=formats)

    return make


def answers(model: BlockDiffusionLM, prompts: list[list[int]], **changes: object) -> list[list[int]]:
    return [output.token_ids for output in LLM(model).generate(prompts, replace(PARAMS, **changes))]


def confidences(model: BlockDiffusionLM, prompts: list[list[int]]) -> list[list[list[float]]]:
    """Of every answer's passes: they tell what tokens alone would not."""
    outputs = LLM(model).generate(prompts, replace(PARAMS, trace=True))
    return [[record.confidence for record in output.trace or []] for output in outputs]


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("capacity", [None, 5])
def test_a_sequence_gets_the_same_bits_alone_and_among_others(
    build: Callable[..., BlockDiffusionLM], weights: str, dtype: torch.dtype, capacity: int | None
) -> None:
    model = build(weights, dtype)
    if capacity is not None:
        model.limit_experts(capacity)
    together = confidences(model, PROMPTS)
    assert all(len(passes) > 4 for passes in together)
    assert [confidences(model, [prompt])[0] for prompt in PROMPTS] == together


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_tokens_are_the_same_without_a_cache(build: Callable[..., BlockDiffusionLM], weights: str) -> None:
    """Of random weights in float32; a number between two of 8 bits may be rounded the other way, so not to the bit."""
    model = build(weights)
    expected = answers(model, PROMPTS)
    assert len({tuple(tokens) for tokens in expected}) == len(PROMPTS)
    assert answers(model, PROMPTS, use_cache=False) == expected


def test_every_product_is_the_kernels(build: Callable[..., BlockDiffusionLM], monkeypatch: pytest.MonkeyPatch) -> None:
    called: set[str] = set()
    for name in ("linear", "experts", "route"):
        plain = getattr(CpuQuantized, name)

        def noted(*arguments: object, name: str = name, plain: Callable[..., object] = plain) -> object:
            called.add(name)
            return plain(*arguments)

        monkeypatch.setattr(CpuQuantized, name, noted)
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *_: pytest.fail("a weight was multiplied otherwise"))
    answers(build("int4"), PROMPTS[:1])
    assert called == {"linear", "experts", "route"}


def test_the_plain_modules_give_nearly_the_same(build: Callable[..., BlockDiffusionLM]) -> None:
    """They do not round what is multiplied with int4, or with experts."""
    model = build("int4")
    from dmax.engine.backends.cpu import CpuBackend

    backend = CpuBackend(model)
    with torch.inference_mode():
        x = torch.randn(1, 16, 128, generator=torch.Generator().manual_seed(1))
        for layer, swapped in zip(model.model.layers, backend.modules.model.layers, strict=True):
            expected, found = layer.mlp(x), swapped.mlp(x)
            assert 1e-4 < (found - expected).norm() / expected.norm() < 0.02


def test_a_lesser_processor_gives_the_same_tokens(
    build: Callable[..., BlockDiffusionLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "avx2" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("the library for AVX2 runs where there is AVX2")
    models = [build(weights) for weights in ("int8", "int4")]
    own = kernels_folder()
    expected = [answers(model, PROMPTS) for model in models]
    monkeypatch.setenv(PROCESSOR, "haswell")
    assert kernels_folder() != own
    compile_kernels()
    assert [answers(model, PROMPTS) for model in models] == expected
