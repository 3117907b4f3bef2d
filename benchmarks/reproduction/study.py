"""What is trained and what is measured, as plain data: the methods of the paper's table, its sweeps and ablations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dmax.engine import GenerationParams


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    prompts: int
    """Prompts whose answers by the base model are the training data."""
    problems: int
    """Fresh problems that every setting answers."""
    seeds: tuple[int, ...]
    """Of training; ablations are trained with the first alone."""
    steps: int | None = None
    """Of every training; None for as many as the recipe has."""
    accumulation: int | None = None
    """Passes of a step; None for as many as the recipe has."""


NANO = Scale(prompts=2400, problems=1000, seeds=(1, 2), steps=300, accumulation=2)


@dataclass(frozen=True)
class Training:
    """One way to train the base model further, on the same data for as many steps."""

    name: str
    objective: Mapping[str, Any]
    """What differs from the recipe's objective; a new ``kind`` starts from the defaults of the recipe format."""
    every_seed: bool = True


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
    block_length: int = 32
    buffer_size: int = 1
    embedded: str | None = None
    """A model of the package that is measured in place of one trained here."""

    def params(self, threshold: float) -> GenerationParams:
        """Tell how it decodes at one of its thresholds."""
        return GenerationParams(
            decoder=self.decoder,
            threshold=threshold,
            decoder_options=dict(self.options),
            block_length=self.block_length,
            buffer_size=self.buffer_size,
        )

    @property
    def folder_name(self) -> str:
        return self.name.replace(" ", "-").replace(",", "")


_SFT = {"block_length": 32, "mask_ratio": 0.75}
_OPUT = {**_SFT, "prefix_share": 0.0}
"""As published, whatever the recipe says."""
_GROUPS = {"kind": "oput", "block_length": 32}
TRAININGS = (
    Training("oput", _OPUT),
    Training("multi-tf", {**_GROUPS, "group": {"size": 2}}),
    Training("multi-tf-random-cuts", {**_GROUPS, "group": {"size": 2, "layout": "random"}}, every_seed=False),
    Training("multi-tf-monotonic", {**_GROUPS, "group": {"size": 2, "schedule": "monotonic"}}, every_seed=False),
    Training("multi-tf-independent", {**_GROUPS, "group": {"size": 2, "schedule": "random"}}, every_seed=False),
    Training("masked", {"kind": "masked", "block_length": 32, "noise": [0.3, 0.8]}),
    Training("uniform", {"kind": "uniform", **_SFT}),
    Training("dparallel", {"kind": "dparallel", **_SFT}),
    Training("oput-sampled", {**_OPUT, "rollout": "sampled"}, every_seed=False),
    Training("oput-interval", {**_OPUT, "mask_ratio": [0.5, 1.0]}, every_seed=False),
    Training("oput-prefix", {**_OPUT, "prefix_share": 0.6}, every_seed=False),
    Training("oput-mask-only", {**_OPUT, "losses": ["mask"]}, every_seed=False),
    Training("oput-pred-only", {**_OPUT, "losses": ["pred"]}, every_seed=False),
    Training("oput-block-8", {**_OPUT, "block_length": 8}, every_seed=False),
    Training("oput-block-16", {**_OPUT, "block_length": 16}, every_seed=False),
)
"""In the order of their training. dParallel's ``beta`` is its default, 2."""

CAUTIOUS, DEFAULT, EAGER = 0.95, 0.5, 0.0
"""Thresholds: that of the paper's base, soft-parallel's own, and none at all."""
_FALLING = (0.95, 0.8, 0.65, 0.5, 0.3)
_SOFT = (0.95, 0.8, 0.5, 0.0)
_ENDS = (0.5, 0.0)

BASE = Method("base", None, "threshold", _FALLING)
HIERARCHICAL = Method("base, hierarchical", None, "hierarchical", (0.95, 0.9, 0.8))
JOINT = Method("base, joint-threshold", None, "joint-threshold", (0.95, 0.9, 0.8))
MASKED = Method("masked SFT", "masked", "threshold", _FALLING)
UNIFORM = Method("uniform training", "uniform", "soft-parallel", _SOFT, {"soft": False})
DPARALLEL = Method("dParallel SFT", "dparallel", "threshold", _FALLING)
OPUT_ALONE = Method("OPUT alone", "oput", "threshold", _FALLING)
SPD_ALONE = Method("SPD alone", None, "soft-parallel", _SOFT)
DMAX = Method("DMax", "oput", "soft-parallel", _SOFT)
TWO_BLOCKS = Method("DMax, two blocks in flight", "oput", "soft-parallel", _SOFT, buffer_size=2)
FOUR_BLOCKS = Method("DMax, four blocks in flight", "oput", "soft-parallel", _SOFT, buffer_size=4)
MULTI_TF = Method("MultiTF, two blocks in flight", "multi-tf", "soft-parallel", _SOFT, buffer_size=2)
NANO_ALONE = Method("nano", None, "soft-parallel", _SOFT, embedded="nano")
NANO_TWO_BLOCKS = Method("nano, two blocks in flight", None, "soft-parallel", _SOFT, buffer_size=2, embedded="nano")

TABLE = (
    BASE,
    HIERARCHICAL,
    JOINT,
    MASKED,
    DPARALLEL,
    UNIFORM,
    SPD_ALONE,
    OPUT_ALONE,
    DMAX,
    TWO_BLOCKS,
    FOUR_BLOCKS,
    Method("MultiTF, one block", "multi-tf", "soft-parallel", _SOFT),
    MULTI_TF,
    NANO_ALONE,
    NANO_TWO_BLOCKS,
)
"""One curve each. The paper does not say how it decodes after uniform training; here as after OPUT, without a mix."""

PICTURES = {
    "one block at a time, by training": (BASE, MASKED, DPARALLEL, UNIFORM, OPUT_ALONE, DMAX, NANO_ALONE),
    "other decoders, and blocks in flight": (
        BASE, HIERARCHICAL, JOINT, SPD_ALONE, DMAX, TWO_BLOCKS, FOUR_BLOCKS, MULTI_TF, NANO_TWO_BLOCKS,
    ),
}  # fmt: skip
"""What is drawn together: by title, those curves of the table that one would compare."""

HARD = Method("hard states", "oput", "soft-parallel", _ENDS, {"soft": False})
NANO_HARD = Method("nano, hard states", None, "soft-parallel", _ENDS, {"soft": False}, embedded="nano")
ANYWHERE = Method("promotion anywhere", "oput", "soft-parallel", _ENDS, {"contiguous": False})
ABLATIONS = (
    HARD,
    Method("mix not renormalised", "oput", "soft-parallel", _ENDS, {"renormalize": False}),
    ANYWHERE,
    Method("no re-prediction", "oput", "soft-parallel", _ENDS, {"revise": False}),
    Method("mix of 2 tokens", "oput", "soft-parallel", _ENDS, {"top_k": 2}),
    Method("mix of 4 tokens", "oput", "soft-parallel", _ENDS, {"top_k": 4}),
    Method("sampled rollout", "oput-sampled", "soft-parallel", _ENDS),
    Method("mask ratio 0.5 to 1", "oput-interval", "soft-parallel", _ENDS),
    Method("prefixes kept", "oput-prefix", "soft-parallel", _ENDS),
    Method("loss on masks only", "oput-mask-only", "soft-parallel", _ENDS),
    Method("loss on predictions only", "oput-pred-only", "soft-parallel", _ENDS),
    Method("blocks of 8", "oput-block-8", "soft-parallel", _ENDS, block_length=8),
    Method("blocks of 16", "oput-block-16", "soft-parallel", _ENDS, block_length=16),
)
"""Each differs from DMax in one thing."""

GROUP_ABLATIONS = (
    Method("random cuts", "multi-tf-random-cuts", "soft-parallel", _ENDS, buffer_size=2),
    Method("monotonic mask ratios", "multi-tf-monotonic", "soft-parallel", _ENDS, buffer_size=2),
    Method("independent mask ratios", "multi-tf-independent", "soft-parallel", _ENDS, buffer_size=2),
)
"""Each differs from MultiTF in one thing."""

METHODS = (*TABLE, *ABLATIONS, *GROUP_ABLATIONS, NANO_HARD)


@dataclass(frozen=True)
class Repaired:
    """The methods of one model that OPUT has trained."""

    one_block: Method
    two_blocks: Method
    hard: Method


TRAINED = Repaired(DMAX, TWO_BLOCKS, HARD)
"""From the base, for as many steps as its baselines."""
EMBEDDED = Repaired(NANO_ALONE, NANO_TWO_BLOCKS, NANO_HARD)
"""The package's own, which was trained for much longer: what the shortness of the trainings here explains."""

GSM8K_METHODS = (BASE, DMAX)
"""Also asked real GSM8K, at the thresholds below."""
GSM8K_THRESHOLDS = {BASE.name: CAUTIOUS, DMAX.name: DEFAULT}
