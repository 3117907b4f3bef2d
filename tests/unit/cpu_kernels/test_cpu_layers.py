"""All layers in one call: against the modules in float32, and every position as if it were alone."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmax.decoding import get_decoder
from dmax.engine.backends.cpu import CpuBackend
from dmax.engine.backends.cpu_stack import LayerStack
from dmax.engine.kv_cache import KVCache, PackedSpans
from dmax.engine.params import GenerationParams
from dmax.engine.sequence import Sequence
from dmax.engine.span import Span
from dmax.engine.stopping import StopRule
from dmax.kernels.cpu.attention import CpuAttention
from dmax.kernels.cpu.layers import CpuLayers, FeedForwardSize, serves
from dmax.models import BlockDiffusionLM, ModelConfig
from dmax.models.quantized import Scheme, dequantize, hold_quantized, part_of, quantize, scale_name, scales_of
from dmax.models.transformer import initialize, routers

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

PAGES, PAGE = 24, 8
DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.15}
SHAPES: dict[str, dict[str, Any]] = {
    "dense": {"moe": False, "intermediate_size": 176},
    "experts": {"moe": True},
    "groups": {"moe": True, "num_experts": 12, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5},
    "groups of one": {"moe": True, "num_experts": 4, "n_group": 4, "topk_group": 2, "num_shared_experts": 3},
    "many experts": {"moe": True, "num_experts": 20, "num_experts_per_tok": 3, "num_shared_experts": 0},
    "softmax": {
        "moe": True,
        "num_experts": 20,
        "num_experts_per_tok": 3,
        "score_function": "softmax",
        "norm_topk_prob": False,
    },
    "softmax in groups": {"moe": True, "num_experts": 12, "n_group": 4, "topk_group": 2, "score_function": "softmax"},
    "heads as they are": {"moe": False, "intermediate_size": 176, "use_qk_norm": False},
    "biases": {"moe": False, "intermediate_size": 176, "use_qk_norm": False, "use_qkv_bias": True, "use_bias": True},
    "biases and norms": {"moe": True, "use_qkv_bias": True, "num_attention_heads": 3, "num_key_value_heads": 1},
    "wide": {"moe": True, "hidden_size": 80, "head_dim": 48, "num_attention_heads": 3, "num_key_value_heads": 1},
}
SPANS = [((7, 2, 9), 16, 24), ((1, 4), 0, 16), ((11, 12, 13, 14, 15), 24, 40), ((20,), 0, 8)]
"""Pages, and from where to where."""

Build = Callable[..., BlockDiffusionLM]


@pytest.fixture
def build(tiny_config: Callable[..., ModelConfig]) -> Build:
    """A dtype and changes to a tiny model -> that model, random."""

    def make(dtype: torch.dtype = torch.float32, **changes: Any) -> BlockDiffusionLM:
        config = tiny_config(**{"moe": True, "partial_rotary_factor": 0.5, "num_hidden_layers": 3, **changes})
        model = initialize(BlockDiffusionLM(config), torch.Generator().manual_seed(3)).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_(0.0, 0.2, generator=torch.Generator().manual_seed(4))
        for router in routers(model):
            router.expert_bias.uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(4))
        return model.to(dtype)

    return make


class Case:
    """Spans over a pool of random keys and values, and passes over them."""

    def __init__(self, model: BlockDiffusionLM, spans: list[tuple[tuple[int, ...], int, int]] = SPANS) -> None:
        generator = torch.Generator().manual_seed(5)
        self.model, self.spans = model, spans
        self.stack: LayerStack | None = None
        self._pool = torch.randn(self._cache(model).keys.shape, generator=generator).to(model.dtype)
        length = sum(end - start for _, start, end in spans)
        self.embeds_ND = torch.randn(length, model.config.hidden_size, generator=generator).to(model.dtype)

    def _cache(self, model: BlockDiffusionLM) -> KVCache:
        return KVCache(model.config, PAGES, PAGE, device=torch.device("cpu"), dtype=model.dtype)

    def _open(self, cache: KVCache) -> list[Span]:
        cache.keys.copy_(self._pool)
        cache.values.copy_(-self._pool)
        sequence = Sequence("0", [], GenerationParams(block_length=32), StopRule((2,), 8), get_decoder("threshold"))
        return [Span(sequence, pages, start, start, end, PAGE) for pages, start, end in self.spans]

    @torch.no_grad()
    def in_one_call(self, library: Path) -> tuple[Tensor, Tensor, Tensor] | None:
        """Hidden states, keys and values; None where the modules have to be called."""
        dtype = self.model.dtype
        cache = self._cache(self.model)
        spans = self._open(cache)
        stack = LayerStack.of(self.model) if self.stack is None else self.stack
        weights = None if stack is None else stack.weights(cache.keys)
        if stack is None or weights is None:
            return None
        run = CpuLayers(library, dtype).plan(
            stack.size,
            weights,
            len(self.embeds_ND),
            CpuAttention(library, dtype).plan(spans, PAGE),
            stack.angles(max(span.end for span in spans)),
            (cache.keys, cache.values),
        )
        return run(self.embeds_ND), cache.keys, cache.values

    @torch.no_grad()
    def by_modules(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same in float32."""
        model = CpuBackend(copy.deepcopy(self.model).float()).modules  # where ties go to the first expert, too
        cache = self._cache(model)
        packed = PackedSpans(cache, self._open(cache))
        hidden_1ND = model(self.embeds_ND.float()[None], packed.position_ids, None, packed)
        return hidden_1ND[0], cache.keys, cache.values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_it_is_the_model(cpu_library: Path, build: Build, dtype: torch.dtype, shape: dict[str, Any]) -> None:
    case = Case(build(dtype, **shape))
    found, expected = case.in_one_call(cpu_library), case.by_modules()
    assert found is not None
    for one, other in zip(found, expected, strict=True):
        close = torch.isclose(one.float(), other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        # Rounding to bfloat16 may send a token to another expert.
        assert close.float().mean() > (0.95 if dtype == torch.bfloat16 else 0.9999)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_span_gets_the_same_bits_alone_and_among_others(cpu_library: Path, build: Build, dtype: torch.dtype) -> None:
    together = Case(build(dtype))
    found = together.in_one_call(cpu_library)
    assert found is not None
    at = 0
    for span in together.spans:
        own = slice(at, at + span[2] - span[1])
        at = own.stop
        alone = Case(together.model, [span])
        alone.embeds_ND = together.embeds_ND[own]
        result = alone.in_one_call(cpu_library)
        assert result is not None and torch.equal(result[0], found[0][own])


def test_ties_between_experts_go_to_the_first(cpu_library: Path, build: Build) -> None:
    model = build(num_experts=8, n_group=4, topk_group=2)
    for router in routers(model):
        router.weight.data.zero_()
        router.expert_bias.zero_()
    case = Case(model)
    found = case.in_one_call(cpu_library)
    assert found is not None
    torch.testing.assert_close(found[0], case.by_modules()[0], rtol=1e-4, atol=1e-4)


def test_changed_weights_are_read_anew(cpu_library: Path, build: Build) -> None:
    model = build()
    before = Case(model).in_one_call(cpu_library)
    assert before is not None
    last = before[0]
    for tensor in (model.model.layers[1].mlp.experts.up_proj, routers(model)[0].expert_bias, model.model.norm.weight):
        with torch.no_grad():
            tensor.copy_(tensor.flip(0) * 1.5)
        after = Case(model).in_one_call(cpu_library)
        assert after is not None and not torch.equal(after[0], last)
        last = after[0]
    torch.testing.assert_close(last, Case(model).by_modules()[0], rtol=1e-4, atol=1e-4)


class Other(nn.Linear):
    """What somebody may put in a linear map's place."""


def put_another(model: BlockDiffusionLM) -> None:
    model.model.layers[0].attention.dense = Other(64, 32, bias=False)


def put_another_feed_forward(model: BlockDiffusionLM) -> None:
    model.model.layers[1].mlp = nn.Identity()


def put_another_backbone(model: BlockDiffusionLM) -> None:
    model.model = copy.deepcopy(model.model)


def replace_a_forward(model: BlockDiffusionLM) -> None:
    model.model.layers[1].mlp.forward = lambda x: x  # type: ignore[method-assign]


def watch_a_part(model: BlockDiffusionLM) -> None:
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)


def watch_all(model: BlockDiffusionLM) -> None:
    model.register_forward_pre_hook(lambda *_: None)


CHANGES = [put_another, put_another_feed_forward, replace_a_forward, watch_a_part, watch_all]


@pytest.mark.parametrize("change", CHANGES)
def test_modules_that_have_to_be_called_are(
    cpu_library: Path, build: Build, change: Callable[[BlockDiffusionLM], object]
) -> None:
    model = build()
    change(model)
    assert Case(model).in_one_call(cpu_library) is None


@pytest.mark.parametrize("change", [*CHANGES, put_another_backbone])
def test_modules_that_change_under_an_engine_are_called(
    cpu_library: Path, build: Build, change: Callable[[BlockDiffusionLM], object]
) -> None:
    case = Case(build())
    case.stack = LayerStack.of(case.model)
    assert case.in_one_call(cpu_library) is not None
    change(case.model)
    assert case.in_one_call(cpu_library) is None


def test_weights_whose_changes_nobody_counts_are_left_alone(cpu_library: Path, build: Build) -> None:
    with torch.inference_mode():
        model = build()
    assert Case(model).in_one_call(cpu_library) is None


@pytest.mark.parametrize("stored", [torch.int8, torch.float8_e4m3fn])
def test_weights_in_8_bits_are_widened(cpu_library: Path, build: Build, stored: torch.dtype) -> None:
    wide = build()
    weights = {name: weight for name, weight in wide.state_dict().items() if part_of(name) in ("experts", "dense")}
    scales = {name: scales_of(weight, stored) for name, weight in weights.items()}
    narrow = {name: quantize(weight, scales[name], stored) for name, weight in weights.items()}
    with torch.device("meta"):
        model = BlockDiffusionLM(wide.config)
    name = "int8" if stored == torch.int8 else "fp8"
    hold_quantized(model, dict.fromkeys(weights, Scheme(name)))
    model.load_state_dict(
        {**wide.state_dict(), **narrow, **{scale_name(name): scale for name, scale in scales.items()}}, assign=True
    )
    wide.load_state_dict(
        {name: dequantize(weight, scales[name], torch.float32) for name, weight in narrow.items()}, strict=False
    )
    found, expected = (Case(each).in_one_call(cpu_library) for each in (model.eval(), wide))
    assert found is not None and expected is not None
    assert torch.equal(found[0], expected[0])


def test_what_it_is_not_written_for(build: Build) -> None:
    size = LayerStack(build()).size
    assert serves(size, torch.float32) and serves(size, torch.bfloat16)
    assert not serves(size, torch.float16)
    assert not serves(size._replace(channels=24), torch.float32)
    two_kinds = (FeedForwardSize(4, 5, 16), FeedForwardSize(8, 9, 16))
    assert not serves(size._replace(feed_forwards=two_kinds), torch.float32)
    assert not serves(LayerStack(build(intermediate_size=72)).size, torch.float32)
    assert LayerStack.of(build(expert_capacity=2)) is None
