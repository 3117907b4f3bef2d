"""What is trained and what is measured, as plain data: rows, sweeps, ablations, and the order in which they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dmax.engine import GenerationParams

Start = Literal["base", "oput", "half"]
"""Of a training: the base model, the first OPUT model when it is finished, or when half of its steps are taken."""
HALF = 0.5
SHARES = (0.05, 0.1, 0.25, HALF)
"""Of a training's steps, after which its weights are measured; the end is measured anyway."""


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    problems: int = 1000
    """That every setting is asked, of each kind."""
    share: float = 1.0
    """Of all steps and problems, to try out a study in short."""

    @property
    def asked(self) -> int:
        """Problems of each kind, at this share."""
        return max(2, round(self.problems * self.share))

    def steps(self, full: float) -> int:
        """Count the steps of a training that has so many at full length."""
        return max(2, round(full * self.share))


@dataclass(frozen=True)
class Training:
    """One way to train further, on the data, with the optimiser and for the compute of the OPUT recipe."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the recipe's objective."""
    start: Start = "base"
    groups: bool = False
    """Whether the objective is that of the recipe for blocks in flight."""


@dataclass(frozen=True)
class Method:
    """A model under a decoder, over its thresholds."""

    name: str
    training: str | None
    """None for the base model."""
    decoder: str
    thresholds: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the decoder."""
    buffer_size: int = 1

    def params(self, threshold: float) -> GenerationParams:
        """Tell how it decodes at one of its thresholds."""
        return GenerationParams(
            decoder=self.decoder,
            threshold=threshold,
            decoder_options=dict(self.options),
            block_length=32,
            buffer_size=self.buffer_size,
        )

    @property
    def folder_name(self) -> str:
        return self.name.replace(" ", "-").replace(",", "").replace(":", "")


def _soft(passes: int, states: str = "soft") -> dict[str, Any]:
    return {"rollout_passes": passes, "rollout_states": states, "rollout_threshold": [0.0, 0.95]}


TRAININGS = (
    Training("oput"),
    Training("soft", _soft(2)),
    Training("multi-tf", start="oput", groups=True),
    Training("dparallel", {"kind": "dparallel"}),
    Training("consistency", {"kind": "consistency"}),
    Training("calibrated", {"kind": "calibrated"}),
    Training("entropy-weighted", {"kind": "entropy-weighted"}),
    Training("masked", {"kind": "masked", "noise": [0.3, 0.8]}),
    Training("uniform", {"kind": "uniform"}),
    Training("half-oput", start="half"),
    Training("half-soft-1", _soft(1), start="half"),
    Training("half-soft-2", _soft(2), start="half"),
    Training("half-soft-4", _soft(4), start="half"),
    Training("half-hard-2", _soft(2, "hard"), start="half"),
    Training("half-soft-2-pred-only", {**_soft(2), "losses": ["pred"]}, start="half"),
    Training("half-pred-only", {"losses": ["pred"]}, start="half"),
    Training("half-mask-only", {"losses": ["mask"]}, start="half"),
    Training("half-sampled", {"rollout": "sampled"}, start="half"),
    Training("half-no-prefixes", {"prefix_share": 0.0}, start="half"),
    Training("half-one-ratio", {"mask_ratio": 0.75}, start="half"),
    Training("half-blocks-of-32", {"block_length": 32}, start="half"),
)
"""dParallel's ``beta`` is its default, 2. Those that branch off differ from ``half-oput`` in one thing, soft rollouts
in all three of their options."""

Run = tuple[str, int]
"""A training and its seed."""
_SECOND_SEEDS: tuple[Run, ...] = (("oput", 2), ("soft", 2))
_BEFORE_SECOND_SEEDS = 4
RUNS: tuple[Run, ...] = (
    *((training.name, 1) for training in TRAININGS[:_BEFORE_SECOND_SEEDS]),
    *_SECOND_SEEDS,
    *((training.name, 1) for training in TRAININGS[_BEFORE_SECOND_SEEDS:]),
)
"""In the order in which they run: what decides open claims first, ablations last."""

CAUTIOUS, DEFAULT, EAGER = 0.95, 0.5, 0.0
"""Thresholds: that of the paper's base, soft-parallel's own, and none at all."""
CURVE_THRESHOLDS = (CAUTIOUS, DEFAULT)
_FALLING = (0.95, 0.8, 0.65, 0.5, 0.3)
_SOFT = (0.95, 0.8, 0.65, 0.5, 0.3, 0.0)
_ENDS = (0.95, 0.5, 0.0)


def _spd(name: str, training: str | None, thresholds: tuple[float, ...] = _SOFT, **more: Any) -> Method:
    return Method(name, training, "soft-parallel", thresholds, **more)


BASE = Method("base", None, "threshold", _FALLING)
HIERARCHICAL = Method("base, hierarchical", None, "hierarchical", (0.95, 0.9, 0.8))
SPD_ALONE = _spd("SPD alone", None)
MASKED = Method("masked SFT", "masked", "threshold", _FALLING)
DPARALLEL = Method("dParallel SFT", "dparallel", "threshold", _FALLING)
UNIFORM = _spd("uniform training", "uniform", options={"soft": False})
OPUT_ALONE = Method("OPUT alone", "oput", "threshold", _FALLING)
DMAX = _spd("DMax", "oput")
TWO_BLOCKS = _spd("DMax, two blocks in flight", "oput", buffer_size=2)
FOUR_BLOCKS = _spd("DMax, four blocks in flight", "oput", buffer_size=4)
MULTI_TF = _spd("MultiTF, two blocks in flight", "multi-tf", buffer_size=2)
SOFT = _spd("soft rollouts", "soft")
SOFT_TWO_BLOCKS = _spd("soft rollouts, two blocks in flight", "soft", buffer_size=2)
CONSISTENCY = _spd("consistency", "consistency")
CALIBRATED = _spd("calibrated", "calibrated")
ENTROPY = _spd("entropy-weighted", "entropy-weighted")

TABLE = (
    BASE,
    HIERARCHICAL,
    MASKED,
    DPARALLEL,
    UNIFORM,
    SPD_ALONE,
    OPUT_ALONE,
    DMAX,
    SOFT,
    CONSISTENCY,
    CALIBRATED,
    ENTROPY,
    TWO_BLOCKS,
    FOUR_BLOCKS,
    SOFT_TWO_BLOCKS,
    _spd("MultiTF, one block", "multi-tf"),
    MULTI_TF,
)
"""One curve each. The paper does not say how it decodes after uniform training; here as after OPUT, without a mix."""

FLATNESS = (DMAX, SOFT, CONSISTENCY, CALIBRATED, ENTROPY)
"""Whose accuracy over thresholds is compared."""
CURVES = (MASKED, DPARALLEL, UNIFORM, OPUT_ALONE, DMAX, TWO_BLOCKS, MULTI_TF, SOFT, CONSISTENCY, CALIBRATED, ENTROPY)
"""Measured at :data:`SHARES` of their training too, the first seed alone."""

PICTURES = {
    "one block at a time": (BASE, MASKED, DPARALLEL, UNIFORM, OPUT_ALONE, DMAX, SOFT),
    "objectives, and blocks in flight": (DMAX, SOFT, CONSISTENCY, CALIBRATED, ENTROPY, TWO_BLOCKS, MULTI_TF),
}
"""What is drawn together: by title, those curves of the table that one would compare."""

HARD = _spd("hard states", "oput", _ENDS, options={"soft": False})
ANYWHERE = _spd("promotion anywhere", "oput", _ENDS, options={"contiguous": False})
DECODING_ABLATIONS = (
    HARD,
    _spd("mix not renormalised", "oput", _ENDS, options={"renormalize": False}),
    ANYWHERE,
    _spd("no re-prediction", "oput", _ENDS, options={"revise": False}),
    _spd("mix of 2 tokens", "oput", _ENDS, options={"top_k": 2}),
    _spd("mix of 4 tokens", "oput", _ENDS, options={"top_k": 4}),
)
"""Each differs from DMax in one thing."""

BRANCH = _spd("OPUT to the end", "half-oput", _ENDS)
BRANCHES = (
    _spd("soft rollouts of 1 pass", "half-soft-1", _ENDS),
    _spd("soft rollouts of 1 to 2 passes", "half-soft-2", _ENDS),
    _spd("soft rollouts of 1 to 4 passes", "half-soft-4", _ENDS),
    _spd("rollouts of 1 to 2 passes, hard states", "half-hard-2", _ENDS),
    _spd("soft rollouts, loss on predictions only", "half-soft-2-pred-only", _ENDS),
    _spd("loss on predictions only", "half-pred-only", _ENDS),
    _spd("loss on masks only", "half-mask-only", _ENDS),
    _spd("sampled rollout", "half-sampled", _ENDS),
    _spd("no prefixes kept", "half-no-prefixes", _ENDS),
    _spd("mask ratio 0.75", "half-one-ratio", _ENDS),
    _spd("blocks of 32 alone", "half-blocks-of-32", _ENDS),
)
"""Each trained from the half-trained OPUT model, as :data:`BRANCH` is."""

METHODS = (*TABLE, *DECODING_ABLATIONS, BRANCH, *BRANCHES)

GSM8K_SETTINGS = ((BASE, CAUTIOUS), (DMAX, DEFAULT), (SOFT, DEFAULT))
"""Also asked real GSM8K, of the first seed."""


def training_of(name: str) -> Training:
    """Find a training by its name."""
    return next(training for training in TRAININGS if training.name == name)


def seeds_of(method: Method) -> tuple[int | None, ...]:
    """List the seeds of a method's training; None for the base model, which has none."""
    return (None,) if method.training is None else tuple(seed for name, seed in RUNS if name == method.training)
