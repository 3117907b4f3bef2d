"""What a training run is made of: one YAML file, checked before anything is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator

from dmax.problems.everyday import themes
from dmax.training.data_sections import FileSection, HubSection, JsonlSection, Weight
from dmax.training.objectives.options import CommonOptions
from dmax.training.objectives.registry import get_objective, parse_section, section_of
from dmax.training.optim import OptimizerSection
from dmax.training.problem_sources.registry import PROBLEM_SOURCES, sources_with
from dmax.training.section import RecipeError, Section, Share


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


_DRAWN = tuple(name for name, kind in PROBLEM_SOURCES.items() if kind.section is None)
_UNREAD = {
    "worked": "{source} has no equations to carry out; leave worked out",
    "themes": "{source} has no themes; leave them out",
    "reworded": "{source} is not reworded, {others} are; leave reworded out",
}
"""What is said where a source is given an option of most problems that it does not read."""


class ProblemSection(Section):
    """Endless problems of :mod:`dmax.problems`."""

    source: Literal[_DRAWN]  # type: ignore[valid-type]
    weight: Weight = 1.0
    worked: bool = False
    """Carry equations out in small steps, where there are any."""
    themes: tuple[str, ...] = ()
    """Of ``everyday`` and ``conversations``: the themes of everyday problems, all of them if none is named."""
    reworded: float = Field(default=0.0, ge=0, le=1)
    """Of ``everyday`` and ``conversations``: the share of everyday problems that are told in other words."""

    @model_validator(mode="after")
    def _are_read(self) -> ProblemSection:
        for key, refusal in _UNREAD.items():
            if getattr(self, key) and key not in PROBLEM_SOURCES[self.source].keys:
                raise ValueError(refusal.format(source=self.source, others=" and ".join(sources_with(key))))
        unknown = next((theme for theme in self.themes if theme not in themes()), None)
        if unknown is not None:
            raise ValueError(f"there is no theme {unknown!r} of everyday problems; take some of {', '.join(themes())}")
        return self


_SECTIONS: dict[str, type[Section]] = {
    **{name: kind.section or ProblemSection for name, kind in PROBLEM_SOURCES.items()},
    "jsonl": JsonlSection,
    "hub": HubSection,
}
if TYPE_CHECKING:
    DataSection = ProblemSection | FileSection
else:
    DataSection = Annotated[Union[tuple(dict.fromkeys(_SECTIONS.values()))], Field(discriminator="source")]  # noqa: UP007


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
    snapshots: tuple[Share, ...] = ()
    """Shares of the run after which the weights alone are kept, in ``snapshots/``."""
    validate_every: int = Field(default=500, ge=1)
    """Steps between validations."""
    validation_rows: int = Field(default=64, ge=0)
    validation_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of every ``jsonl`` or ``hub`` source that is kept from training and validated on; 0 takes gsm-symbolic."""
    generate_rows: int = Field(default=0, ge=0)
    """Problems, or rows of ``validation_share``, answered by generation (by the engine, which ``dmax train`` has)."""
    generate_with: str = "threshold"
    """The decoder that answers them."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainSection:
        if (self.steps > 0) == (self.epochs is not None):
            raise ValueError("give either steps, at least 1, or epochs")
        return self

    def snapshot_steps(self) -> list[int]:
        """List the steps after which weights are kept, rising."""
        return sorted({max(1, round(share * self.steps)) for share in self.snapshots})


TrackerName = Literal["tensorboard", "wandb", "trackio"]


class TrackingSection(Section):
    """Where the metrics go besides ``metrics.jsonl``."""

    trackers: list[TrackerName] = Field(default=["tensorboard"])
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
    objective: Annotated[SerializeAsAny[CommonOptions], BeforeValidator(parse_section)]
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
        if self.lora is not None and self.train.snapshots:
            raise ValueError("train.snapshots are of whole weights, which lora does not train; leave them out")
        return self

    @model_validator(mode="after")
    def _there_are_rows_to_keep_back(self) -> Recipe:
        if self.train.validation_share and not any(isinstance(s, JsonlSection | HubSection) for s in self.data):
            raise ValueError("train.validation_share needs data of a jsonl or hub source; leave it out")
        return self

    @model_validator(mode="after")
    def _epochs_have_an_end(self) -> Recipe:
        finite = len(self.data) == 1 and isinstance(self.data[0], JsonlSection | HubSection)
        if self.train.epochs is not None and not finite:
            raise ValueError("train.epochs needs data of one source, jsonl or hub: give train.steps instead")
        return self

    def of_length(self, examples: int) -> Recipe:
        """Return the same recipe with its epochs of so many examples, if it has any, as steps."""
        if self.train.epochs is None:
            return self
        rows = self.train.epochs * examples * get_objective(self.objective).rows_per_example
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
        raise RecipeError(f"{path}: {_explain(error, values)}") from error


def _explain(error: ValidationError, values: Mapping[str, Any]) -> str:
    errors = error.errors()
    # A misspelt key is also a missing one: the spelling is what helps.
    first = next((found for found in errors if found["type"] == "extra_forbidden"), errors[0])
    # A union's errors carry its tag behind the list index: "data.0.jsonl.path" stands in the file as data.0.path.
    where = ".".join(str(part) for place, part in enumerate(first["loc"]) if (first["loc"][0], place) != ("data", 2))
    where = where or "recipe"
    if first["type"] != "extra_forbidden":
        return f"{where}: {first['msg']}."
    key = str(first["loc"][-1])
    known = _fields_at(first["loc"][:-1], values)
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"there is no recipe key {where!r}; did you mean {nearest[0]!r}? Valid here: {', '.join(known)}."


def _fields_at(location: tuple[int | str, ...], values: Mapping[str, Any]) -> list[str]:
    """List names of the fields of the section at a location inside the recipe."""
    section: type[BaseModel] = Recipe
    for place, part in enumerate(location):
        if part == "objective":
            section = section_of(values["objective"].get("kind"))
        elif part == "data":
            section = _SECTIONS.get(str(location[place + 2]), ProblemSection)
        elif part in section.model_fields:
            section = next(_sections_in(section.model_fields[str(part)].annotation), section)
    return list(section.model_fields)


def _sections_in(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the sections that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)
