"""The kernels on a GPU, at the shapes of LLaDA2-mini; tests/unit/kernels covers their corners at small ones.

The model's plain PyTorch path, taken wherever a gradient might be recorded, is the reference.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dmax.decoding import BlockState, SoftParallelDecoder, StepResult, input_embeddings
from dmax.engine.backends.cuda import CudaBackend
from dmax.engine.backends.cuda_modules import KernelSparseMLP
from dmax.engine.backends.swapped import copy_as
from dmax.kernels.soft_parallel import decide, soft_embeddings, thresholds_on
from dmax.models import BlockDiffusionLM, ModelConfig, load_model, save_model
from dmax.models.convert import Quantization, convert_checkpoint
from dmax.models.moe import SparseMLP
from dmax.models.transformer import initialize

pytestmark = pytest.mark.gpu
pytest.importorskip("triton")

MINI = ModelConfig(
    vocab_size=512, hidden_size=2048, intermediate_size=5120, num_hidden_layers=2, num_attention_heads=16,
    num_key_value_heads=4, head_dim=128, partial_rotary_factor=0.5, mask_token_id=1, eos_token_id=2, pad_token_id=0,
    num_experts=256, num_experts_per_tok=8, num_shared_experts=1, moe_intermediate_size=512, first_k_dense_replace=1,
    n_group=8, topk_group=4, routed_scaling_factor=2.5, initializer_range=0.02,
)  # fmt: skip


@pytest.fixture(scope="module")
def layer() -> SparseMLP:
    """A sparse feed-forward of LLaDA2-mini, float32, with outputs of about unit size."""
    generator = torch.Generator("cuda").manual_seed(5)
    with torch.device("cuda"):
        layer = SparseMLP(MINI)
        for parameter in layer.parameters():
            parameter.data.normal_(0.0, 0.04, generator=generator)
        layer.gate.expert_bias.normal_(0.0, 0.02, generator=generator)
    return layer.eval()


def by_kernels(layer: SparseMLP) -> KernelSparseMLP:
    return copy_as(layer, KernelSparseMLP)


def logits_by_kernels(model: BlockDiffusionLM, ids: torch.Tensor) -> torch.Tensor:
    """Logits of whole sequences by the modules of the backend."""
    return CudaBackend(model.eval()).modules.logits(ids)


def draw_tokens(count: int, seed: int = 6) -> torch.Tensor:
    return torch.randn(1, count, MINI.hidden_size, generator=torch.Generator("cuda").manual_seed(seed), device="cuda")


@pytest.mark.parametrize("tokens", [1, 32, 64, 333, 1024])
def test_a_float32_layer_equals_the_plain_one(layer: SparseMLP, tokens: int) -> None:
    x = draw_tokens(tokens)
    with torch.inference_mode():
        found, expected = by_kernels(layer)(x), layer(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 32, 64, 333, 1024])
def test_a_bfloat16_layer_is_as_near_to_float32_as_the_plain_one(layer: SparseMLP, tokens: int) -> None:
    half = SparseMLP(MINI).cuda().bfloat16().eval()
    half.load_state_dict({name: tensor.bfloat16() for name, tensor in layer.state_dict().items()})
    half.gate.expert_bias = half.gate.expert_bias.float()
    wide = SparseMLP(MINI).cuda().eval()
    wide.load_state_dict(half.state_dict())
    x = draw_tokens(tokens).bfloat16()
    with torch.inference_mode():
        found, plain, exact = by_kernels(half)(x).float(), half(x).float(), wide(x.float())
    error, plain_error = ((out - exact).norm() / exact.norm() for out in (found, plain))
    assert error < 1.1 * plain_error + 1e-4


def test_two_runs_give_the_same_bits(layer: SparseMLP) -> None:
    with torch.inference_mode():
        x = draw_tokens(64)
        assert torch.equal(by_kernels(layer)(x), by_kernels(layer)(x))


def test_a_layer_is_captured_and_follows_its_input(layer: SparseMLP) -> None:
    with torch.inference_mode():
        x, layer = draw_tokens(32), by_kernels(layer)
        layer(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(x)
        for seed in (7, 8):
            x.copy_(draw_tokens(32, seed))
            graph.replay()
            replayed = out.clone()
            assert torch.equal(replayed, layer(x))


@pytest.mark.parametrize("positions", [32, 96])
def test_a_model_gives_the_logits_of_the_plain_one(positions: int) -> None:
    config = replace(MINI, hidden_size=256, intermediate_size=512, moe_intermediate_size=96, num_hidden_layers=3)
    model = initialize(BlockDiffusionLM(config), torch.Generator().manual_seed(9)).cuda().eval()
    ids = torch.randint(3, 512, (2, positions), generator=torch.Generator().manual_seed(10)).cuda()
    found, expected = logits_by_kernels(model, ids), model.logits(ids)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("weights", ["fp8", "int8"])
@pytest.mark.parametrize("parts", [("experts", "dense"), ("experts",)])
def test_a_quantised_model_gives_the_logits_of_the_plain_path(
    weights: str, parts: tuple[str, ...], tmp_path: Path
) -> None:
    config = replace(MINI, hidden_size=256, intermediate_size=512, moe_intermediate_size=96, num_hidden_layers=3)
    save_model(initialize(BlockDiffusionLM(config), torch.Generator().manual_seed(9)), tmp_path / "whole")
    convert_checkpoint(tmp_path / "whole", tmp_path / "small", quantization=Quantization(weights, parts=parts))
    model = load_model(tmp_path / "small", device="cuda")
    ids = torch.randint(3, 512, (1, 96), generator=torch.Generator().manual_seed(10)).cuda()
    found, expected = logits_by_kernels(model, ids), model.logits(ids)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_decode_step_over_a_whole_vocabulary_is_the_plain_one() -> None:
    """LLaDA2's vocabulary in bfloat16, with the ties that its few bits make; captured, and alone as in a batch."""
    generator = torch.Generator("cuda").manual_seed(12)
    vocabulary, mask, rows = 157184, 156895, 4
    logits = 4 * torch.randn(rows, 32, vocabulary, generator=generator, device="cuda")
    logits.view(-1, vocabulary)[torch.arange(128), torch.randint(0, vocabulary, (128,))] = 30.0
    logits = logits.bfloat16()
    table = torch.randn(vocabulary, 256, generator=generator, device="cuda").bfloat16()
    on = torch.ones(rows, 32, dtype=torch.bool, device="cuda")
    state = BlockState.start(torch.zeros(rows, 32, dtype=torch.int64, device="cuda"), on, mask)
    decoder = SoftParallelDecoder(threshold=0.5)
    thresholds = thresholds_on(logits.device, decoder.threshold, decoder.acceptance_threshold)

    def step(logits: torch.Tensor, state: BlockState) -> StepResult:
        blocks = (state.tokens, state.active, state.masked, state.passes, state.fallback)
        return decoder.after(decide(logits, *blocks, thresholds, mask_token_id=mask), state)

    with torch.inference_mode():
        found = step(logits, state)
        mix = found.state.mix
        assert mix is not None
        mixed = soft_embeddings(
            found.state.tokens, mix.where, mix.token_ids, mix.weights, table, mask_token_id=mask, renormalize=True
        )
        alone = step(logits[1:2], replace(state, **{
            name: getattr(state, name)[1:2] for name in ("tokens", "active", "masked", "passes")
        }))  # fmt: skip
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step(logits, state)
        graph.replay()
        expected = decoder.step(logits, state)
        plain_mixed = input_embeddings(expected.state, table)
    assert torch.equal(captured.confidence, found.confidence)
    assert torch.equal(alone.confidence, found.confidence[1:2])
    assert torch.equal(found.state.tokens, expected.state.tokens)
    assert torch.equal(found.promoted, expected.promoted)
    assert torch.equal(found.converged, expected.converged)
    torch.testing.assert_close(found.confidence, expected.confidence, rtol=1e-5, atol=0)
    torch.testing.assert_close(mixed, plain_mixed, rtol=2e-2, atol=2e-2)
