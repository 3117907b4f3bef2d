"""From a recipe to what a run reads: its tokenizer, its examples, the model's configuration, its length in steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dmax.models.checkpoint import load_config, load_tokenizer
from dmax.models.config import ModelConfig
from dmax.models.tokenizer import Tokenizer
from dmax.training.conversations import Conversations, conversation_texts, load_conversations
from dmax.training.data import Mixture, Source
from dmax.training.parallel import barrier, rank
from dmax.training.problem_sources import Arithmetic, GsmSymbolic, ParallelStress, list_problem, word_problem
from dmax.training.recipe import DataSection, HubSection, JsonlSection, Recipe, RecipeError
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


def prepare(recipe: Recipe, tokenizer_folder: Path) -> Prepared:
    """Read what a recipe names, weights excepted.

    Args:
        recipe: as it was loaded.
        tokenizer_folder: where a tokenizer goes that the recipe wants trained, or where it is from before.

    Raises:
        RecipeError: a part cannot be had.
        DataError: neither can data.
    """
    tokenizer = _tokenizer(recipe, tokenizer_folder)
    sources = [_source(section, recipe, tokenizer) for section in recipe.data]
    weights = [section.weight for section in recipe.data]
    counts = {s.name: {"examples": len(s), "dropped": s.dropped} for s in sources if isinstance(s, Conversations)}
    return Prepared(
        recipe.of_length(sum(count["examples"] for count in counts.values())),
        tokenizer,
        _config(recipe, tokenizer),
        Mixture(list(zip(sources, weights, strict=True)), recipe.seed),
        counts,
    )


def _tokenizer(recipe: Recipe, folder: Path) -> Tokenizer:
    section = recipe.tokenizer
    if section.start_from is None:
        assert section.vocab_size is not None
        if rank() == 0 and not (folder / "tokenizer.json").exists():
            train_tokenizer(_texts(recipe.data, section.problems), section.vocab_size, folder)
        barrier()
        tokenizer = Tokenizer.from_folder(folder)
    else:
        tokenizer = load_tokenizer(section.start_from)
    if tokenizer is None:
        raise RecipeError(f"{section.start_from} has no tokenizer.json; name a folder or model that has one.")
    return tokenizer


def _texts(sources: list[DataSection], count: int) -> Iterator[str]:
    """The first rows of a recipe's sources, as they are read and written; drills consist of the same words."""
    for section in sources:
        if isinstance(section, JsonlSection | HubSection):
            yield from conversation_texts(section, count)
            continue
        for index in range(count if section.source != "arithmetic" else 0):
            if section.source == "gsm-symbolic":
                yield "\n".join(word_problem("train", index, 0, section.worked))
            else:
                yield "\n".join(list_problem("train", index, 0))


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
    if section.source == "gsm-symbolic":
        return GsmSymbolic(tokenizer, worked=section.worked)
    if section.source == "arithmetic":
        return Arithmetic(tokenizer, worked=section.worked)
    return ParallelStress(tokenizer)
