"""The models that ship in the package."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

import dmax
from dmax import LLM, GenerationOutput, GenerationParams
from dmax.evaluation.word_problems import answer, fresh_problems, score
from dmax.models.checkpoint import load_config, resolve

QUESTIONS = (
    "A cup of tea is 7 ounces of tea. Liam drinks 6 cups of tea. If tea has 3 calories per ounce how many calories did "
    "he consume?",
    "There are 125 fourth-graders at Oak School. 64 of them are girls. On Monday, 3 fourth-grade girls and 5 "
    "fourth-grade boys were absent. How many fourth grade boys were at Oak School on Monday?",
    "Ethan gets 140 emails a day. 30% of those emails don't require any response. Ethan responds to the rest of them. "
    "How many emails does Ethan respond to in a 5 day work week?",
)


@cache
def answers(model: str, decoder: str) -> list[GenerationOutput]:
    llm = LLM(model)
    return llm.generate([LLM.chat_prompt(question) for question in QUESTIONS], GenerationParams(decoder=decoder))


def test_both_are_mixtures_of_experts_and_small_enough_to_ship() -> None:
    for name in ("nano", "nano-base"):
        config = load_config(name)
        assert config.num_experts is not None and config.num_shared_experts and config.n_group > config.topk_group
    assets = Path(dmax.__file__).parent / "assets"
    assert sum(file.stat().st_size for file in assets.rglob("*.safetensors")) <= 24 * 2**20


def test_they_share_a_tokenizer() -> None:
    ours, theirs = ((resolve(name) / "tokenizer.json").read_bytes() for name in ("nano", "nano-base"))
    assert ours == theirs


@pytest.mark.parametrize(("model", "decoder"), [("nano", "soft-parallel"), ("nano-base", "threshold")])
def test_answers_are_finished_solutions(model: str, decoder: str) -> None:
    for output in answers(model, decoder):
        assert output.finish_reason == "stop"
        assert output.text is not None and "####" in output.text


def test_nano_works_its_sums_out() -> None:
    """It is right in five of six fresh problems; three of four of these sixteen leave room for the draw."""
    pytest.importorskip("reasoning_gym")
    rows = fresh_problems("validation", 16, seed=11)
    assert score(rows, answer(LLM("nano"), rows, GenerationParams())).accuracy >= 0.75


def test_soft_parallel_decoding_takes_fewer_forwards_than_the_base() -> None:
    ours = sum(output.nfe for output in answers("nano", "soft-parallel"))
    base = sum(output.nfe for output in answers("nano-base", "threshold"))
    assert ours < base
