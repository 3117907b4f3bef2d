from __future__ import annotations

import pytest
import torch

from dmax.decoding import DecoderError
from dmax.decoding.prediction import predict, rank_by_confidence

MASK = 1


def test_confidence_is_the_softmax_probability_of_the_best_token() -> None:
    logits = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    logits[..., MASK] = -9
    probabilities = logits.softmax(-1)
    prediction = predict(logits, MASK)
    assert torch.equal(prediction.tokens, probabilities.argmax(-1))
    torch.testing.assert_close(prediction.confidence, probabilities.amax(-1))


def test_mask_token_takes_its_share_but_is_never_chosen() -> None:
    probabilities = torch.tensor([[[0.1, 0.6, 0.3]]])
    prediction = predict(probabilities.log(), MASK)
    assert prediction.tokens.item() == 2
    assert prediction.confidence.item() == pytest.approx(0.3)


@pytest.mark.parametrize("mask_token_id", [0, 2])
def test_mask_token_may_be_the_first_or_the_last(mask_token_id: int) -> None:
    logits = torch.zeros(1, 1, 3)
    logits[..., mask_token_id] = 5
    assert predict(logits, mask_token_id).tokens.item() == (1 if mask_token_id == 0 else 0)


def test_bfloat16_ties_go_to_the_lowest_token() -> None:
    logits = torch.full((1, 4, 4096), 3.0, dtype=torch.bfloat16)
    logits[0, 1, :7] = 2
    logits[0, 2, :4000] = 2
    logits[0, 3, 5] = 4
    assert predict(logits, MASK).tokens.tolist() == [[0, 7, 4000, 5]]


def test_bfloat16_logits_give_float32_confidence() -> None:
    logits = torch.tensor([[[4.0, 0.0, 0.0, 0.0]]], dtype=torch.bfloat16)
    confidence = predict(logits, MASK).confidence
    assert confidence.dtype == torch.float32
    torch.testing.assert_close(confidence, logits.float().softmax(-1).amax(-1), rtol=0, atol=0)


def test_candidates_come_best_first_and_ties_lowest_first() -> None:
    logits = torch.tensor([[[1.0, 9.0, 2.0, 2.0, 1.0]]])
    prediction = predict(logits, MASK, top_k=3)
    assert prediction.candidates.tolist() == [[[2, 3, 0]]]
    torch.testing.assert_close(prediction.probabilities, logits.softmax(-1)[..., [2, 3, 0]])


def test_more_candidates_than_tokens_are_an_error() -> None:
    assert predict(torch.zeros(1, 1, 3), MASK, top_k=2).candidates.tolist() == [[[0, 2]]]
    with pytest.raises(DecoderError, match="top_k is 3; the vocabulary has only 2 tokens beside the mask"):
        predict(torch.zeros(1, 1, 3), MASK, top_k=3)


def test_logits_are_left_as_they_are() -> None:
    logits = torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    predict(logits, MASK, temperature=1.0, noise=torch.zeros(1, 2, 8), top_k=3)
    assert torch.equal(logits, before)


def test_temperature_draws_by_gumbel_max_and_keeps_the_top_confidence() -> None:
    logits = torch.tensor([[[2.0, 9.0, 1.0, 0.0]]])
    noise = torch.tensor([[[0.0, 9.0, 0.4, 0.0]]])
    # At 2.0 the noise weighs 2: 2.0 against 1.8. At 3.0 it weighs 3: 2.0 against 2.2.
    low, high = (predict(logits, MASK, temperature=t, noise=noise) for t in (2.0, 3.0))
    assert (low.tokens.item(), high.tokens.item()) == (0, 2)
    assert high.candidates.item() == 0
    assert high.confidence.item() == pytest.approx(logits.softmax(-1)[0, 0, 0].item())


def test_draws_follow_the_tempered_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    count, temperature = 40_000, 0.7
    logits = torch.tensor([0.5, 3.0, -0.3, 1.0])
    uniform = torch.rand(1, count, 4, generator=generator)
    drawn = predict(
        logits.expand(1, count, 4), MASK, temperature=temperature, noise=-torch.log(-torch.log(uniform))
    ).tokens
    logits[MASK] = -torch.inf
    expected = (logits / temperature).softmax(-1)
    frequency = torch.bincount(drawn.flatten(), minlength=4) / count
    torch.testing.assert_close(frequency, expected, rtol=0, atol=0.01)


def test_tiny_temperature_is_greedy_and_stays_finite() -> None:
    logits = torch.tensor([[[0.0, 9.0, 1e-3, -1.0]]])
    assert predict(logits, MASK, temperature=1e-40, noise=torch.ones(1, 1, 4)).tokens.item() == 2


def test_temperature_without_noise_is_an_error() -> None:
    with pytest.raises(DecoderError, match="needs noise"):
        predict(torch.zeros(1, 1, 4), MASK, temperature=0.5)


def test_rank_orders_masks_by_confidence_and_ties_from_the_left() -> None:
    confidence = torch.tensor([[0.5, 0.9, 0.5, 0.7, 0.0]])
    among = torch.tensor([[True, False, True, True, True]])
    assert rank_by_confidence(confidence, among).tolist() == [[1, 4, 2, 0, 3]]
