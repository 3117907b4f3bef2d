"""Kernels compiled ahead of time give what the plain model gives, whoever watches or replaces its modules."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmax import LLM, GenerationParams, LLMEngine, RequestUpdate
from dmax.decoding.registry import BUILT_IN
from dmax.engine.backends import choose_backend
from dmax.engine.backends.cpu import CpuBackend, FusedSpans
from dmax.engine.backends.cpu_stack import LayerStack
from dmax.kernels.cpu.layers import LayersPass
from dmax.kernels.cpu.library import CompileError, compile_kernels
from dmax.kernels.cpu.rule import CpuRule
from dmax.kernels.decision import Decision
from dmax.models import BlockDiffusionLM
from dmax.models.layers import Linear
from dmax.models.transformer import initialize

PARAMS = GenerationParams(gen_length=24, block_length=8, threshold=0.3)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One library for all tests of this file."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        assert compile_kernels().is_relative_to(folder)
    return folder


@pytest.fixture
def build(tiny_model: BlockDiffusionLM) -> Callable[..., BlockDiffusionLM]:
    """Changes to the tiny model, which has a dense and a sparse layer -> that model with weights of its own."""

    def make(**changes: object) -> BlockDiffusionLM:
        config = replace(tiny_model.config, **changes)
        return initialize(BlockDiffusionLM(config), torch.Generator().manual_seed(7)).eval()

    return make


@pytest.fixture
def compiled(cache: Path, build: Callable[..., BlockDiffusionLM], monkeypatch: pytest.MonkeyPatch) -> BlockDiffusionLM:
    """A model that finds the kernels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return build()


@pytest.fixture
def plain_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """A model and what to generate -> the outputs where nothing is compiled."""

    def answers(model: BlockDiffusionLM, *arguments: Any) -> list[Any]:
        with monkeypatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path))
            assert choose_backend(model).name == "cpu"
            return LLM(copy.deepcopy(model)).generate(*arguments)

    return answers


def watch(model: BlockDiffusionLM) -> None:
    """Let modules be called one by one."""
    for module in (model.model.norm, model.lm_head):
        module.register_forward_hook(lambda *_: None)


def run(engine: LLMEngine) -> Iterator[RequestUpdate]:
    while engine.has_requests():
        yield from engine.step()


class OtherLinear(Linear):
    """A head that may do anything."""


def token_ids(rows: int, length: int) -> Tensor:
    return torch.randint(3, 48, (rows, length), generator=torch.Generator().manual_seed(rows + length))


@needs_compiler
def test_a_backend_tells_what_it_is(compiled: BlockDiffusionLM) -> None:
    assert choose_backend(compiled).name == "cpu-compiled"


@needs_compiler
@pytest.mark.parametrize("decoder", BUILT_IN)
@pytest.mark.parametrize("watched", [False, True])
def test_answers_are_those_of_the_plain_model_alone_and_together(
    compiled: BlockDiffusionLM, plain_answers: Callable[..., list[Any]], decoder: str, watched: bool
) -> None:
    if watched:
        watch(compiled)
    params = replace(PARAMS, decoder=decoder, threshold=None if decoder == "fixed-steps" else 0.3)
    prompts = [token_ids(1, length)[0].tolist() for length in (3, 8, 21)]
    together = LLM(compiled).generate(prompts, params)
    alone = [LLM(compiled).generate(prompt, params)[0] for prompt in prompts]
    expected = plain_answers(compiled, prompts, params)
    for outputs in (together, alone):
        assert [(o.token_ids, o.nfe) for o in outputs] == [(o.token_ids, o.nfe) for o in expected]


@needs_compiler
def test_other_decoders_have_their_look_at_the_logits_in_one_call(
    compiled: BlockDiffusionLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    predict = CpuRule.predict
    monkeypatch.setattr(CpuRule, "predict", lambda rule, logits: calls.append(logits.shape) or predict(rule, logits))
    [output] = LLM(compiled).generate([[3, 4, 5]], replace(PARAMS, decoder="threshold"))
    assert len(calls) == output.passes
    LLM(compiled).generate([[3, 4, 5]], replace(PARAMS, decoder="threshold", temperature=0.5))
    assert len(calls) == output.passes, "draws need the logits themselves"


@needs_compiler
def test_all_spans_of_a_forward_are_attended_to_at_once(
    compiled: BlockDiffusionLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    attend = FusedSpans.attend

    def note(spans: FusedSpans, layer: int, *heads: Tensor) -> Tensor:
        seen.append(layer)
        return attend(spans, layer, *heads)

    monkeypatch.setattr(FusedSpans, "attend", note)
    watch(compiled)
    LLM(compiled).generate([[3, 4, 5], [6, 7]], PARAMS)
    assert set(seen) == set(range(compiled.config.num_hidden_layers))
    number = len(seen)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    LLM(compiled).generate([[3, 4, 5], [6, 7]], PARAMS)
    assert len(seen) == number, "there is none in an empty cache"


@needs_compiler
def test_a_forward_is_one_call_unless_somebody_watches_modules(
    compiled: BlockDiffusionLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    run = LayersPass.__call__

    def note(layers: LayersPass, embeds_ND: Tensor) -> Tensor:
        calls.append(len(embeds_ND))
        return run(layers, embeds_ND)

    monkeypatch.setattr(LayersPass, "__call__", note)
    outputs = LLM(compiled).generate([[3, 4, 5], [6, 7]], PARAMS)
    assert len(calls) == max(output.passes for output in outputs), "no prompt fills a block, so there is no prefill"
    calls.clear()
    watch(compiled)
    watched = LLM(compiled).generate([[3, 4, 5], [6, 7]], PARAMS)
    assert not calls
    assert [output.token_ids for output in watched] == [output.token_ids for output in outputs]


@needs_compiler
def test_head_and_rule_are_one_call_where_nobody_would_miss_anything(
    compiled: BlockDiffusionLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    run = CpuRule.read

    def note(rule: CpuRule, hidden_BLD: Tensor, *rest: Any) -> tuple[Decision, Tensor]:
        calls.append(hidden_BLD.shape[0])
        return run(rule, hidden_BLD, *rest)

    def answers(llm: LLM, **changes: Any) -> list[list[int]]:
        outputs = llm.generate([[3, 4, 5], [6, 7]], replace(PARAMS, **changes))
        return [output.token_ids for output in outputs]

    monkeypatch.setattr(CpuRule, "read", note)
    expected = answers(LLM(compiled))
    assert set(calls) <= {1, 2} and calls
    calls.clear()
    for options in ({"top_k": 2}, {"renormalize": False}, {"soft": False}, {"revise": False}, {"contiguous": False}):
        answers(LLM(compiled), decoder_options=options)
    answers(LLM(compiled), temperature=0.5)
    answers(LLM(compiled), decoder="threshold")
    hook = compiled.lm_head.register_forward_hook(lambda *_: None)
    assert answers(LLM(compiled)) == expected
    hook.remove()
    other = copy.deepcopy(compiled)
    other.lm_head.__class__ = OtherLinear
    assert answers(LLM(other)) == expected
    assert not calls
    with torch.no_grad():
        compiled.lm_head.weight.copy_(compiled.lm_head.weight.flip(0))
    changed = answers(LLM(compiled))
    assert calls and changed != expected
    assert changed == answers(LLM(copy.deepcopy(compiled)))


@needs_compiler
def test_a_module_of_another_kind_is_called(compiled: BlockDiffusionLM) -> None:
    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.inner(x)

    before = LLM(compiled).generate([[3, 4, 5]], PARAMS)[0]
    layer = compiled.model.layers[-1]
    layer.mlp = wrapped = Wrapped(layer.mlp)
    after = LLM(compiled).generate([[3, 4, 5]], PARAMS)[0]
    assert wrapped.calls == after.passes
    assert after.token_ids == before.token_ids


@needs_compiler
def test_weights_are_laid_out_when_an_engine_is_made(
    compiled: BlockDiffusionLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.dtype] = []
    lay_out = LayerStack._make
    monkeypatch.setattr(LayerStack, "_make", lambda stack, dtype: made.append(dtype) or lay_out(stack, dtype))
    engine = LLMEngine(compiled)
    assert made == [torch.float32]
    engine.add_request([3, 4, 5], PARAMS)
    list(run(engine))
    assert made == [torch.float32]


@needs_compiler
def test_an_engine_sees_weights_that_changed_between_two_requests(compiled: BlockDiffusionLM) -> None:
    engine = LLMEngine(compiled)

    def answer() -> list[int]:
        engine.add_request([3, 4, 5], PARAMS)
        return next(update.output.token_ids for update in run(engine) if update.output is not None)

    before = answer()
    with torch.no_grad():
        compiled.model.layers[0].attention.dense.weight.mul_(-5)
    after = answer()
    assert after == LLM(compiled).generate([[3, 4, 5]], PARAMS)[0].token_ids
    assert after != before


@needs_compiler
def test_a_module_that_is_replaced_between_two_calls_is_called(compiled: BlockDiffusionLM) -> None:
    llm = LLM(compiled)
    before = llm.generate([[3, 4, 5]], PARAMS)[0].token_ids
    with torch.no_grad():
        other = copy.deepcopy(compiled.model.layers[-1].mlp)
        other.shared_experts.down_proj.weight.mul_(-5)
        compiled.model.layers[-1].mlp = other
    after = llm.generate([[3, 4, 5]], PARAMS)[0].token_ids
    assert after == LLM(copy.deepcopy(compiled)).generate([[3, 4, 5]], PARAMS)[0].token_ids != before


@needs_compiler
def test_one_library_is_for_all_dtypes_it_knows(compiled: BlockDiffusionLM) -> None:
    backend = choose_backend(compiled)
    for dtype, name in ((torch.bfloat16, "cpu-compiled"), (torch.float64, "cpu"), (torch.float32, "cpu-compiled")):
        compiled.to(dtype)
        assert choose_backend(compiled).name == name
        assert choose_backend(compiled, backend) is backend
        backend.open(2, 8, 1)
        assert backend.name == name


@needs_compiler
def test_sizes_for_which_no_kernel_is_written_go_without(
    compiled: BlockDiffusionLM, build: Callable[..., BlockDiffusionLM], plain_answers: Callable[..., list[Any]]
) -> None:
    model = build(vocab_size=50, intermediate_size=40)
    backend = CpuBackend(model)
    assert backend._kernels is not None and backend._kernels.layers is None and not backend._kernels.reads
    found = LLM(model).generate([[3, 4, 5]], PARAMS)
    assert [o.token_ids for o in found] == [o.token_ids for o in plain_answers(model, [[3, 4, 5]], PARAMS)]


def test_what_cannot_be_compiled_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CompileError, match="install g\\+\\+"):
        compile_kernels()
    assert list(tmp_path.iterdir()) == []
