"""From a recipe to what a run reads: its tokenizer, its examples, the model's configuration, its length in steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dmax.models.checkpoint import load_config, load_tokenizer
from dmax.models.config import ModelConfig
from dmax.models.tokenizer import Tokenizer
from dmax.problems.gsm8k_variants import Gsm8kVariants
from dmax.training.conversations import LINES, Conversations, conversation_texts, load_conversations, read_rows
from dmax.training.data import Example, Mixture, Source
from dmax.training.distributed import barrier, rank
from dmax.training.problem_sources import (
    Arithmetic,
    Everyday,
    Gsm8kSource,
    GsmSymbolic,
    OtherRequests,
    ParallelStress,
    ProblemConversations,
    everyday_text,
    list_problem,
    word_problem,
)
from dmax.training.recipe import DataSection, FileSection, Gsm8kVariantsSection, HubSection, JsonlSection, Recipe
from dmax.training.section import RecipeError
from dmax.training.tokenizer import train_tokenizer


@dataclass(frozen=True)
class Prepared:
    """What a recipe resolves to without a weight."""

    recipe: Recipe
    """With its length in steps."""
    tokenizer: Tokenizer
    config: ModelConfig
    source: Source
    counts: dict[str, dict[str, int]]
    """Of every finite source, by its name: ``examples`` kept, rows ``dropped``, ``empty``, for ``validation``."""
    fingerprints: dict[str, str]
    """Of every source that is read, by its key in the recipe."""
    held_out: HeldOut | None
    """Rows for validation; None where the recipe keeps none."""


def prepare(recipe: Recipe, tokenizer_folder: Path, local: Mapping[str, str] | None = None) -> Prepared:
    """Read what a recipe names, weights excepted.

    Args:
        recipe: as it was loaded.
        tokenizer_folder: where a tokenizer goes that the recipe wants trained, or where it is from before.
        local: files or folders to read in place of the data sets whose ids they stand under.

    Raises:
        RecipeError: a part cannot be had.
        DataError: neither can data.
    """
    sections = [s.found_in(local or {}) if isinstance(s, FileSection) else s for s in recipe.data]
    tokenizer = _tokenizer(recipe, sections, tokenizer_folder)
    sources = [_source(section, recipe, tokenizer) for section in sections]
    weights = [section.weight for section in recipe.data]
    finite = [s for s in sources if isinstance(s, Conversations)]
    counts = {
        s.name: {"examples": len(s), "dropped": s.dropped, "empty": s.empty, "validation": s.held_out} for s in finite
    }
    config = _config(recipe, tokenizer)
    check_agreement(tokenizer, config)
    check_experts(recipe, config)
    return Prepared(
        recipe.of_length(sum(count["examples"] for count in counts.values())),
        tokenizer,
        config,
        Mixture(list(zip(sources, weights, strict=True)), recipe.seed),
        counts,
        {
            f"data.{place} ({section.source})": source.fingerprint()
            for place, (section, source) in enumerate(zip(recipe.data, sources, strict=True))
            if isinstance(source, Conversations | Gsm8kSource)
        },
        HeldOut(finite) if recipe.train.validation_share else None,
    )


class HeldOut:
    """The rows that several sources keep for validation, one source after the other, and from the start again."""

    def __init__(self, sources: Sequence[Conversations]) -> None:
        self._places = [(source, index) for source in sources for index in range(source.held_out)]

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._places)

    def example(self, index: int) -> Example:
        source, place = self._places[index % len(self._places)]
        return source.held_out_example(place)


def check_agreement(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Refuse a tokenizer that is not the model's.

    Raises:
        RecipeError: the model does not know a token, or another one ends an answer or hides a token.
    """
    largest = max(tokenizer.pipeline.get_vocab().values())
    if largest >= config.vocab_size:
        raise RecipeError(
            f"the tokenizer has token ids up to {largest}, the model only {config.vocab_size} tokens: take the model's "
            "own tokenizer."
        )
    for role, known in (("eos_token", config.eos_token_id), ("mask_token", config.mask_token_id)):
        said = tokenizer.special_id(role)
        if said is not None and said != known:
            raise RecipeError(
                f"the tokenizer's {role}_id is {said}, the model's {known}: take the model's own tokenizer, or mend "
                "one of their settings."
            )


def check_experts(recipe: Recipe, config: ModelConfig) -> None:
    """Refuse what a model's routers cannot be trained with.

    Raises:
        RecipeError: blocks are not those that experts are chosen for, or routers have no bias that would be kept.
    """
    if config.num_experts is None:
        return
    asked, routed = recipe.objective.block_length, config.routing_block_length
    steps = [0] if isinstance(asked, int) else [stage.step for stage in asked]
    lengths = {length for step in steps for length in recipe.objective.block_lengths_at(step)}
    if config.expert_capacity and any(length % routed for length in lengths):
        raise RecipeError(
            f"objective.block_length is {', '.join(map(str, sorted(lengths)))}: this model chooses experts for blocks "
            f"of {routed}, so give multiples of that."
        )
    if recipe.optimizer.router_bias_rate and not config.moe_router_enable_expert_bias:
        raise RecipeError(
            f"optimizer.router_bias_rate is {recipe.optimizer.router_bias_rate}: this model's routers have no bias; "
            "leave the rate at 0."
        )


def _tokenizer(recipe: Recipe, sections: list[DataSection], folder: Path) -> Tokenizer:
    section = recipe.tokenizer
    if section.start_from is None:
        assert section.vocab_size is not None
        if rank() == 0 and not (folder / "tokenizer.json").exists():
            train_tokenizer(_texts(sections, section.problems), section.vocab_size, folder)
        barrier()
        tokenizer = Tokenizer.from_folder(folder)
    else:
        tokenizer = load_tokenizer(section.start_from)
    if tokenizer is None:
        raise RecipeError(f"{section.start_from} has no tokenizer.json; name a folder or model that has one.")
    return tokenizer


def _texts(sources: list[DataSection], count: int) -> Iterator[str]:
    """Yield the first rows of a recipe's sources, as they are read and written; the others have the same words."""
    for section in sources:
        if isinstance(section, JsonlSection | HubSection):
            yield from conversation_texts(section, count)
        elif isinstance(section, Gsm8kVariantsSection):
            variants = gsm8k_variants(section.path)
            for index in range(min(count, variants.total)):
                row = variants.problem("train", index)
                yield "\n".join((row["question"], row["solution"]))
        elif section.source == "everyday":
            chosen = section.themes, section.reworded
            yield from ("\n".join(everyday_text("train", i, 0, section.worked, *chosen)) for i in range(count))
        elif section.source == "gsm-symbolic":
            yield from ("\n".join(word_problem("train", i, 0, section.worked)) for i in range(count))
        elif section.source == "parallel-stress":
            yield from ("\n".join(list_problem("train", i, 0)) for i in range(count))


def _config(recipe: Recipe, tokenizer: Tokenizer) -> ModelConfig:
    section = recipe.model
    if section.start_from is not None:
        return load_config(section.start_from)
    eos = tokenizer.eos_token_id
    ids = {"mask_token_id": tokenizer.mask_token_id, "eos_token_id": eos, "pad_token_id": eos}
    return ModelConfig.from_dict({"vocab_size": tokenizer.vocab_size, **ids, **(section.config or {})})


def _source(section: DataSection, recipe: Recipe, tokenizer: Tokenizer) -> Source:
    if isinstance(section, JsonlSection | HubSection):
        return load_conversations(section, tokenizer, recipe.train.context, recipe.seed, recipe.train.validation_share)
    if isinstance(section, Gsm8kVariantsSection):
        return Gsm8kSource(tokenizer, variants=gsm8k_variants(section.path), worked=section.worked)
    match section.source:
        case "everyday":
            return Everyday(tokenizer, worked=section.worked, themes=section.themes, reworded=section.reworded)
        case "gsm-symbolic":
            return GsmSymbolic(tokenizer, worked=section.worked)
        case "arithmetic":
            return Arithmetic(tokenizer, worked=section.worked)
        case "conversations":
            return ProblemConversations(
                tokenizer, worked=section.worked, themes=section.themes, reworded=section.reworded
            )
        case "other-requests":
            return OtherRequests(tokenizer)
        case "parallel-stress":
            return ParallelStress(tokenizer)


@cache
def gsm8k_variants(path: str) -> Gsm8kVariants:
    """Read GSM8K's training set and find the problems that can be drawn anew.

    Args:
        path: a JSONL file, or the id of the data set on the Hugging Face Hub.

    Raises:
        DataError: it cannot be had or read.
    """
    if LINES.search(path):
        rows = read_rows(JsonlSection(source="jsonl", path=path))
    else:
        rows = read_rows(HubSection(source="hub", path=path, subset="main"))
    return Gsm8kVariants(rows.to_list())
