"""Steps compiled ahead of time: the model's own functions, for its own shape and dtype, and only in inference."""

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
from dmax.decoding import BlockState, SoftParallelDecoder, mixing, prediction, soft_parallel
from dmax.engine import compiled as compiled_steps
from dmax.engine.compiled import attach, attached, compile_steps, detach, load_attention, steps_folder
from dmax.engine.kv_cache import FusedSpans
from dmax.kernels.ahead import CompileError, Library
from dmax.kernels.cpu.layers import LayersPass
from dmax.kernels.cpu.rule import CpuRead
from dmax.kernels.decision import Decision
from dmax.kernels.steps import Step
from dmax.models import LLaDA2
from dmax.models.chains import model_steps
from dmax.models.layers import Linear
from dmax.models.llada2 import initialize

MODEL_STEPS = {"angles", "norm", "norm_of_sum", "turn", "gate", "route", "experts"}
RULE_STEPS = {"decide", "predict", "soften"}
PARAMS = GenerationParams(gen_length=24, block_length=8, threshold=0.3)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for all tests of this file, because compiling takes most of a minute."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture
def build(tiny_model: LLaDA2) -> Callable[..., LLaDA2]:
    """Changes to the tiny model, which has a dense and a sparse layer -> that model with weights of its own."""

    def make(**changes: object) -> LLaDA2:
        config = replace(tiny_model.config, **changes)
        return initialize(LLaDA2(config), torch.Generator().manual_seed(7)).eval()

    return make


@pytest.fixture
def compiled(cache: Path, build: Callable[..., LLaDA2]) -> Iterator[LLaDA2]:
    """A model and its steps, which are taken away from whatever is like it in the end."""
    model = build()
    told: list[tuple[int, int]] = []
    folder = compile_steps(model.config, torch.float32, lambda done, of: told.append((done, of)))
    assert folder.is_relative_to(cache)
    number = len((MODEL_STEPS | RULE_STEPS) - {"experts", "decide", "soften"})
    assert told in ([], [(done, number) for done in range(1, number + 1)])
    assert attach(model)
    yield model
    detach(model)


def watch(model: LLaDA2) -> None:
    """Let modules be called one by one."""
    for module in (model.model.norm, model.lm_head):
        module.register_forward_hook(lambda *_: None)


def rule_steps(model: LLaDA2) -> list[Step]:
    config, table = model.config, model.model.word_embeddings.weight
    decide = soft_parallel.STEPS.at(config.vocab_size, config.mask_token_id, table.dtype)
    predict = prediction.STEPS.at(config.vocab_size, config.mask_token_id, table.dtype)
    return [decide, predict, mixing.STEPS.at(table.shape, config.mask_token_id, table.dtype)]


def run(engine: LLMEngine) -> Iterator[RequestUpdate]:
    while engine.has_requests():
        yield from engine.step()


class OtherLinear(Linear):
    """A head that may do anything."""


def token_ids(rows: int, length: int) -> Tensor:
    return torch.randint(3, 48, (rows, length), generator=torch.Generator().manual_seed(rows + length))


@needs_compiler
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 2), (1, 32), (3, 7), (2, 200)])
def test_logits_are_those_of_the_plain_model(compiled: LLaDA2, rows: int, length: int) -> None:
    plain = copy.deepcopy(compiled)
    assert attached(compiled) and not attached(plain)
    ids = token_ids(rows, length)
    torch.testing.assert_close(compiled.logits(ids, 8), plain.logits(ids, 8), rtol=1e-4, atol=1e-4)


@needs_compiler
def test_no_step_is_passed_by(compiled: LLaDA2) -> None:
    called = set()
    for step in (*model_steps(compiled), *rule_steps(compiled)):
        if run := step._run:

            def note(tensors: list[Tensor], name: str = step.name, run: Library = run) -> list[Tensor]:
                called.add(name)
                return run(tensors)

            step.fill(note, torch.float32)
    watch(compiled)
    for params in (PARAMS, replace(PARAMS, decoder="threshold")):
        LLM(compiled).generate([3, 4, 5], params)
    assert called == MODEL_STEPS | RULE_STEPS


@needs_compiler
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("fallback", [None, False, True])
def test_a_pass_is_that_of_the_plain_rule(compiled: LLaDA2, rows: int, fallback: bool | None) -> None:
    generator = torch.Generator().manual_seed(5)
    vocabulary, mask = compiled.config.vocab_size, compiled.config.mask_token_id
    # Ties go to the lowest token, and the mask, the most probable of all in every third position, is never chosen.
    logits = torch.randint(0, 8, (8, rows, 9, vocabulary), generator=generator).float() * 4
    logits[:, :, ::3, mask] = 29.0
    active = torch.arange(9).expand(rows, 9) >= torch.arange(rows)[:, None]
    start = BlockState.start(torch.full((rows, 9), 3), active, mask)
    start = replace(start, fallback=None if fallback is None else torch.full((rows,), fallback))
    decoder = SoftParallelDecoder(threshold=0.1, acceptance_threshold=0.2)

    def passes() -> list[list[Tensor]]:
        state, seen = start, []
        with torch.inference_mode():
            for logits_BLV in logits:
                result = decoder.step(logits_BLV, state)
                state = result.state
                assert state.mix is not None
                seen.append([
                    state.tokens, state.masked, state.passes, state.mix.where, state.mix.token_ids, result.promoted,
                    result.revised, result.converged, result.confidence.mul(1e5).round(),
                ])  # fmt: skip
        return seen

    found = passes()
    detach(compiled)
    expected = passes()
    assert any(tensor.any() for tensor in (row[5] for row in expected))
    for one, other in zip(found, expected, strict=True):
        assert all(map(torch.equal, one, other))


@needs_compiler
def test_predictions_are_those_of_the_plain_function(compiled: LLaDA2) -> None:
    vocabulary, mask = compiled.config.vocab_size, compiled.config.mask_token_id
    logits = torch.randint(0, 8, (3, 9, vocabulary), generator=torch.Generator().manual_seed(6)).float()
    logits[:, ::3, mask] = 29.0
    with torch.inference_mode():
        found = prediction.predict(logits, mask)
        detach(compiled)
        expected = prediction.predict(logits, mask)
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.confidence, expected.confidence)
    torch.testing.assert_close(found.probabilities, expected.probabilities)


@needs_compiler
def test_answers_are_those_of_the_plain_model_alone_and_together(
    compiled: LLaDA2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [token_ids(1, length)[0].tolist() for length in (3, 8, 21)]
    together = LLM(compiled).generate(prompts, PARAMS)
    alone = [LLM(compiled).generate(prompt, PARAMS)[0] for prompt in prompts]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    detach(compiled)
    plain = copy.deepcopy(compiled)
    expected = LLM(plain).generate(prompts, PARAMS)
    assert not attached(plain)
    for outputs in (together, alone):
        assert [(o.token_ids, o.nfe) for o in outputs] == [(o.token_ids, o.nfe) for o in expected]


@needs_compiler
def test_all_spans_of_a_forward_are_attended_to_at_once(
    compiled: LLaDA2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    compiled: LLaDA2, monkeypatch: pytest.MonkeyPatch
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
    compiled: LLaDA2, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    run = CpuRead.__call__

    def note(read: CpuRead, hidden_BLD: Tensor, *rest: Any) -> tuple[Decision, Tensor]:
        calls.append(hidden_BLD.shape[0])
        return run(read, hidden_BLD, *rest)

    def answers(llm: LLM, **changes: Any) -> list[list[int]]:
        outputs = llm.generate([[3, 4, 5], [6, 7]], replace(PARAMS, **changes))
        return [output.token_ids for output in outputs]

    monkeypatch.setattr(CpuRead, "__call__", note)
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
def test_a_module_of_another_kind_is_called(compiled: LLaDA2) -> None:
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
def test_an_engine_sees_weights_that_changed_between_two_requests(compiled: LLaDA2) -> None:
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
def test_steps_do_without_kernels_that_cannot_be_compiled(
    build: Callable[..., LLaDA2], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise CompileError("no such flag")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled_steps.cpu_library, "compile_library", fail)
    told: list[str] = []
    monkeypatch.setattr(compiled_steps, "compile_chain", lambda chain, path: told.append(chain.name))
    model = build()
    with pytest.warns(UserWarning, match="no such flag; passes go on with PyTorch's own operations"):
        compile_steps(model.config, torch.float32)
    assert load_attention(model) is None
    assert {"weigh", "decide", "soften"} <= set(told), "which the kernels would do"


@needs_compiler
def test_an_engine_takes_what_is_in_the_cache(compiled: LLaDA2) -> None:
    fresh = copy.deepcopy(compiled)
    LLM(fresh).generate([3, 4, 5], GenerationParams(gen_length=8, block_length=8))
    assert attached(fresh)


@needs_compiler
def test_training_and_other_dtypes_take_the_plain_way(compiled: LLaDA2) -> None:
    def refuse(tensors: list[Tensor]) -> list[Tensor]:
        raise AssertionError("a compiled step was called")

    for step in model_steps(compiled):
        if step.name != "angles":  # which knows no dtype
            step.fill(refuse, torch.float32)
    ids = token_ids(1, 8)
    with pytest.raises(AssertionError, match="compiled step"):
        compiled.logits(ids)
    positions = torch.arange(8)[None]
    compiled(compiled.embed(ids), positions).sum().backward()
    compiled.to(torch.bfloat16).logits(ids)
    detach(compiled.to(torch.float32))
    compiled.logits(ids)


@needs_compiler
def test_steps_of_another_shape_or_dtype_are_not_taken(compiled: LLaDA2, build: Callable[..., LLaDA2]) -> None:
    assert not attach(build(rms_norm_eps=0.1))
    assert not attach(build(routed_scaling_factor=2.0))
    assert not attach(build(intermediate_size=40))
    assert not attach(build(mask_token_id=4))
    assert not attach(build(rope_theta=500.0))
    assert not attach(build().to(torch.bfloat16))
    assert attach(build(num_hidden_layers=3)), "the number of layers is no part of a step"
    assert steps_folder(compiled.config, torch.float32) != steps_folder(compiled.config, torch.bfloat16)


def test_what_cannot_be_compiled_leaves_nothing(
    tiny_model: LLaDA2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_model.config
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(CompileError, match="float32 or bfloat16"):
        compile_steps(config, torch.float16)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CompileError, match="install g\\+\\+"):
        compile_steps(config, torch.float32)
    assert list(tmp_path.iterdir()) == []
