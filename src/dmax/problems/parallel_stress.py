"""Word lists to copy, reverse, sort, replace in or shuffle: answers whose tokens hang on one another.

Tokens decoded in the same pass cannot see each other. Where the answer is one of many (a shuffled list), each of them
may be plausible alone and the whole still wrong; grade-school problems hide this, so it gets a test of its own. The
idea of such tests is ParallelBench's (arXiv 2510.04767); the tasks and words here are ours.
"""

from __future__ import annotations

from random import Random

from dmax.problems.splits import SPLIT_SEEDS, Split

KINDS = ("copy", "reverse", "sort", "replace", "shuffle")
LENGTHS = (3, 8)
"""Fewest and most words of a list."""

_QUESTIONS = {
    "copy": "Copy this list: {words}.",
    "reverse": "Write this list in reverse order: {words}.",
    "sort": "Sort this list from A to Z: {words}.",
    "replace": "Write this list with {new} in place of {old}: {words}.",
    "shuffle": "Write this list in any other order: {words}.",
}
_NOUNS = """
apple bag ball banana bed bike bird boat book bottle box bread brick brush bus cake camera candle car card cat chair
cheese clock coat coin cookie cow cup desk dog door dress drum duck egg fan farm fish flag flower fork frog game
garden glass goat guitar hat horse house jar key kite lamp leaf lemon letter map milk moon mouse orange paper park
pen pencil phone piano pie pig pizza plane plant plate pond potato ring river road rock roof rope rose salt school
seed sheep ship shirt shoe soap sock spoon star stone store sugar table tent tiger tomato tool towel train tree
truck wall watch water wheel window wolf yard
"""
_WORDS = _NOUNS.split()


def stress_problem(split: Split, index: int, seed: int = 0, kind: str | None = None) -> dict[str, str]:
    """Draw problem ``index`` of a split: ``kind``, ``words``, ``question``, ``solution``, ``old``, ``new`` (or empty).

    Kinds take turns where none is asked for. The solution is one that is right; of a shuffled list there are others.
    """
    random = Random(f"parallel-stress {SPLIT_SEEDS[split] + seed} {index}")
    kind = KINDS[index % len(KINDS)] if kind is None else kind
    words = random.sample(_WORDS, random.randint(*LENGTHS))
    old, new = random.choice(words), random.choice([word for word in _WORDS if word not in words])
    if kind != "replace":
        old = new = ""
    solution = {
        "copy": words,
        "reverse": words[::-1],
        "sort": sorted(words),
        "replace": [new if word == old else word for word in words],
        "shuffle": _other_order(words, random),
    }[kind]
    return {
        "kind": kind,
        "words": " ".join(words),
        "question": _QUESTIONS[kind].format(words=", ".join(words), old=old, new=new),
        "solution": ", ".join(solution),
        "old": old,
        "new": new,
    }


def keeps_to_the_rule(row: dict[str, str], text: str) -> bool:
    """Tell whether an answer, a list parted by commas, is right for a row of :func:`stress_problem`."""
    words = row["words"].split()
    given = [word.strip() for word in text.strip().rstrip(".").split(",")]
    if row["kind"] == "shuffle":
        return given != words and sorted(given) == sorted(words)
    return given == row["solution"].split(", ")


def _other_order(words: list[str], random: Random) -> list[str]:
    while (order := random.sample(words, len(words))) == words:
        pass
    return order
