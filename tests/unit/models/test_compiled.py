"""Steps compiled ahead of time: the model's own functions, for its own shape and dtype, and only in inference."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dmax import LLM, GenerationParams
from dmax.models import LLaDA2, ModelConfig
from dmax.models.compiled import CompileError, attach, attached, compile_steps, detach, steps_folder
from dmax.models.steps import Step

STEPS = {"norm", "norm_of_sum", "turn", "gate", "route", "weigh"}
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for all tests of this file, because compiling takes most of a minute."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture
def compiled(cache: Path, model: LLaDA2) -> LLaDA2:
    """A model with one dense and two expert layers, and its steps."""
    told: list[tuple[int, int]] = []
    folder = compile_steps(model.config, torch.float32, lambda done, of: told.append((done, of)))
    assert folder.is_relative_to(cache)
    assert told in ([], [(done, len(STEPS)) for done in range(1, len(STEPS) + 1)])
    assert attach(model)
    return model


def steps(model: LLaDA2) -> list[Step]:
    return [value for module in model.modules() for value in vars(module).values() if isinstance(value, Step)]


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
    ids = token_ids(1, 8)
    expected = compiled.logits(ids)
    used = set()
    for step in steps(compiled):
        if run := step._run:
            step.fill(lambda tensors, run=run: [1.5 * result for result in run(tensors)], torch.float32)
            if not torch.equal(compiled.logits(ids), expected):
                used.add(step.name)
            step.fill(run, torch.float32)
    assert used == STEPS


@needs_compiler
def test_answers_are_those_of_the_plain_model_alone_and_together(
    compiled: LLaDA2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [token_ids(1, length)[0].tolist() for length in (3, 8, 21)]
    params = GenerationParams(gen_length=24, block_length=8, threshold=0.3)
    together = LLM(compiled).generate(prompts, params)
    alone = [LLM(compiled).generate(prompt, params)[0] for prompt in prompts]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plain = copy.deepcopy(compiled)
    expected = LLM(plain).generate(prompts, params)
    assert not attached(plain)
    for outputs in (together, alone):
        assert [(o.token_ids, o.nfe) for o in outputs] == [(o.token_ids, o.nfe) for o in expected]


@needs_compiler
def test_an_engine_takes_what_is_in_the_cache(compiled: LLaDA2) -> None:
    fresh = copy.deepcopy(compiled)
    LLM(fresh).generate([3, 4, 5], GenerationParams(gen_length=8, block_length=8))
    assert attached(fresh)


@needs_compiler
def test_training_and_other_dtypes_take_the_plain_way(compiled: LLaDA2) -> None:
    def refuse(tensors: list[Tensor]) -> list[Tensor]:
        raise AssertionError("a compiled step was called")

    for step in steps(compiled):
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
def test_steps_of_another_shape_or_dtype_are_not_taken(
    compiled: LLaDA2, build: Callable[..., LLaDA2], config: ModelConfig
) -> None:
    assert not attach(build(rms_norm_eps=0.1))
    assert not attach(build(routed_scaling_factor=1.0))
    assert not attach(build(hidden_size=40))
    assert not attach(build().to(torch.bfloat16))
    assert attach(build(num_hidden_layers=2)), "the number of layers is no part of a step"
    assert steps_folder(config, torch.float32) != steps_folder(config, torch.bfloat16)


def test_what_cannot_be_compiled_leaves_nothing(
    config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(CompileError, match="float32 or bfloat16"):
        compile_steps(config, torch.float16)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CompileError, match="install g\\+\\+"):
        compile_steps(config, torch.float32)
    assert list(tmp_path.iterdir()) == []
