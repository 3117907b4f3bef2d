"""From a recipe to what a run reads: its tokenizer, its examples, the model's configuration, its length in steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dmax.models.checkpoint import load_config, load_tokenizer
from dmax.models.config import ModelConfig
from dmax.models.tokenizer import Tokenizer
from dmax.problems.gsm8k_variants import Gsm8kVariants
from dmax.training.conversations import Conversations, conversation_texts, load_conversations, read_rows
from dmax.training.data import Mixture, Source
from dmax.training.parallel import barrier, rank
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
from dmax.training.recipe import DataSection, Gsm8kVariantsSection, HubSection, JsonlSection, Recipe, RecipeError
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
    """Of every finite source, by its name: ``examples`` kept and rows ``dropped``."""


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
    sections = [_found(section, local or {}) for section in recipe.data]
    tokenizer = _tokenizer(recipe, sections, tokenizer_folder)
    sources = [_source(section, recipe, tokenizer) for section in sections]
    weights = [section.weight for section in recipe.data]
    counts = {s.name: {"examples": len(s), "dropped": s.dropped} for s in sources if isinstance(s, Conversations)}
    return Prepared(
        recipe.of_length(sum(count["examples"] for count in counts.values())),
        tokenizer,
        _config(recipe, tokenizer),
        Mixture(list(zip(sources, weights, strict=True)), recipe.seed),
        counts,
    )


def _found(section: DataSection, local: Mapping[str, str]) -> DataSection:
    """The section with its path as it is here."""
    if isinstance(section, Gsm8kVariantsSection | HubSection) and section.path in local:
        return section.model_copy(update={"path": local[section.path]})
    return section


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
    """The first rows of a recipe's sources, as they are read and written; the others consist of the same words."""
    for section in sources:
        if isinstance(section, JsonlSection | HubSection):
            yield from conversation_texts(section, count)
        elif isinstance(section, Gsm8kVariantsSection):
            variants = gsm8k_variants(section.path)
            for index in range(min(count, variants.total)):
                row = variants.problem("train", index)
                yield "\n".join((row["question"], row["solution"]))
        elif section.source == "everyday":
            yield from ("\n".join(everyday_text("train", i, 0, section.worked)) for i in range(count))
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
        return load_conversations(section, tokenizer, recipe.train.context, recipe.seed)
    if isinstance(section, Gsm8kVariantsSection):
        return Gsm8kSource(tokenizer, gsm8k_variants(section.path), worked=section.worked)
    match section.source:
        case "everyday":
            return Everyday(tokenizer, worked=section.worked)
        case "gsm-symbolic":
            return GsmSymbolic(tokenizer, worked=section.worked)
        case "arithmetic":
            return Arithmetic(tokenizer, worked=section.worked)
        case "conversations":
            return ProblemConversations(tokenizer, worked=section.worked)
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
    if Path(path).expanduser().suffix == ".jsonl":
        rows = read_rows(JsonlSection(source="jsonl", path=path))
    else:
        rows = read_rows(HubSection(source="hub", path=path, subset="main"))
    return Gsm8kVariants(rows.to_list())
