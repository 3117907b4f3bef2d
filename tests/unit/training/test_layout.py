from __future__ import annotations

import pytest
import torch

from dmax.models.config import ModelConfig
from dmax.models.transformer import BlockDiffusionLM, initialize
from dmax.training.data import Example, generator_for
from dmax.training.layout import Layout, lay_out
from dmax.training.predictor import Predictor

VOCAB, MASK = 40, 0


@pytest.fixture
def model() -> BlockDiffusionLM:
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, mask_token_id=MASK, eos_token_id=1, pad_token_id=1, num_experts=4,
        num_experts_per_tok=2, num_shared_experts=1, moe_intermediate_size=16, initializer_range=0.3,
    )  # fmt: skip
    return initialize(BlockDiffusionLM(config), generator_for(11)).eval()


def example(length: int, first_supervised: int, seed: int) -> Example:
    ids = torch.randint(2, VOCAB, (length,), generator=generator_for(seed)).tolist()
    return Example(tuple(ids), tuple(i >= first_supervised for i in range(length)))


def test_the_cut_layout_gives_the_logits_of_the_published_one(model: BlockDiffusionLM) -> None:
    """Both halves whole, as published, against noisy and clean blocks cut to what the loss can see."""
    sequence = example(32, 13, seed=1)
    layout = lay_out([sequence], 8, pad_token_id=1)
    assert layout.noisy_ids.shape[1] == 24 and layout.clean_ids.shape[1] == 24
    ids = torch.tensor([sequence.token_ids])
    positions = torch.arange(32)[None]
    whole = Layout(ids, positions, torch.tensor([sequence.supervised]), ids, positions, positions // 8, 8)
    hidden = torch.rand(32, generator=generator_for(2)) < 0.6
    hidden &= torch.tensor(sequence.supervised)
    predict = Predictor(model, torch.float32, compile_model=False)
    full = predict(ids.masked_fill(hidden, MASK), whole)
    cut = predict(layout.noisy_ids.masked_fill(hidden[layout.noisy_positions], MASK), layout)
    torch.testing.assert_close(cut, full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block_length", [1, 4, 8])
def test_rows_of_a_padded_batch_do_not_touch_each_other(model: BlockDiffusionLM, block_length: int) -> None:
    examples = [example(32, 5, seed=3), example(16, 9, seed=4), example(24, 20, seed=5)]
    predict = Predictor(model, torch.float32, compile_model=False)
    together = lay_out(examples, block_length, pad_token_id=1, multiple=16)
    alone = [lay_out([e], block_length, pad_token_id=1) for e in examples]
    masked = together.noisy_ids.masked_fill(together.supervised, MASK)
    expected = torch.cat([predict(one.noisy_ids.masked_fill(one.supervised, MASK), one) for one in alone])
    torch.testing.assert_close(predict(masked, together), expected, atol=1e-5, rtol=1e-5)


def test_blocks_of_one_are_autoregression(model: BlockDiffusionLM) -> None:
    """With blocks of one token, a masked position sees exactly the clean tokens before it."""
    sequence = example(12, 4, seed=6)
    layout = lay_out([sequence], 1, pad_token_id=1)
    predict = Predictor(model, torch.float32, compile_model=False)
    logits = predict(layout.noisy_ids.masked_fill(layout.supervised, MASK), layout)
    for row, position in enumerate(range(4, 12)):
        ids = torch.tensor([[*sequence.token_ids[:position], MASK]])
        torch.testing.assert_close(logits[row], model.logits(ids, block_length=1)[0, -1], atol=1e-5, rtol=1e-5)


def test_positions_of_padding_are_valid_position_ids() -> None:
    layout = lay_out([example(8, 2, seed=7), example(4, 2, seed=8)], 4, pad_token_id=1, multiple=16)
    assert layout.mask().shape == (2, 32, 32)
    assert int(layout.positions().min()) == 0
    assert layout.mask().any(-1).all(), "every query, padding too, must see something"
