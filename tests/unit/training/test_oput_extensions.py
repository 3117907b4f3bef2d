"""The objectives that add to OPUT, on logits small enough to work out by hand. Token 0 is the mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dmax.decoding.base import SoftMix
from dmax.models.config import ModelConfig
from dmax.training.data import Example, generator_for
from dmax.training.layout import Batch, Layout, lay_out
from dmax.training.objectives.base import LossPart, Pass
from dmax.training.objectives.calibrated import revision_scores
from dmax.training.objectives.consistency import divergence
from dmax.training.objectives.entropy_weighted import entropy_weights
from dmax.training.objectives.oput import Reading
from dmax.training.objectives.registry import BuiltInSection, get_objective, parse_section

VOCAB, MASK = 12, 0
CONFIG = {"vocab_size": VOCAB, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
IDS = {"mask_token_id": MASK, "eos_token_id": 1, "pad_token_id": 1}
WHERE = Pass(0, 7, ModelConfig.from_dict({**CONFIG, **IDS, "num_attention_heads": 1, "num_key_value_heads": 1}))
ROLLOUTS: tuple[dict[str, Any], ...] = (
    {},
    {"rollout": "sampled"},
    {"rollout_passes": 2, "rollout_states": "soft", "rollout_threshold": [0, 0.95]},
)
KINDS = ("consistency", "calibrated", "entropy-weighted")


class StandIn:
    """A model whose logits depend on the token that it reads and, a little, on the mix."""

    def __init__(self) -> None:
        self.table = torch.randn(VOCAB, VOCAB, generator=generator_for(3)).requires_grad_()
        self.seen: list[torch.Tensor] = []

    def __call__(self, noisy_ids: torch.Tensor, layout: Layout, mix: SoftMix | None = None) -> torch.Tensor:
        self.seen.append(noisy_ids[layout.supervised])
        shift = 0.0 if mix is None else mix.weights.sum(-1)[layout.supervised][:, None]
        return self.table[noisy_ids[layout.supervised]] * (1 + shift)


@pytest.fixture
def batch() -> Batch:
    ids = torch.randint(1, VOCAB, (3, 8), generator=generator_for(1)).tolist()
    layout = lay_out([Example(tuple(row), (False,) * 3 + (True,) * 5) for row in ids], 4, pad_token_id=1)
    hidden = layout.supervised & (torch.rand(layout.supervised.shape, generator=generator_for(2)) < 0.6)
    return Batch(layout, hidden, (0, 1, 2), int(layout.supervised.sum()))


def losses(batch: Batch, model: StandIn | None = None, **options: Any) -> dict[str, LossPart]:
    objective = get_objective(BuiltInSection.model_validate(options))
    return {part.name: part for part in objective.losses(model or StandIn(), batch, WHERE)}


def logits(*rows: Sequence[float]) -> torch.Tensor:
    return torch.tensor(rows).log()


@pytest.mark.parametrize("rollout", ROLLOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_without_its_weight_each_is_oput(batch: Batch, kind: str, rollout: dict[str, Any]) -> None:
    weightless = {"consistency_weight": 0.0, "calibration_weight": 0.0, "entropy_power": 0.0}
    plain, extended = losses(batch, kind="oput", **rollout), losses(batch, kind=kind, **weightless, **rollout)
    assert extended.keys() == plain.keys()
    for name, part in extended.items():
        torch.testing.assert_close(part.loss, plain[name].loss)
        shared = plain[name].tallies
        torch.testing.assert_close({key: part.tallies[key] for key in shared}, shared)


@pytest.mark.parametrize("kind", KINDS)
def test_they_need_both_losses_of_a_batch(kind: str) -> None:
    with pytest.raises(ValueError, match=f"kind {kind} needs form: joint"):
        parse_section({"kind": kind, "form": "alternate"})
    parse_section({"kind": "masked", "form": "alternate"})


def test_the_divergence_is_zero_where_nothing_changed_and_moves_the_earlier_pass_alone() -> None:
    earlier = logits((0.5, 0.5, 1e-30), (0.2, 0.3, 0.5)).requires_grad_()
    later = logits((0.75, 0.25, 1e-30), (0.2, 0.3, 0.5)).requires_grad_()
    found = divergence(earlier, later)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    torch.testing.assert_close(found, torch.tensor([expected, 0.0]), atol=1e-6, rtol=1e-5)
    found.sum().backward()
    assert later.grad is None and earlier.grad is not None
    # The gradient of KL(later | earlier) by the earlier logits is earlier - later.
    torch.testing.assert_close(earlier.grad[0], torch.tensor([-0.25, 0.25, 0.0]))


def test_the_first_pass_is_taught_by_the_last_one_where_something_was_masked(batch: Batch) -> None:
    model = StandIn()
    parts = losses(batch, model, kind="consistency", consistency_weight=0.5)
    assert list(parts) == ["pred", "mask"]
    rolled, masked = model.seen[1:]
    hidden = batch.hidden[batch.layout.supervised]
    assert (masked[hidden] == MASK).all()
    taught = divergence(model.table[masked[hidden]], model.table[rolled[hidden]])
    targets = batch.layout.noisy_ids[batch.layout.supervised]
    torch.testing.assert_close(parts["mask"].loss, F.cross_entropy(model.table[masked], targets) + 0.5 * taught.mean())
    assert parts["mask"].tallies["divergence"].tolist() == [pytest.approx(taught.sum().item()), int(hidden.sum())]


def test_confidence_is_scored_where_a_token_is_revised() -> None:
    sure = (0.1, 0.6, 0.2, 0.1)
    masking = (0.7, 0.1, 0.05, 0.15)  # the mask is never predicted: token 3, at 0.15
    reading = Reading(
        "pred",
        tokens_S=torch.tensor([2, 2, 1, MASK, 2, 1]),
        logits_SV=logits(sure, sure, sure, sure, sure, masking).requires_grad_(),
        targets_S=torch.tensor([1, 3, 1, 1, 1, 3]),
        hidden_S=torch.tensor([True, True, True, True, False, True]),
    )
    score, revised = revision_scores(reading, MASK)
    # Revised rightly; revised wrongly; kept; a mask until now; never corrupted; revised rightly, unsure of it.
    assert revised.tolist() == [True, True, False, False, False, True]
    torch.testing.assert_close(score[revised], torch.tensor([0.4**2, 0.6**2, 0.85**2]))
    score[revised].sum().backward()
    assert reading.logits_SV.grad is not None and reading.logits_SV.grad.isfinite().all()
    assert reading.logits_SV.grad[0, 1] < 0 < reading.logits_SV.grad[1, 1], "surer where right, less sure where wrong"


def test_the_mean_score_is_added_to_the_second_loss(batch: Batch) -> None:
    model = StandIn()
    plain, scored = losses(batch, kind="oput"), losses(batch, model, kind="calibrated", calibration_weight=3.0)
    torch.testing.assert_close(scored["mask"].loss, plain["mask"].loss)
    total, count = scored["pred"].tallies["brier_revised"].tolist()
    assert count > 0
    assert (scored["pred"].loss - plain["pred"].loss).item() == pytest.approx(3 * total / count, rel=1e-5)


def test_nothing_revised_adds_nothing(batch: Batch) -> None:
    model = StandIn()
    with torch.no_grad():
        model.table += 50 * F.one_hot(model.table.argmax(-1)[MASK], VOCAB)  # one token whatever it reads
    plain, scored = losses(batch, model, kind="oput"), losses(batch, model, kind="calibrated")
    torch.testing.assert_close(scored["pred"].loss, plain["pred"].loss)
    assert scored["pred"].tallies["brier_revised"].tolist() == [0, 0]


def test_weights_rise_with_entropy_and_have_mean_1() -> None:
    spread = torch.zeros(1, 4)
    certain = torch.tensor([[60.0, 0.0, 0.0, 0.0]])
    both = torch.cat([spread, certain]).requires_grad_()
    heavy = 1 + math.log(4)
    expected = torch.tensor([2 * heavy, 2.0]) / (heavy + 1)
    torch.testing.assert_close(entropy_weights(both, 1.0), expected)
    assert not entropy_weights(both, 1.0).requires_grad
    root = torch.tensor([2 * heavy**0.5, 2.0]) / (heavy**0.5 + 1)
    torch.testing.assert_close(entropy_weights(both, 0.5), root)
    assert entropy_weights(both, 0.0).tolist() == [1.0, 1.0]


def test_both_losses_are_weighed(batch: Batch) -> None:
    model = StandIn()
    parts = losses(batch, model, kind="entropy-weighted", entropy_power=2.0)
    targets = batch.layout.noisy_ids[batch.layout.supervised]
    for name, seen in zip(("mask", "pred"), model.seen, strict=True):
        found = model.table[seen]
        each = F.cross_entropy(found, targets, reduction="none")
        torch.testing.assert_close(parts[name].loss, (entropy_weights(found, 2.0) * each).mean())
