"""What a training run is made of: one YAML file, checked before anything is loaded."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class RecipeError(ValueError):
    """A recipe that cannot be run."""


class Section(BaseModel):
    """Base of every section: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """Either ``start_from`` (a checkpoint folder, hub id or embedded model) or ``config`` for fresh weights."""

    start_from: str | None = None
    config: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> ModelSection:
        if (self.start_from is None) == (self.config is None):
            raise ValueError("give either start_from or config")
        return self


class TokenizerSection(Section):
    """``start_from`` takes a tokenizer as it is; ``vocab_size`` trains one on the first ``problems`` of each source."""

    start_from: str | None = None
    vocab_size: int | None = Field(default=None, ge=300)
    problems: int = Field(default=20_000, ge=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizerSection:
        if (self.start_from is None) == (self.vocab_size is None):
            raise ValueError("give either start_from or vocab_size")
        return self


Weight = Annotated[float, Field(gt=0)]
"""A source's share of the mixture."""


class ProblemSection(Section):
    """Endless problems of :mod:`dmax.problems`."""

    source: Literal["everyday", "gsm-symbolic", "arithmetic", "conversations", "other-requests", "parallel-stress"]
    weight: Weight = 1.0
    worked: bool = False
    """Carry equations out in small steps, where there are any."""

    @model_validator(mode="after")
    def _has_equations(self) -> ProblemSection:
        if self.worked and self.source in ("parallel-stress", "other-requests"):
            raise ValueError(f"{self.source} has no equations to carry out; leave worked out")
        return self


class Gsm8kVariantsSection(Section):
    """Variants of GSM8K's training problems (see :mod:`dmax.problems.gsm8k_variants`)."""

    source: Literal["gsm8k-variants"]
    path: str = "openai/gsm8k"
    """A JSONL file with ``question`` and ``answer``, or the id of the data set on the Hugging Face Hub."""
    weight: Weight = 1.0
    worked: bool = False
    """Carry equations out in small steps."""


class JsonlSection(Section):
    """Conversations in a JSONL file, or a folder of them: ``messages``, or ``question`` and ``answer``, a line each."""

    source: Literal["jsonl"]
    path: str
    weight: Weight = 1.0


class HubSection(Section):
    """Conversations in a data set of the Hugging Face Hub, or a folder in the form of one, with the same columns."""

    source: Literal["hub"]
    path: str
    weight: Weight = 1.0
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    """Branch, tag or commit; a commit makes a run repeatable."""


DataSection = Annotated[
    ProblemSection | Gsm8kVariantsSection | JsonlSection | HubSection, Field(discriminator="source")
]


BlockLength = Annotated[int, Field(ge=1)]


class BlockLengthStage(Section):
    """The block length from ``step`` on; several take turns, one a forward pass."""

    step: int = Field(ge=0)
    block_length: BlockLength | Annotated[list[BlockLength], Field(min_length=1)]


class GroupSection(Section):
    """Several noisy blocks in a row, for decoding with blocks in flight (MultiTF, algorithm.md#multitf)."""

    size: int = Field(default=2, ge=2)
    """Most blocks of a group: the ``buffer_size`` to train for."""
    layout: Literal["systematic", "random", "both"] = "systematic"
    """Groups of 2 to ``size`` blocks in every shift, or of random sizes, or as many of these as of those."""
    schedule: Literal["chain", "monotonic", "random"] = "chain"
    """How mask ratios follow one another within a group (see :func:`dmax.training.multi_block.mask_ratios`)."""
    t_low: Share = 0.001
    t_high: Share = 1.0
    rho: Share = 0.01
    """Share of the range from ``t_low`` to ``t_high`` that is cut off at its top."""
    prefix_share: Share = 0.0
    """Probability that a block hides its last positions instead of random ones, as blocks look while decoded."""

    @model_validator(mode="after")
    def _range_rises(self) -> GroupSection:
        if self.t_low > self.t_high:
            raise ValueError("t_low must not be above t_high")
        return self

    @property
    def t_highest(self) -> float:
        """The highest mask ratio drawn (``t_eff``)."""
        return self.t_high - self.rho * (self.t_high - self.t_low)


class FarSmoothingSection(Section):
    """Smoothed labels for masked positions that are not next (see :func:`dmax.training.objectives.far_ahead`)."""

    share: Share
    """Spread evenly over the vocabulary."""
    near: int = Field(ge=0)
    """Masked positions of a block that keep their labels, the first ones."""


class ObjectiveSection(Section):
    """The training objective (algorithm.md#oput).

    ``masked`` draws a mask ratio per block from ``noise``, and hides every token where a block holds no other; the
    others use ``mask_ratio``. A share ``prefix_share`` of the blocks keeps a decoded prefix. With ``group``, which goes
    with any kind, ratios are drawn as it says.
    """

    kind: Literal["masked", "oput", "uniform", "dparallel"]
    block_length: BlockLength | list[BlockLengthStage] = 32
    noise: tuple[Share, Share] = (0.0, 1.0)
    prefix_share: Share = 0.0
    mask_ratio: Share | tuple[Share, Share] = 0.75
    """One for all, or lowest and highest of one drawn per example."""
    losses: Annotated[tuple[Literal["mask", "pred"], ...], Field(min_length=1)] = ("mask", "pred")
    """Of OPUT's ``joint`` form."""
    rollout: Literal["greedy", "sampled"] = "greedy"
    form: Literal["joint", "alternate"] = "joint"
    beta: float = Field(default=2.0, ge=0)
    far_smoothing: FarSmoothingSection | None = None
    """For ``masked``."""
    group: GroupSection | None = None

    @model_validator(mode="after")
    def _one_noise(self) -> ObjectiveSection:
        unused = self.model_fields_set & {"noise", "prefix_share", "mask_ratio"}
        if self.group is not None and unused:
            raise ValueError(f"group draws its own mask ratios; leave out {' and '.join(sorted(unused))}")
        return self

    @model_validator(mode="after")
    def _kind_has_what_is_chosen(self) -> ObjectiveSection:
        if "losses" in self.model_fields_set and (self.kind, self.form) != ("oput", "joint"):
            raise ValueError("losses are chosen for kind oput in the form joint; leave them out")
        if self.far_smoothing is not None and self.kind != "masked":
            raise ValueError("far_smoothing is for kind masked; leave it out")
        return self

    @model_validator(mode="after")
    def _stages_in_order(self) -> ObjectiveSection:
        if isinstance(self.block_length, list):
            steps = [stage.step for stage in self.block_length]
            if not steps or steps[0] != 0 or steps != sorted(set(steps)):
                raise ValueError("block_length stages must start at step 0 and rise")
        for name, value in (("noise", self.noise), ("mask_ratio", self.mask_ratio)):
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{name} must be [lowest, highest]")
        return self

    @property
    def rows_per_example(self) -> int:
        """The alternate form of OPUT reads every example twice, once for each of its losses."""
        return 2 if self.kind == "oput" and self.form == "alternate" else 1

    def block_lengths_at(self, step: int) -> list[int]:
        """The block lengths in force at ``step``, which its forward passes take in turn."""
        if isinstance(self.block_length, int):
            return [self.block_length]
        lengths = [stage.block_length for stage in self.block_length if stage.step <= step][-1]
        return [lengths] if isinstance(lengths, int) else lengths


class OptimizerSection(Section):
    """Muon for the matrices of the layers where ``muon_lr`` is above 0, AdamW for the rest."""

    adamw_lr: float = Field(default=2e-6, gt=0)
    muon_lr: float = Field(default=0.0, ge=0)
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    warmup: Annotated[int, Field(ge=0)] | Share = 0
    """Steps of linear warm-up: a whole number, or a share of the run such as 0.03."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay: Share = 0.3
    router_bias_rate: float = Field(default=0.0, ge=0)
    """Step by which a router's expert bias moves against an expert's overload; 0 freezes it."""

    def warmup_steps(self, steps: int) -> int:
        """Steps of warm-up in a run of ``steps``."""
        return self.warmup if isinstance(self.warmup, int) else round(self.warmup * steps)


class TrainSection(Section):
    """Length, batch, precision, checkpoints."""

    steps: int = Field(default=0, ge=0)
    """Length of the run, where ``epochs`` does not give it."""
    epochs: float | None = Field(default=None, gt=0)
    """Length of the run in passes over its one source of conversations."""
    rows: int = Field(ge=1)
    """Sequences in a forward pass."""
    accumulation: int = Field(default=1, ge=1)
    """Forward passes in an optimiser step, shared out among the processes: their number changes no result."""
    context: int = Field(default=2048, ge=1)
    """Longest sequence, in tokens; longer examples are dropped and counted."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    compile: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes the GPU where there is one."""
    workers: int = Field(default=0, ge=0)
    """Processes that prepare batches ahead; 0 prepares them in the training process."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    validate_every: int = Field(default=500, ge=1)
    """Steps between validations."""
    validation_rows: int = Field(default=64, ge=0)
    generate_rows: int = Field(default=0, ge=0)
    """Validation problems answered by generation (needs the engine; ``dmax train`` provides it)."""
    generate_with: str = "threshold"
    """The decoder that answers them."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainSection:
        if (self.steps > 0) == (self.epochs is not None):
            raise ValueError("give either steps, at least 1, or epochs")
        return self


TrackerName = Literal["tensorboard", "wandb", "trackio"]


class TrackingSection(Section):
    """Where the metrics go besides ``metrics.jsonl``."""

    trackers: list[TrackerName] = ["tensorboard"]
    project: str = "dmax"
    """For wandb and trackio."""


class LoraSection(Section):
    """Train low-rank adapters instead of the weights (see :mod:`dmax.training.adapters`)."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    """An adapter's output is scaled by ``alpha / rank``."""
    attention: bool = True
    feed_forward: bool = True
    """Experts, shared experts and dense layers."""

    @model_validator(mode="after")
    def _somewhere(self) -> LoraSection:
        if not (self.attention or self.feed_forward):
            raise ValueError("adapters need a place: attention, feed_forward or both")
        return self


class ParallelSection(Section):
    """How the processes that ``torchrun`` starts share the model; changes no result."""

    replicas: int = Field(default=1, ge=1)
    """Copies of the weights, each cut over its equal share of the processes; 1 cuts them over all."""
    cpu_offload: bool = False
    """Keep weights, gradients and optimiser state in the CPU's memory."""
    recompute: bool = False
    """Gradient checkpointing: keep only the inputs of layers for the backward pass, and compute the rest again."""
    asynchronous_checkpoints: bool = False
    """Write checkpoints while training goes on."""


class Recipe(Section):
    """One run."""

    name: str
    seed: int
    model: ModelSection
    tokenizer: TokenizerSection
    data: list[DataSection] = Field(min_length=1)
    objective: ObjectiveSection
    optimizer: OptimizerSection = OptimizerSection()
    train: TrainSection
    lora: LoraSection | None = None
    parallel: ParallelSection = ParallelSection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _adapters_have_a_model(self) -> Recipe:
        if self.lora is not None and self.model.start_from is None:
            raise ValueError("lora adapts a trained model: give model.start_from")
        if self.lora is not None and self.train.compile:
            raise ValueError("train.compile does not go with lora, whose experts are put together in every pass")
        return self

    @model_validator(mode="after")
    def _epochs_have_an_end(self) -> Recipe:
        finite = len(self.data) == 1 and isinstance(self.data[0], JsonlSection | HubSection)
        if self.train.epochs is not None and not finite:
            raise ValueError("train.epochs needs data of one source, jsonl or hub: give train.steps instead")
        return self

    def of_length(self, examples: int) -> Recipe:
        """The same recipe with its epochs of so many examples, if it has any, as steps."""
        if self.train.epochs is None:
            return self
        rows = self.train.epochs * examples * self.objective.rows_per_example
        steps = max(1, round(rows / (self.train.rows * self.train.accumulation)))
        train = self.train.model_copy(update={"steps": steps, "epochs": None})
        return self.model_copy(update={"train": train})


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: the file is missing, not YAML, or has a key or value that no recipe has; the message names the
            first such key and the nearest valid one.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe at {path}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold a mapping of recipe sections ({', '.join(Recipe.model_fields)}).")
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{path}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    errors = error.errors()
    # A misspelt key is also a missing one: the spelling is what helps.
    first = next((found for found in errors if found["type"] == "extra_forbidden"), errors[0])
    # A union's errors carry its tag behind the list index: "data.0.jsonl.path" stands in the file as data.0.path.
    where = ".".join(str(part) for place, part in enumerate(first["loc"]) if (first["loc"][0], place) != ("data", 2))
    where = where or "recipe"
    if first["type"] != "extra_forbidden":
        return f"{where}: {first['msg']}."
    key = str(first["loc"][-1])
    known = _fields_at(first["loc"][:-1])
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"there is no recipe key {where!r}; did you mean {nearest[0]!r}? Valid here: {', '.join(known)}."


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the section at a location inside the recipe."""
    sections: dict[str, type[BaseModel]] = {
        "model": ModelSection,
        "tokenizer": TokenizerSection,
        "objective": ObjectiveSection,
        "optimizer": OptimizerSection,
        "train": TrainSection,
        "lora": LoraSection,
        "parallel": ParallelSection,
        "tracking": TrackingSection,
    }
    if not location:
        return list(Recipe.model_fields)
    if location[0] == "data":
        files: dict[str, type[BaseModel]] = {
            "jsonl": JsonlSection,
            "hub": HubSection,
            "gsm8k-variants": Gsm8kVariantsSection,
        }
        return list(files.get(str(location[2]), ProblemSection).model_fields)
    nested: dict[str, type[BaseModel]] = {"block_length": BlockLengthStage, "group": GroupSection}
    section = next((nested[str(key)] for key in location if key in nested), sections[str(location[0])])
    return list(section.model_fields)
