"""Labels of edits are what takes `joint-threshold-indel` from a draft to the target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dmax.decoding import JointThresholdIndelDecoder
from dmax.decoding.base import BlockState
from dmax.decoding.mixing import SoftMix
from dmax.models import BlockDiffusionLM
from dmax.training.data import Example, generator_for
from dmax.training.edit_labels import IGNORED, batch_labels, edit_labels
from dmax.training.layout import Batch, Layout, lay_out
from dmax.training.objectives.base import Pass
from dmax.training.objectives.registry import get_objective, parse_section
from dmax.training.section import RecipeError

VOCAB, MASK, DELETE, INSERT = 40, 1, 3, 4
LENGTH = 12


def labels_of(draft: str, target: str) -> str:
    """Letters for tokens; - deletes, + inserts, . is nothing."""
    found = edit_labels([*map(ord, draft)], [*map(ord, target)], ord("-"), ord("+"))
    return "".join("." if label == IGNORED else chr(label) for label in found)


@pytest.mark.parametrize(
    ("draft", "target", "labels"),
    [
        ("abcde", "abcde", "abcde"),  # kept
        ("abXde", "abcde", "abcde"),  # one becomes another
        ("XXXXX", "abcde", "abcde"),
        ("abXcd", "abcde", "ab-cd"),  # one too many; a mask comes to the end
        ("abde_", "abcde", "ab+e."),  # one is missing before d; the end falls off
        ("abXYcd", "abcdef", "ab--cd"),
        ("aXcdYe", "abcdef", "abcd-e"),  # another one, and one too many
        ("cdefgh", "abcdef", "+def.."),  # two are missing: one a pass
        ("bXcdef", "abcdef", "+-cdef"),
        ("Xabcde", "abcdYe", "-abcd+"),
        ("XbcY", "YbcZ", "YbcZ"),  # no other alignment is longer than that by places
    ],
)
def test_labels(draft: str, target: str, labels: str) -> None:
    assert labels_of(draft, target) == labels


def damaged(target: list[int], random: Random) -> list[int]:
    """A draft in which tokens are missing, too many or other ones."""
    draft: list[int] = []
    for token in target:
        kind = random.random()
        draft += [] if kind < 0.12 else [random.randrange(5, VOCAB), token] if kind < 0.24 else [token]
    draft = [random.randrange(5, VOCAB) if random.random() < 0.1 else token for token in draft]
    return (draft + [random.randrange(5, VOCAB) for _ in target])[: len(target)]


def test_they_take_the_decoder_to_the_target() -> None:
    random, decoder = Random(0), JointThresholdIndelDecoder(delete_token_id=DELETE, insert_token_id=INSERT)
    decoder = replace(decoder, max_post_steps=64)
    edited = 0
    for _ in range(300):
        target = [random.randrange(5, VOCAB) for _ in range(LENGTH)]
        draft = torch.tensor([damaged(target, random)])
        nothing = torch.zeros_like(draft, dtype=torch.bool)
        state = BlockState(
            tokens=draft, masked=nothing, active=~nothing, passes=torch.zeros(1, dtype=torch.long), mask_token_id=MASK
        )
        for _ in range(3 * LENGTH):
            tokens = state.tokens[0].tolist()
            labels = edit_labels(tokens, target, DELETE, INSERT)
            edited += sum(label in (DELETE, INSERT) for label in labels)
            said = [token if label == IGNORED else label for token, label in zip(tokens, labels, strict=True)]
            state = decoder.step(30.0 * F.one_hot(torch.tensor([said]), VOCAB).float(), state).state
            if state.tokens[0].tolist() == target:
                break
        assert state.tokens[0].tolist() == target
    assert edited > 300


def test_blocks_of_a_batch_are_labelled_by_themselves() -> None:
    """The prompt's tail is no part of the draft, and what is right needs no alignment."""
    rows = [[9, 9, 5, 6, 7, 8, 10, 11], [9, 9, 9, 5, 6, 7, 8, 10]]
    layout = lay_out([Example(tuple(row), (False,) * 2 + (True,) * 6) for row in rows], 4, pad_token_id=0)
    drafts = layout.noisy_ids.clone()
    drafts[0, 4:8] = torch.tensor([8, 10, 11, 20])  # 7 is missing
    labels = batch_labels(drafts, layout, DELETE, INSERT)
    assert labels.tolist() == [5, 6, INSERT, 10, 11, IGNORED, *rows[1][2:]]


class Echo:
    """A model that predicts token 8 everywhere, and remembers what it read."""

    def __init__(self) -> None:
        self.logits_V = torch.randn(VOCAB, generator=generator_for(1)).scatter(0, torch.tensor(8), 9.0)

    def __call__(self, noisy_ids: torch.Tensor, layout: Layout, mix: SoftMix | None = None) -> torch.Tensor:
        return self.logits_V.expand(int(layout.supervised.sum()), -1)


def parts_of(model: BlockDiffusionLM, **changes: Any) -> Iterator[Any]:
    layout = lay_out([Example((9, 8, 10, 11, 12, 13, 14, 15), (False,) + (True,) * 7)], 4, pad_token_id=0)
    hidden = layout.supervised.clone()
    hidden[0, 2:] = False
    config = replace(model.config, **changes)
    objective = get_objective(parse_section({"kind": "oput-indel", "block_length": 4}))  # type: ignore[arg-type]
    return objective.losses(Echo(), Batch(layout, hidden, (0,), 7), Pass(0, 0, config))


def test_the_objective_asks_for_edits(model: BlockDiffusionLM) -> None:
    tokens = {"delete_token_id": DELETE, "insert_token_id": INSERT}
    mask, pred = parts_of(model, decoder_defaults={"joint-threshold-indel": tokens})
    targets = torch.tensor([8, 10, 11, 12, 13, 14, 15])  # of which the rollout has the hidden one right
    logits = Echo().logits_V.expand(7, -1)
    for part in (mask, pred):
        torch.testing.assert_close(part.loss, F.cross_entropy(logits, targets))


def test_what_it_cannot_do_is_refused(model: BlockDiffusionLM) -> None:
    with pytest.raises(RecipeError, match="oput-indel needs a model with tokens that delete and insert"):
        next(parts_of(model))
    for options in ({"form": "alternate"}, {"rollout_passes": 2}):
        with pytest.raises(ValueError, match="oput-indel has form: joint and a rollout of one pass"):
            parse_section({"kind": "oput-indel", **options})
