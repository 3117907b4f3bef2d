"""The training losses against vectors computed with the published code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dmax.models.checkpoint import load_model
from dmax.training.data import Example
from dmax.training.layout import Layout, lay_out
from dmax.training.objectives.dparallel import entropy_where_right
from dmax.training.objectives.masked import masked_loss
from dmax.training.objectives.oput import oput_losses
from dmax.training.predictor import Predictor
from dmax.training.rollout import greedy

DATA = Path(__file__).parent / "data"
CASES = [
    (name, index)
    for name in ("dense", "moe", "moe-nogroup")
    for index in range(len(json.loads((DATA / name / "oput.json").read_text())))
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request: pytest.FixtureRequest) -> tuple[dict[str, Any], Predictor, Layout, torch.Tensor]:
    name, index = request.param
    vector = json.loads((DATA / name / "oput.json").read_text())[index]
    supervised = tuple(label != -100 for label in vector["labels"])
    layout = lay_out([Example(tuple(vector["clean"]), supervised)], vector["block_length"], pad_token_id=0)
    hidden = torch.tensor(vector["corrupted"])[layout.noisy_positions]
    return vector, Predictor(load_model(DATA / name), torch.float32, compile_model=False), layout, hidden


def test_both_losses_and_the_rollout(case: Any) -> None:
    vector, predict, layout, hidden = case
    rollouts: list[torch.Tensor] = []

    def sample(logits: torch.Tensor) -> torch.Tensor:
        rollouts.append(greedy(logits))
        return rollouts[-1]

    losses = {part.name: part.loss.item() for part in oput_losses(predict, layout, hidden, _mask_id(predict), sample)}
    assert losses["mask"] == pytest.approx(vector["loss_mask"], abs=1e-4)
    assert losses["pred"] == pytest.approx(vector["loss_pred"], abs=1e-4)
    expected = torch.tensor(vector["x_pred"])[layout.noisy_positions][layout.supervised & hidden]
    assert torch.equal(rollouts[0][hidden[layout.supervised]], expected)


def test_the_rollout_of_its_own_pass_gives_the_same_loss(case: Any) -> None:
    vector, predict, layout, hidden = case
    (alone,) = oput_losses(predict, layout, hidden, _mask_id(predict), greedy, which=("pred",))
    assert alone.loss.item() == pytest.approx(vector["loss_pred"], abs=1e-4)


def test_the_loss_on_masked_positions_alone(case: Any) -> None:
    vector, predict, layout, hidden = case
    part = masked_loss(predict, layout, hidden, _mask_id(predict))
    assert part.loss.item() == pytest.approx(vector["loss_masked_only"], abs=1e-4)


def test_entropy_where_the_model_is_right_and_the_logits_themselves(case: Any) -> None:
    vector, predict, layout, hidden = case
    masked = layout.noisy_ids.masked_fill(hidden, _mask_id(predict))
    assert torch.equal(masked[0], torch.tensor(vector["x_mask"])[layout.noisy_positions[0]])
    logits = predict(masked, layout)
    corrupted = hidden[layout.supervised]
    entropy = entropy_where_right(logits[corrupted], layout.noisy_ids[layout.supervised][corrupted])
    assert entropy.item() == pytest.approx(vector["entropy_at_right"], abs=1e-4)
    torch.testing.assert_close(
        logits[0, :16], torch.tensor(vector["noisy_logits_first_response_position"]), atol=1e-4, rtol=0
    )


def _mask_id(predict: Predictor) -> int:
    return predict.model.config.mask_token_id
