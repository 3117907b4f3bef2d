"""The passes that are timed are the engine's, of the asked size, and their parts add up."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import pytest
import torch

from dmax.measurement.bench import BenchOptions, bench
from dmax.measurement.passes import PassDriver
from dmax.measurement.shapes import MeasurementError, random_model
from dmax.measurement.split import PARTS, Timeline, split_passes, touched_experts
from dmax.models import BlockDiffusionLM


@pytest.fixture(scope="module")
def model() -> BlockDiffusionLM:
    return random_model("nano", device=torch.device("cpu"), dtype=torch.float32, layers=2)


@pytest.mark.parametrize("positions", [32, 64])
@pytest.mark.parametrize("batch", [1, 3])
def test_counted_passes_have_the_asked_positions(model: BlockDiffusionLM, batch: int, positions: int) -> None:
    driver = PassDriver(model, batch=batch, context=96, positions=positions)
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[0] * inputs[0].shape[1]))
    steps = driver.run(40)
    handle.remove()
    assert len(steps) == 40
    assert {sizes[step.index] for step in steps} == {batch * positions}
    assert len(sizes) > 40, "sequences begin again within so many passes"


def test_the_experts_touched_are_those_of_the_routers(model: BlockDiffusionLM) -> None:
    driver = PassDriver(model, batch=1, context=96, positions=32)
    touched = touched_experts(driver)
    assert touched is not None and 2 <= touched <= 8
    router = model.model.layers[1].mlp.gate
    bias = router.expert_bias.clone()
    router.expert_bias[:2] = 100.0
    try:
        assert touched_experts(driver) == 2.0
    finally:
        router.expert_bias.copy_(bias)


def test_every_part_of_a_pass_is_seen(model: BlockDiffusionLM, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr("dmax.measurement.split.time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    parts = split_passes(PassDriver(model, batch=1, context=96, positions=32), 4)
    assert tuple(parts) == PARTS
    assert {part for part, taken in parts.items() if not taken} == {"shared"}, "which runs together with the experts"


def test_time_goes_to_the_part_that_took_it(model: BlockDiffusionLM, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def wait(*_: object) -> None:
        nonlocal now
        now += 1.0

    monkeypatch.setattr("dmax.measurement.split.time", SimpleNamespace(perf_counter=lambda: now))
    handle = model.model.layers[0].attention.dense.register_forward_pre_hook(wait)
    parts = split_passes(PassDriver(model, batch=1, context=96, positions=32), 4)
    handle.remove()
    assert parts == {part: 1.0 if part == "attention" else 0.0 for part in PARTS}


def test_a_timeline_gives_each_stretch_to_the_part_that_began_it(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 3.0, 7.0, 20.0, 21.0])
    monkeypatch.setattr("dmax.measurement.split.time", SimpleNamespace(perf_counter=lambda: next(times)))
    timeline = Timeline(torch.device("cpu"))
    for part in ("inputs", "head", "rule", "pause", "inputs", "pause"):
        timeline.mark(part)
    first, second = timeline.steps()
    assert first == {**dict.fromkeys(PARTS, 0.0), "inputs": 1.0, "head": 2.0, "rule": 4.0}
    assert second == {**dict.fromkeys(PARTS, 0.0), "inputs": 1.0}


def test_a_bench_states_time_shares_and_rate(model: BlockDiffusionLM) -> None:
    result = bench(model, BenchOptions(batch=2, context=64, repeats=6, tpf=5.0))
    median = result["pass_ms"]["median"]
    assert result["pass_ms"]["min"] <= result["pass_ms"]["quartile_1"] <= median <= result["pass_ms"]["max"]
    assert result["tokens_per_second"] == pytest.approx(2 * 5.0 / median * 1000)
    assert result["bytes"]["total"] == sum(n for part, n in result["bytes"].items() if part != "total")
    share = result["bytes"]["total"] / (median / 1000) / result["copy_bytes_per_second"]
    assert result["share_of_copy_bandwidth"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"positions": 48}, "32 or 64"),
        ({"positions": 96}, "32 or 64"),
        ({"batch": 0}, "at least 1"),
        ({"context": 100}, "multiple of 32"),
        ({"context": 32_768}, "has room for"),
    ],
)
def test_passes_that_do_not_exist_are_refused(model: BlockDiffusionLM, wrong: dict[str, int], message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        PassDriver(model, **{"batch": 1, "context": 64, "positions": 32, **wrong})


@pytest.mark.parametrize("wrong", [{"repeats": 1}, {"tpf": 0.0}])
def test_options_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(MeasurementError):
        BenchOptions(**wrong)
