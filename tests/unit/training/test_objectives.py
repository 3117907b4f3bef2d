from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from dmax.decoding.base import SoftMix
from dmax.training.data import Example, generator_for
from dmax.training.layout import Layout, lay_out
from dmax.training.objectives.dparallel import dparallel_loss, entropy_where_right
from dmax.training.objectives.masked import far_ahead, masked_loss
from dmax.training.objectives.oput import decoding_losses, oput_losses, oput_mixed_loss
from dmax.training.objectives.uniform import uniform_loss
from dmax.training.rollout import DecodingRollout, RowRollout, greedy, sampled

VOCAB, MASK = 12, 0


@pytest.fixture
def layout() -> Layout:
    ids = torch.randint(1, VOCAB, (3, 8), generator=generator_for(1)).tolist()
    return lay_out([Example(tuple(row), (False,) * 3 + (True,) * 5) for row in ids], 4, pad_token_id=1)


@pytest.fixture
def hidden(layout: Layout) -> torch.Tensor:
    return layout.supervised & (torch.rand(layout.supervised.shape, generator=generator_for(2)) < 0.6)


class Recorder:
    """A stand-in model whose logits depend on the token it reads; remembers its inputs."""

    def __init__(self) -> None:
        self.table = torch.randn(VOCAB, VOCAB, generator=generator_for(3)).requires_grad_()
        self.seen: list[torch.Tensor] = []
        self.mixes: list[SoftMix | None] = []

    def __call__(self, noisy_ids: torch.Tensor, layout: Layout, mix: SoftMix | None = None) -> torch.Tensor:
        self.seen.append(noisy_ids)
        self.mixes.append(mix)
        return self.table[noisy_ids[layout.supervised]]


def test_masked_loss_counts_masked_positions_only(layout: Layout, hidden: torch.Tensor) -> None:
    model = Recorder()
    part = masked_loss(model, layout, hidden, MASK)
    expected = F.cross_entropy(model.table[MASK].expand(int(hidden.sum()), -1), layout.noisy_ids[hidden])
    torch.testing.assert_close(part.loss, expected)


def test_far_ahead_is_all_behind_the_first_hidden_positions_of_a_block_but_padding() -> None:
    """The answer of row 1 ends at position 7 (EOS is 2); position 4 of row 2 is decoded already."""
    ids = ((5, 6, 7, 8, 9, 10, 11, *(2,) * 13), tuple(range(5, 25)))
    layout = lay_out([Example(row, (False,) * 2 + (True,) * 18) for row in ids], 10, pad_token_id=2)
    hidden = layout.supervised.clone()
    hidden[1, 4] = False
    far = far_ahead(layout, hidden, 3, eos_token_id=2)
    padding = {15, 16, 17, 18, 19}  # behind eight others
    assert [set(row.nonzero().flatten().tolist()) for row in far] == [
        {*range(5, 10), *range(13, 20)} - padding,
        {*range(6, 10), *range(13, 20)},
    ]


def test_smoothed_labels_are_spread_evenly(layout: Layout, hidden: torch.Tensor) -> None:
    smoothed = hidden.clone()
    smoothed[:2] = False
    part = masked_loss(Recorder(), layout, hidden, MASK, 0.3 * smoothed)
    logits_V, losses = Recorder().table[MASK], []
    for target, soft in zip(layout.noisy_ids[hidden], smoothed[hidden], strict=True):
        losses.append(F.cross_entropy(logits_V, target, label_smoothing=0.3 if soft else 0.0))
    torch.testing.assert_close(part.loss, torch.stack(losses).mean())


def test_oput_counts_every_supervised_position_and_reads_its_own_predictions(
    layout: Layout, hidden: torch.Tensor
) -> None:
    model = Recorder()
    parts = list(oput_losses(model, layout, hidden, MASK, greedy))
    assert [part.name for part in parts] == ["mask", "pred"]
    masked, rolled = model.seen
    assert (masked[hidden] == MASK).all() and torch.equal(masked[~hidden], layout.noisy_ids[~hidden])
    assert (rolled[hidden] == model.table[MASK].argmax()).all() and torch.equal(rolled[~hidden], masked[~hidden])
    for part, seen in zip(parts, model.seen, strict=True):
        expected = F.cross_entropy(model.table[seen[layout.supervised]], layout.noisy_ids[layout.supervised])
        torch.testing.assert_close(part.loss, expected)
        assert part.loss.requires_grad


def test_the_alternate_form_rolls_out_without_gradient(layout: Layout, hidden: torch.Tensor) -> None:
    joint, alternate = Recorder(), Recorder()
    (pred,) = oput_losses(alternate, layout, hidden, MASK, greedy, which=("pred",))
    (mask,) = oput_losses(alternate, layout, hidden, MASK, greedy, which=("mask",))
    both = list(oput_losses(joint, layout, hidden, MASK, greedy))
    torch.testing.assert_close(mask.loss, both[0].loss)
    torch.testing.assert_close(pred.loss, both[1].loss)
    pred.loss.backward()
    both[1].loss.backward()
    torch.testing.assert_close(alternate.table.grad, joint.table.grad)


def test_rows_of_both_losses_in_one_pass_give_each_row_its_own(layout: Layout, hidden: torch.Tensor) -> None:
    joint, mixed = Recorder(), Recorder()
    revises = torch.tensor([True, False, True])
    part = oput_mixed_loss(mixed, layout, hidden, revises, MASK, greedy)
    list(oput_losses(joint, layout, hidden, MASK, greedy))
    _, both = mixed.seen
    masked, rolled = joint.seen
    assert torch.equal(both[revises], rolled[revises])
    assert torch.equal(both[~revises], masked[~revises])
    logits = mixed.table[both[layout.supervised]]
    losses = F.cross_entropy(logits, layout.noisy_ids[layout.supervised], reduction="none").view(3, 5)
    torch.testing.assert_close(part.loss, losses.mean())
    for name, rows in (("mask", ~revises), ("pred", revises)):
        total, count = part.tallies[f"loss_{name}"].tolist()
        assert (total, count) == (pytest.approx(losses[rows].sum().item()), 5 * int(rows.sum()))
        right, corrupted = part.tallies[f"accuracy_{name}"].tolist()
        matches = (logits.argmax(-1) == layout.noisy_ids[layout.supervised]).view(3, 5) & hidden[:, 3:]
        assert (right, corrupted) == (matches[rows].sum(), hidden[rows].sum())


def test_the_share_of_wrong_rollouts_is_over_the_corrupted_positions(layout: Layout, hidden: torch.Tensor) -> None:
    wrong = (Recorder().table[MASK].argmax() != layout.noisy_ids) & hidden
    _, pred = oput_losses(Recorder(), layout, hidden, MASK, greedy)
    assert pred.tallies["rollout_wrong"].tolist() == [wrong.sum(), hidden.sum()]
    rows = torch.tensor([False, True, True])
    mixed = oput_mixed_loss(Recorder(), layout, hidden, rows, MASK, greedy)
    assert mixed.tallies["rollout_wrong"].tolist() == [wrong[rows].sum(), hidden[rows].sum()]


def rollout(layout: Layout, hidden: torch.Tensor, *rows: tuple[int, float]) -> DecodingRollout:
    return DecodingRollout(layout, hidden, MASK, [RowRollout(*row) for row in rows])


@pytest.mark.parametrize("which", [("mask", "pred"), ("pred",)])
def test_one_pass_at_threshold_0_is_the_published_rollout(
    layout: Layout, hidden: torch.Tensor, which: tuple[str, ...]
) -> None:
    decoding, published = Recorder(), Recorder()
    parts = list(decoding_losses(decoding, layout, hidden, rollout(layout, hidden, *[(1, 0.0)] * 3), 1, False, which))
    expected = list(oput_losses(published, layout, hidden, MASK, greedy, which))
    assert [part.name for part in parts] == [part.name for part in expected]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(decoding.seen, published.seen, strict=True))
    for ours, theirs in zip(parts, expected, strict=True):
        torch.testing.assert_close(ours.loss, theirs.loss)
        torch.testing.assert_close(ours.tallies, theirs.tallies)
    assert decoding.mixes == [None, None]


def test_soft_states_are_read_in_the_rollout_and_in_the_second_loss(layout: Layout, hidden: torch.Tensor) -> None:
    model = Recorder()
    list(decoding_losses(model, layout, hidden, rollout(layout, hidden, *[(3, 0.0)] * 3), 3, True))
    assert len(model.seen) == 4 and model.mixes[0] is None
    for mix in model.mixes[1:]:
        assert mix is not None and torch.equal(mix.where, hidden)
    confidence = model.table[MASK].softmax(-1)[1:].max()
    torch.testing.assert_close(model.mixes[1].weights[hidden], confidence.expand(int(hidden.sum()), 1))


def test_each_row_is_decoded_as_far_as_it_asks(layout: Layout, hidden: torch.Tensor) -> None:
    """At threshold 0.95 the stand-in is never sure, so that a pass takes the first mask of each block."""
    model = Recorder()
    list(decoding_losses(model, layout, hidden, rollout(layout, hidden, (1, 0.95), (2, 0.95), (2, 0.0)), 2, True))
    left = (model.seen[-1] == MASK).view(3, -1, 4).sum(-1)
    before = hidden.view(3, -1, 4).sum(-1)
    assert torch.equal(left[0], (before[0] - 1).clamp(min=0))
    assert torch.equal(left[1], (before[1] - 2).clamp(min=0))
    assert not left[2].any()
    assert torch.equal(model.seen[-1][~hidden], layout.noisy_ids[~hidden])


def test_sampled_rollouts_follow_the_predicted_distribution() -> None:
    logits = torch.tensor([0.5, 0.25, 0.25]).log().expand(20_000, 3)
    tokens = sampled(logits, generator_for(4))
    shares = tokens.bincount(minlength=3) / 20_000
    assert torch.allclose(shares, torch.tensor([0.5, 0.25, 0.25]), atol=0.015)
    assert torch.equal(tokens, sampled(logits, generator_for(4)))
    assert greedy(logits).eq(0).all()


def test_oput_takes_a_sampled_rollout(layout: Layout, hidden: torch.Tensor) -> None:
    model = Recorder()
    list(oput_losses(model, layout, hidden, MASK, partial(sampled, generator=generator_for(5))))
    assert len(set(model.seen[1][hidden].tolist())) > 1


def test_uniform_training_reads_random_tokens(layout: Layout, hidden: torch.Tensor) -> None:
    model = Recorder()
    random_ids = torch.randint(VOCAB, layout.noisy_ids.shape, generator=generator_for(6))
    part = uniform_loss(model, layout, hidden, random_ids)
    expected_ids = torch.where(hidden, random_ids, layout.noisy_ids)
    assert torch.equal(model.seen[0], expected_ids)
    logits = model.table[expected_ids[layout.supervised]]
    torch.testing.assert_close(part.loss, F.cross_entropy(logits, layout.noisy_ids[layout.supervised]))


def test_certainty_forcing_adds_the_entropy_where_the_model_is_right(layout: Layout, hidden: torch.Tensor) -> None:
    plain = masked_loss(Recorder(), layout, hidden, MASK)
    forced = dparallel_loss(Recorder(), layout, hidden, MASK, beta=2.0)
    model = Recorder()
    logits = model.table[MASK].expand(int(hidden.sum()), -1)
    entropy = entropy_where_right(logits, layout.noisy_ids[hidden])
    torch.testing.assert_close(forced.loss, plain.loss + 2.0 * entropy)


def test_entropy_is_averaged_over_right_predictions_only() -> None:
    logits = torch.tensor([[0.0, 0.0, -1e9], [5.0, 0.0, 0.0]])
    assert entropy_where_right(logits, torch.tensor([0, 1])).item() == pytest.approx(math.log(2))
    assert entropy_where_right(logits, torch.tensor([2, 2])).item() == 0.0
