"""Where the time of a pass goes, by part, and which experts it touches.

A clock is set at the boundaries of the model's modules, of the decoder and of the step; everything from one boundary
to the next belongs to one part, so the parts add up to the step. Looking costs time itself (a few microseconds a
boundary), and only modules that are called one by one can be looked at: the split is taken apart from the timing, and
says how long its own passes were.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from dmax.decoding import BlockState, Decoder, StepResult
from dmax.measurement.passes import PassDriver
from dmax.models.moe import SparseMLP, choose_experts
from dmax.models.transformer import BlockDiffusionLM, DecoderLayer

PARTS = ("inputs", "attention", "router", "experts", "shared", "dense", "norms", "head", "rule", "host")
"""``inputs``: the step's plan and input embeddings; ``norms``: what of the model is in no other part (norms, residuals,
rotary angles); ``rule``: the decoder; ``host``: the results' way to the host, and all bookkeeping."""

_WARM_UP = 4
_PAUSE = "pause"
"""Between two steps."""

Mark = float | torch.cuda.Event


class Timeline:
    """Boundaries in the order of time, each with the name of the part that begins there."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Mark]] = []

    def mark(self, part: str) -> None:
        """Let the time from now on belong to ``part``."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((part, event))
        else:
            self._marks.append((part, time.perf_counter()))

    def clear(self) -> None:
        """Forget everything so far."""
        self._marks.clear()

    def steps(self) -> list[dict[str, float]]:
        """Return seconds by part of every step; a step begins where ``inputs`` does and ends at a pause."""
        found: list[dict[str, float]] = []
        for (part, started), (_, ended) in pairwise(self._marks):
            if part == PARTS[0]:
                found.append(dict.fromkeys(PARTS, 0.0))
            if part != _PAUSE:
                found[-1][part] += _seconds(started, ended)
        return found


def _seconds(started: Mark, ended: Mark) -> float:
    if isinstance(started, torch.cuda.Event) and isinstance(ended, torch.cuda.Event):
        ended.synchronize()
        return float(started.elapsed_time(ended)) / 1000
    assert isinstance(started, float) and isinstance(ended, float)
    return ended - started


class _ClockedDecoder:
    """A decoder between two marks."""

    def __init__(self, decoder: Decoder, timeline: Timeline) -> None:
        self.name, self.temperature = decoder.name, decoder.temperature
        self._decoder, self._timeline = decoder, timeline

    def step(self, logits: Tensor, state: BlockState, noise: Tensor | None = None) -> StepResult:
        self._timeline.mark("rule")
        result = self._decoder.step(logits, state, noise)
        self._timeline.mark("host")
        return result


def split_passes(driver: PassDriver, count: int) -> dict[str, float]:
    """Measure the median seconds of every part of a pass, over ``count`` passes.

    A router or a shared expert that runs together with the experts has 0, and its time is in theirs.
    """
    timeline = Timeline(driver.model.device)
    apart = driver.apart(lambda decoder: _ClockedDecoder(decoder, timeline))
    with _clocked(driver.model, timeline):
        apart.run(_WARM_UP)
        timeline.clear()
        steps = apart.run(count, watch=timeline.mark)
    taken = timeline.steps()
    counted = [taken[step.index] for step in steps]
    return {part: statistics.median(times[part] for times in counted) for part in PARTS}


@contextmanager
def _clocked(model: BlockDiffusionLM, timeline: Timeline) -> Iterator[None]:
    """Mark the boundaries of a model's parts."""
    with ExitStack() as stack:
        for module, part, around in _parts(model):
            handles = (
                module.register_forward_pre_hook(lambda *_, part=part: timeline.mark(part)),
                module.register_forward_hook(lambda *_, around=around: timeline.mark(around)),
            )
            for handle in handles:
                stack.callback(handle.remove)
        yield


def _parts(model: BlockDiffusionLM) -> Iterator[tuple[nn.Module, str, str]]:
    """List modules, the part each is, and the part around it."""
    yield model.model, "norms", "host"
    yield model.lm_head, "head", "host"
    for module in model.modules():
        if isinstance(module, DecoderLayer):
            yield module.attention, "attention", "norms"
            if not isinstance(module.mlp, SparseMLP):
                yield module.mlp, "dense", "norms"
        elif isinstance(module, SparseMLP):
            yield module, "experts", "norms"
            yield module.gate, "router", "experts"
            if module.shared_experts is not None:
                yield module.shared_experts, "shared", "experts"


def touched_experts(driver: PassDriver, count: int = 4) -> float | None:
    """Count experts of a layer that get a position of a pass: the mean over sparse layers and ``count`` passes.

    None for a model without experts.
    """
    seen: list[list[int]] = []

    def begin(part: str) -> None:
        if part == PARTS[0]:
            seen.append([])

    def look(module: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(module, SparseMLP)
        if seen:
            router = module.gate
            experts_NA, _ = choose_experts(inputs[0], router.weight, router.expert_bias, router.rule, router.limit)
            seen[-1].append(experts_NA.unique().numel())

    with ExitStack() as stack:
        for module in driver.model.modules():
            if isinstance(module, SparseMLP):
                stack.callback(module.register_forward_pre_hook(look).remove)
        steps = driver.apart().run(count, watch=begin)
    counts = [touched for step in steps for touched in seen[step.index]]
    return statistics.fmean(counts) if counts else None
