from __future__ import annotations

import hashlib
import re
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("reasoning_gym")

from dmax.problems import (
    KINDS,
    MOST_SEEDS,
    SeedError,
    Split,
    equations,
    first_number,
    keeps_to_the_rule,
    problem,
    stress_problem,
)
from dmax.problems.everyday import OTHER_ANSWER, everyday_problem
from dmax.problems.gsm8k_variants import Gsm8kVariants
from dmax.problems.word_problems import CHUNK
from dmax.training.problem_sources.arithmetic import Arithmetic
from dmax.training.problem_sources.base import DrawnConversations
from dmax.training.problem_sources.conversations import ProblemConversations
from dmax.training.problem_sources.everyday import Everyday
from dmax.training.problem_sources.gsm8k import Gsm8kSource
from dmax.training.problem_sources.gsm_symbolic import GsmSymbolic
from dmax.training.problem_sources.other_requests import OtherRequests
from dmax.training.problem_sources.parallel_stress import ParallelStress
from dmax.training.problem_sources.registry import PROBLEM_SOURCES
from dmax.training.recipe import ProblemSection, load_recipe
from dmax.training.section import RecipeError

RECIPES = Path(__file__).parents[3] / "recipes"


class CharTokenizer:
    eos_token_id = 0

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def apply_chat_template(self, messages, add_generation_prompt=True) -> list[int]:
        return self.encode("".join(turn["content"] for turn in messages))


def test_problems_are_a_function_of_split_and_index() -> None:
    assert problem("train", CHUNK + 3) == problem("train", CHUNK + 3)
    assert problem("train", 5) != problem("validation", 5) != problem("test", 5)
    assert not problem("train", 5)["question"].endswith("Do not include units.")
    assert "####" in problem("train", 5)["solution"]


def test_splits_start_too_far_apart_to_meet() -> None:
    splits = ("train", "validation", "test")
    for split, following in pairwise(splits):
        assert first_number(following, 0) - first_number(split, MOST_SEEDS - 1) >= 10**9, "a seed's worth of problems"
    assert first_number("train", 0) >= 10**12, "small seeds are the ones people evaluate with"


@pytest.mark.parametrize(("split", "seed"), [("train", MOST_SEEDS), ("validation", 9021), ("train", -1), ("test", -1)])
def test_a_seed_that_would_reach_another_split_is_refused(split: Split, seed: int) -> None:
    with pytest.raises(SeedError, match=f"the {split} split has no problems of seed {seed}; choose"):
        problem(split, 0, seed)


def test_a_problem_becomes_a_chat_example() -> None:
    row = problem("validation", 7)
    example = GsmSymbolic(CharTokenizer(), "validation").example(7)
    assert "".join(map(chr, example.token_ids[:-1])) == row["question"] + row["solution"]
    assert sum(example.supervised) == len(row["solution"]) + 1


@pytest.mark.parametrize("source", [Everyday, ProblemConversations])
def test_everyday_problems_are_of_the_themes_that_are_asked_for(source: type[Everyday]) -> None:
    chosen = source(CharTokenizer(), themes=("sharing", "shopping"))
    asked = [question for index in range(40) for question, _ in chosen.turns(index)]
    other = [question for index in range(40) for question, _ in source(CharTokenizer()).turns(index)]
    everyday = {everyday_problem("train", index, chosen=("sharing", "shopping")).theme for index in range(200)}
    assert everyday == {"sharing", "shopping"}
    assert asked != other


@pytest.mark.parametrize("source", [Everyday, ProblemConversations])
def test_a_share_of_everyday_problems_is_reworded(source: type[Everyday]) -> None:
    plain, reworded = source(CharTokenizer()), source(CharTokenizer(), reworded=1.0)
    assert sum(plain.turns(index) != reworded.turns(index) for index in range(40)) >= 28


@pytest.mark.slow
def test_the_first_stage_of_nano_draws_what_the_embedded_model_was_trained_on() -> None:
    """Themes that come later, and every change of drawing or working, leave the past as it was."""
    recipe = load_recipe(RECIPES / "nano" / "1-autoregressive.yaml")
    chosen = {section.source: section.themes for section in recipe.data if isinstance(section, ProblemSection)}
    drawn = hashlib.sha256()
    for source in (
        Everyday(CharTokenizer(), worked=True, themes=chosen["everyday"]),
        ProblemConversations(CharTokenizer(), worked=True, themes=chosen["conversations"]),
    ):
        for index in range(2500):
            drawn.update(repr(list(source.turns(index))).encode())
    assert drawn.hexdigest()[:16] == "8019481c6a66b649"


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        ("He has 3*4=12 cups and 12 + 5 = 17 plates.", [("3*4=", "12"), ("12 + 5 = ", "17")]),
        ("It costs 69 x €8 = €552.", [("69 x €8 = ", "€552")]),
        ("980 puppies + 720 puppies = 1700 puppies", [("980 puppies + 720 puppies = ", "1700")]),
        ("240 * 1/2 = €120 for it", [("240 * 1/2 = ", "€120")]),
        ("€480/month * 12 months/year = €5,760", [("480/month * 12 months/year = ", "€5,760")]),
        ("30% of 50 = 15", []),
        ("48=48 emails", []),
        ("2 + 2 = 5", []),
        ("7 / 0 = 3", []),
    ],
)
def test_equations_are_the_true_steps(solution: str, expected: list[tuple[str, str]]) -> None:
    found = [(solution[e.start : e.result], solution[e.result : e.end]) for e in equations(solution)]
    assert found == expected


def test_drills_supervise_results_only() -> None:
    example = Arithmetic(CharTokenizer(), "validation").example(0)
    text = "".join(map(chr, example.token_ids))
    assert len(text.splitlines()) > 3
    for line in text.splitlines():
        assert "=" in line
    answers = "".join(c for c, s in zip(text, example.supervised, strict=True) if s)
    assert answers == "".join(line.rsplit("=", 1)[1].lstrip(" $€£¥") + "\n" for line in text.splitlines())


def test_stress_problems_take_turns_and_their_solutions_keep_to_the_rule() -> None:
    rows = [stress_problem("validation", index) for index in range(200)]
    assert rows == [stress_problem("validation", index) for index in range(200)]
    assert [row["kind"] for row in rows[: len(KINDS)]] == list(KINDS)
    assert all(keeps_to_the_rule(row, row["solution"]) for row in rows)
    assert all(set(row["question"].split(": ")[1].rstrip(".").split(", ")) == set(row["words"].split()) for row in rows)
    assert stress_problem("train", 0) != stress_problem("validation", 0) != stress_problem("validation", 0, seed=1)


@pytest.mark.parametrize("kind", KINDS)
def test_another_list_does_not_keep_to_the_rule(kind: str) -> None:
    for index in range(50):
        row = stress_problem("validation", index, kind=kind)
        words = row["solution"].split(", ")
        assert not keeps_to_the_rule(row, ", ".join([*words[:-1], words[0]]))
        assert not keeps_to_the_rule(row, ", ".join(words[:-1]))
        assert not keeps_to_the_rule(row, "")
        if kind == "shuffle":
            assert not keeps_to_the_rule(row, ", ".join(row["words"].split())), "the given order is no other order"
            assert keeps_to_the_rule(row, ", ".join(sorted(row["words"].split(), reverse=True))) == (
                sorted(row["words"].split(), reverse=True) != row["words"].split()
            )


def test_a_stress_problem_becomes_a_chat_example() -> None:
    row = stress_problem("train", 3)
    example = ParallelStress(CharTokenizer()).example(3)
    assert "".join(map(chr, example.token_ids[:-1])) == row["question"] + row["solution"]
    assert sum(example.supervised) == len(row["solution"]) + 1


ROWS = [
    {"question": "Ann has 4 bags of 6 nuts. How many nuts?", "answer": "She has 4*6=<<4*6=24>>24 nuts.\n#### 24"},
    {"question": "Bo runs 3 miles. He runs 5 more. How far?", "answer": "He runs 3+5=<<3+5=8>>8 miles.\n#### 8"},
]


@pytest.mark.parametrize(
    "source",
    [
        Everyday(CharTokenizer(), worked=True),
        OtherRequests(CharTokenizer()),
        ProblemConversations(CharTokenizer(), worked=True),
        Gsm8kSource(CharTokenizer(), variants=Gsm8kVariants(ROWS), worked=True),
    ],
)
def test_the_last_answer_alone_is_supervised_and_examples_are_a_function_of_their_index(
    source: DrawnConversations,
) -> None:
    for index in range(20):
        [*before, (request, answer)] = source.turns(index)
        example = source.example(index)
        assert example == source.example(index)
        supervised = [
            token for token, is_response in zip(example.token_ids, example.supervised, strict=True) if is_response
        ]
        assert supervised == [*CharTokenizer().encode(answer), CharTokenizer().eos_token_id]
        assert sum(example.supervised) <= len(example.token_ids) - len(request)
        assert len(before) in ((1, 2) if isinstance(source, ProblemConversations) else (0,))


@pytest.mark.parametrize("name", PROBLEM_SOURCES)
def test_a_source_is_in_the_guide_and_in_what_a_wrong_name_is_told(name: str, tmp_path: Path) -> None:
    guide = (RECIPES.parent / "docs" / "guides" / "training.md").read_text(encoding="utf-8")
    assert f"| `{name}` |" in guide
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((RECIPES / "smoke" / "oput.yaml").read_text().replace("source: gsm-symbolic", "source: gsm"))
    with pytest.raises(RecipeError, match=f"expected tags: .*'{name}'"):
        load_recipe(recipe)


def test_options_reach_a_source_by_its_name() -> None:
    section = ProblemSection(source="conversations", worked=True, themes=("sharing",), reworded=0.5)
    tokenizer = CharTokenizer()
    source = PROBLEM_SOURCES["conversations"].of(section, tokenizer)
    assert source == ProblemConversations(tokenizer, worked=True, themes=("sharing",), reworded=0.5)
    drawn = [kind for kind in PROBLEM_SOURCES.values() if kind.section is None]
    assert [kind.name for kind in drawn if next(kind.texts(section, 1), None)] == [
        "everyday", "gsm-symbolic", "parallel-stress"
    ]  # fmt: skip


def test_answers_of_everyday_sources_end_in_their_result() -> None:
    for index in range(50):
        [(_, answer)] = Everyday(CharTokenizer(), worked=True).turns(index)
        assert re.search(r"\n#### [\d.]+$", answer)
    assert {answer for i in range(20) for _, answer in OtherRequests(CharTokenizer()).turns(i)} == {OTHER_ANSWER}
