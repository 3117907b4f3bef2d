"""What answering needs of memory: against what models hold, and what they are refused for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dmax import LLM
from dmax.engine import requirements
from dmax.engine.requirements import Workload, formats_needed, memory_needed, widens
from dmax.measurement.shapes import SHAPES, random_model
from dmax.models import BlockDiffusionLM, ModelConfig, save_model
from dmax.models.convert import Quantization, convert_checkpoint
from dmax.models.memory import DoesNotFit
from dmax.models.quantized import hold_quantized
from dmax.models.transformer import initialize

CPU = torch.device("cpu")
MINI = SHAPES["llada2-mini"]
GIB = 2**30


def by_shape(config: ModelConfig) -> BlockDiffusionLM:
    with torch.device("meta"):
        return BlockDiffusionLM(config)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_counted_as_a_model_holds_them(
    tied: bool, dtype: torch.dtype, tiny_config: Callable[..., ModelConfig], tmp_path: Path
) -> None:
    config = tiny_config(moe=True, moe_intermediate_size=32, tie_word_embeddings=tied)
    save_model(initialize(BlockDiffusionLM(config), torch.Generator().manual_seed(0)), tmp_path / "whole")
    convert_checkpoint(tmp_path / "whole", tmp_path / "int4", quantization=Quantization("int4", ("experts",)))
    for name in ("whole", "int4"):
        counted: list[int] = []

        def count(
            model: BlockDiffusionLM, kind: torch.dtype, device: torch.device, counted: list[int] = counted
        ) -> None:
            counted.append(memory_needed(model, kind, device, Workload())["weights"])

        from dmax.models import load_model

        model = load_model(tmp_path / name, dtype=dtype, check=count)
        held = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values() if tensor.numel()}
        assert counted[0] == pytest.approx(sum(held.values()), rel=0.01)


def test_the_published_shape_in_every_format() -> None:
    wide = formats_needed(MINI, torch.float32, CPU, Workload())
    assert wide[None] == pytest.approx(62 * GIB, rel=0.05)
    assert formats_needed(MINI, torch.bfloat16, CPU, Workload())[None] == pytest.approx(31 * GIB, rel=0.05)
    assert wide["int8"] == pytest.approx(19 * GIB, rel=0.05)
    assert wide["int4 --embeddings int8"] < 12 * GIB
    assert list(wide.values()) == sorted(wide.values(), reverse=True)


def test_the_cache_has_the_size_that_is_given_or_that_all_sequences_need() -> None:
    model = by_shape(MINI)
    given = memory_needed(model, torch.bfloat16, CPU, Workload(32, cache=GIB))
    needed = memory_needed(model, torch.bfloat16, CPU, Workload(4, 1000))
    assert given["KV cache"] == GIB
    assert needed["KV cache"] == 4 * 1000 * 2 * 20 * 4 * 128 * 2


@pytest.mark.parametrize(
    ("available", "mend"),
    [
        (40, "start it with --dtype bfloat16 (31.1 GiB) or `dmax convert mini FOLDER --quantize int8`"),
        (20, "`dmax convert mini FOLDER --quantize int8` and start that (1"),
        (14, "`dmax convert mini FOLDER --quantize int4` and start that (12.4 GiB)"),
        (4, "the least that it takes is 9."),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(
    available: int, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "available_memory", lambda _: available * GIB)
    with pytest.raises(DoesNotFit) as caught:
        requirements.check_memory(by_shape(MINI), torch.float32, CPU, name="mini", load=Workload())
    message = str(caught.value)
    assert message.startswith("mini needs 6") and f"this machine has {available}.0 GiB available: {mend}" in message
    assert "--ignore-memory" in message and "--device" in message


def test_nothing_is_read_before_it_is_refused(
    tiny_config: Callable[..., ModelConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(
        initialize(BlockDiffusionLM(tiny_config(moe=True)), torch.Generator().manual_seed(0)), tmp_path / "model"
    )
    monkeypatch.setattr(requirements, "available_memory", lambda _: 1000)
    with monkeypatch.context() as patched:
        patched.setattr("dmax.models.checkpoint.materialize", lambda *_: pytest.fail("memory was taken"))
        with pytest.raises(DoesNotFit, match="the least that it takes is"):
            LLM(tmp_path / "model")
    assert LLM(tmp_path / "model", ignore_memory=True).model.config.hidden_size == 32
    with pytest.raises(DoesNotFit):
        random_model("nano", device=CPU, dtype=torch.float32, check=_refuse)


def _refuse(model: BlockDiffusionLM, dtype: torch.dtype, device: torch.device) -> None:
    requirements.check_memory(model, dtype, device, name="nano", load=Workload())


def test_a_model_that_is_not_here_is_refused_before_it_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import json

    (tmp_path / "config.json").write_text(json.dumps(MINI.to_dict()))
    fetched: list[bool] = []

    def resolve(name: str, *, weights: bool = True) -> Path:
        fetched.append(weights)
        return tmp_path

    monkeypatch.setattr(requirements, "resolve", resolve)
    monkeypatch.setattr(requirements, "load_config", lambda _: replace(MINI))
    monkeypatch.setattr(requirements, "available_memory", lambda _: 4 * GIB)
    with pytest.raises(DoesNotFit, match="owner/mini needs 3"):
        LLM("owner/mini", dtype=torch.bfloat16)
    assert fetched == [False]


def kinds_that_are_not_widened() -> set[tuple[str, str, str]]:
    kinds = {}
    for name in ("int8", "fp8", "int4"):
        for part in ("dense", "experts"):
            model = by_shape(MINI)
            asked = Quantization(name, (part,))  # type: ignore[arg-type]
            schemes = {at: asked.scheme_of(at, tuple(tensor.shape)) for at, tensor in model.state_dict().items()}
            hold_quantized(model, {at: scheme for at, scheme in schemes.items() if scheme is not None})
            for device in (CPU, torch.device("cuda")):
                kinds[name, part, device.type] = widens(model, device)
    return {kind for kind, widened in kinds.items() if not widened}


def test_which_weights_every_pass_widens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    on_gpu = {(name, part, "cuda") for name in ("int8", "fp8") for part in ("dense", "experts")}
    monkeypatch.setattr(requirements, "compiled_kernels", lambda _: None)
    assert kinds_that_are_not_widened() == {("int8", "dense", "cpu"), *on_gpu}
    monkeypatch.setattr(requirements, "compiled_kernels", lambda _: tmp_path)
    by_kernels = {(name, part, "cpu") for name in ("int8", "int4") for part in ("dense", "experts")}
    assert kinds_that_are_not_widened() == {*by_kernels, *on_gpu}
    assert not widens(by_shape(MINI), CPU)
