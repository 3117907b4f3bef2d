"""MultiTF: cuts, mask ratios in distribution, and that training reads what decoding reads (algorithm.md#multitf)."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError

from dmax.models.config import ModelConfig
from dmax.models.transformer import BlockDiffusionLM, initialize
from dmax.training.batches import Batches
from dmax.training.data import Example, generator_for
from dmax.training.layout import lay_out
from dmax.training.multi_block import (
    GroupSection,
    choose_cut,
    draw_cut,
    draw_groups,
    group_mask,
    group_starts,
    mask_ratios,
    random_cut,
    systematic_cut,
)
from dmax.training.objectives.oput import oput_losses
from dmax.training.objectives.registry import BuiltInSection, get_objective
from dmax.training.predictor import Predictor
from dmax.training.recipe import load_recipe
from dmax.training.rollout import greedy
from dmax.training.section import RecipeError

VOCAB, MASK, EOS = 40, 0, 1
RECIPES = Path(__file__).parents[3] / "recipes"


def groups(opens: torch.Tensor, first_block: int = 0) -> list[int]:
    """Sizes of the groups of consecutive blocks."""
    starts = group_starts(torch.arange(first_block, first_block + len(opens)), opens)
    return list(Counter(starts.tolist()).values())


def example(length: int, first_supervised: int, seed: int) -> Example:
    ids = torch.randint(2, VOCAB, (length,), generator=generator_for(seed)).tolist()
    return Example(tuple(ids), tuple(i >= first_supervised for i in range(length)))


@pytest.mark.parametrize(
    ("size", "shift", "sizes"),
    [(2, 0, [2, 2, 2, 1]), (2, 1, [1, 2, 2, 2]), (3, 0, [3, 3, 1]), (3, 1, [1, 3, 3]), (3, 2, [2, 3, 2]), (8, 0, [7])],
)
def test_systematic_groups(size: int, shift: int, sizes: list[int]) -> None:
    assert groups(systematic_cut(7, size, shift)) == sizes


def test_consecutive_examples_have_every_systematic_cut_once() -> None:
    every = [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    settings = GroupSection(size=3)
    turns = [[choose_cut(settings, seed=4, index=i) for i in range(turn * 5, turn * 5 + 5)] for turn in range(30)]
    assert all(set(turn) == set(every) for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 20, "the order is drawn anew"
    assert turns[0] != [choose_cut(settings, seed=5, index=i) for i in range(5)]


def test_random_cuts_come_alone_or_beside_as_many_systematic_ones() -> None:
    alone = GroupSection(layout="random")
    assert {choose_cut(alone, seed=4, index=i) for i in range(8)} == {None}
    both = GroupSection(layout="both")
    assert Counter(choose_cut(both, seed=4, index=i) for i in range(8)) == {(2, 0): 2, (2, 1): 2, None: 4}


def test_random_groups_have_the_sizes_asked_for_wherever_they_stand() -> None:
    opens, found = torch.zeros(60), Counter[int]()
    for draw in range(2000):
        cut = random_cut(60, 4, generator_for(6, draw))
        sizes = groups(cut)
        assert sum(sizes) == 60 and max(sizes) <= 4
        assert sizes.count(1) <= 2, "only the group drawn from 1 on and the remainder may be single blocks"
        found.update(sizes)
        opens += cut
    shares = [found[size] / found.total() for size in (2, 3, 4)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)
    assert opens[0] == 2000
    assert opens.min() > 0, "every block can open a group"


@pytest.mark.parametrize("num_blocks", [4, 5])
def test_random_groups_of_two_pair_every_two_neighbours(num_blocks: int) -> None:
    cuts = torch.stack([random_cut(num_blocks, 2, generator_for(7, draw)) for draw in range(200)])
    assert not cuts[:, 1:].all(0).any() and cuts.any(0).all()


def test_groups_end_where_blocks_are_not_consecutive() -> None:
    blocks = torch.tensor([3, 4, 7, 8, 9])
    assert group_starts(blocks, systematic_cut(5, 2, 1)).tolist() == [3, 4, 7, 8, 8]
    assert group_starts(blocks, systematic_cut(5, 5, 0)).tolist() == [3, 3, 7, 7, 7]


def chains(schedule: str, length: int, count: int = 20_000) -> torch.Tensor:
    """``(count, length)``: mask ratios from 0 to 1 of groups of ``length`` blocks."""
    group_of_block = torch.arange(count).repeat_interleave(length)
    return mask_ratios(group_of_block, schedule, 0.0, 1.0, generator_for(7)).view(count, length)  # type: ignore[arg-type]


def distance(samples: torch.Tensor, cdf: torch.Tensor) -> float:
    """Kolmogorov-Smirnov statistic of sorted samples against the distribution function at them."""
    below = torch.arange(len(samples)) / len(samples)
    return float(torch.maximum((cdf - below).abs(), (cdf - below - 1 / len(samples)).abs()).max())


CRITICAL = 1.63 / math.sqrt(20_000)
"""Of the Kolmogorov-Smirnov test at 1 % for as many samples."""


def test_chain_ratios_are_uniform_between_the_one_before_and_the_top() -> None:
    """The rest 1 - t is a product of uniforms: two for the first block, one more for each block after it."""
    rest = 1 - chains("chain", 3)
    first = rest[:, 0].sort().values
    assert distance(first, first - first * first.log()) < CRITICAL
    for place in (1, 2):
        kept = (rest[:, place] / rest[:, place - 1]).sort().values
        assert distance(kept, kept) < CRITICAL
    steps = torch.stack([rest[:, 0], rest[:, 1] / rest[:, 0], rest[:, 2] / rest[:, 1]])
    assert (torch.corrcoef(steps) - torch.eye(3)).abs().max() < 0.03


def test_monotonic_ratios_are_sorted_uniform_draws() -> None:
    ratios = chains("monotonic", 2)
    low, high = ratios.sort(0).values.T
    assert (ratios[:, 0] <= ratios[:, 1]).all()
    assert distance(low, 1 - (1 - low) ** 2) < CRITICAL
    assert distance(high, high**2) < CRITICAL


def test_random_ratios_are_independent_and_uniform() -> None:
    ratios = chains("random", 2)
    for column in ratios.sort(0).values.T:
        assert distance(column, column) < CRITICAL
    assert torch.corrcoef(ratios.T)[0, 1].abs() < 0.03


@pytest.mark.parametrize("schedule", ["chain", "monotonic", "random"])
def test_groups_are_independent_and_ratios_stay_in_range(schedule: str) -> None:
    ratios = chains(schedule, 2)
    assert torch.corrcoef(torch.stack([ratios[:-1, 1], ratios[1:, 0]]))[0, 1].abs() < 0.03
    settings = GroupSection(t_low=0.2, t_high=0.9, rho=0.25)
    assert GroupSection(rho=0.0).t_highest == 1.0
    assert settings.t_highest == pytest.approx(0.725)
    group_of_block = torch.arange(20_000) // 2
    scaled = mask_ratios(group_of_block, schedule, settings.t_low, settings.t_highest, generator_for(7))  # type: ignore[arg-type]
    torch.testing.assert_close(scaled.view(-1, 2), 0.2 + 0.525 * chains(schedule, 2, 10_000))


def test_a_block_hides_its_share_of_supervised_positions_rounded_down() -> None:
    settings = GroupSection(schedule="random", t_low=0.6, t_high=0.6)
    blocks = torch.arange(6 * 32) // 32 + 2
    supervised = torch.arange(6 * 32) >= 19  # the prompt's tail shares the first block
    hidden = group_mask(supervised, blocks, blocks, settings, generator_for(8))
    assert not (hidden & ~supervised).any()
    assert hidden.view(6, 32).sum(1).tolist() == [7, 19, 19, 19, 19, 19]


def test_every_supervised_position_is_as_likely_to_be_hidden() -> None:
    settings = GroupSection(schedule="random", t_low=0.5, t_high=0.5)
    supervised, blocks = torch.arange(16) % 8 >= 2, torch.arange(16) // 8
    draws = [group_mask(supervised, blocks, blocks * 0, settings, generator_for(9, i)) for i in range(4000)]
    shares = torch.stack(draws).float().mean(0)
    assert (shares[supervised] - 0.5).abs().max() < 0.04
    assert not shares[~supervised].any()


def test_something_is_hidden_however_low_the_ratio() -> None:
    settings = GroupSection(t_low=0.0, t_high=0.01)
    blocks = torch.arange(16) // 8
    for draw in range(20):
        hidden = group_mask(blocks == 1, blocks, blocks * 0, settings, generator_for(10, draw))
        assert hidden.sum() == 1 and blocks[hidden].item() == 1


def test_a_share_of_the_blocks_keeps_a_prefix_and_hides_the_rest() -> None:
    blocks = torch.arange(400 * 32) // 32
    supervised = torch.arange(400 * 32) >= 19
    settings = GroupSection(schedule="random", t_low=0.25, t_high=0.75, prefix_share=0.5)
    hidden = group_mask(supervised, blocks, blocks, settings, generator_for(13)).view(400, 32)
    with_prefix = (hidden[1:].diff().sum(1) == 1) & hidden[1:, -1]
    assert 0.42 < with_prefix.float().mean() < 0.58
    always = settings.model_copy(update={"prefix_share": 1.0})
    hidden = group_mask(supervised, blocks, blocks, always, generator_for(14)).view(400, 32)
    assert hidden[0, 19:].long().diff().min() >= 0 and not hidden[0, :19].any()
    assert hidden[1:].long().diff().min() >= 0
    counts = hidden[1:].sum(1)
    assert counts.min() >= 8 and counts.max() <= 24 and len(counts.unique()) > 12


@pytest.fixture
def model() -> BlockDiffusionLM:
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, mask_token_id=MASK, eos_token_id=EOS, pad_token_id=EOS, num_experts=4,
        num_experts_per_tok=2, num_shared_experts=1, moe_intermediate_size=16, initializer_range=0.3,
    )  # fmt: skip
    return initialize(BlockDiffusionLM(config), generator_for(11)).eval()


def test_training_reads_what_decoding_with_blocks_in_flight_reads(model: BlockDiffusionLM) -> None:
    """A group's logits are those of its noisy blocks behind the clean blocks before it, in block-causal attention."""
    examples = [example(48, 13, seed=1), example(32, 9, seed=2)]
    settings = GroupSection(size=3, layout="random")
    layout, hidden = draw_groups(lay_out(examples, 8, EOS, multiple=16), settings, 12, (0, 1))
    noisy = layout.noisy_ids.masked_fill(hidden, MASK)
    logits = list(
        Predictor(model, torch.float32, compile_model=False)(noisy, layout).split(layout.supervised.sum(1).tolist())
    )
    sizes = []
    for row, sequence in enumerate(examples):
        expected = []
        for start in sorted(set(layout.group_starts[row].tolist()) - {-1}):
            inside = layout.group_starts[row] == start
            ids = torch.cat([torch.tensor(sequence.token_ids[: start * 8]), noisy[row, inside]])[None]
            read = model.logits(ids, block_length=8)[0, start * 8 :]
            expected.append(read[layout.supervised[row, inside]])
            sizes.append(int(inside.sum()) // 8)
        torch.testing.assert_close(logits[row], torch.cat(expected), atol=1e-5, rtol=1e-5)
    assert max(sizes) > 1, "no group of several blocks was drawn"


def test_what_is_drawn_depends_on_seed_and_example_not_on_the_batch() -> None:
    short, long = example(32, 9, seed=3), example(64, 30, seed=4)
    settings = GroupSection(size=4)
    layout, hidden = draw_groups(lay_out([short, long], 8, EOS, multiple=16), settings, 13, (20, 21))
    alone, hidden_alone = draw_groups(lay_out([short], 8, EOS), settings, 13, (20,))
    length = alone.noisy_ids.shape[1]
    assert torch.equal(layout.group_starts[0, :length], alone.group_starts[0])
    assert torch.equal(hidden[0, :length], hidden_alone[0])
    assert not hidden[0, length:].any()
    cuts = {tuple(draw_cut(torch.arange(9), settings, 13, index).tolist()) for index in range(9)}
    assert len(cuts) == 9, "every layout cuts nine blocks differently"


class Endless:
    """Examples of random tokens."""

    def example(self, index: int) -> Example:
        return example(24 + 8 * (index % 3), 5, seed=index)


@pytest.mark.parametrize("kind", ["masked", "oput", "uniform", "dparallel"])
def test_batches_come_in_groups(kind: str) -> None:
    objective = get_objective(BuiltInSection(kind=kind, block_length=8, group=GroupSection()))
    batches = Batches(Endless(), objective, rows=4, context=64, eos_token_id=EOS, seed=14, passes_per_step=1)
    batch = batches.batch(3)
    blocks = batch.layout.noisy_positions // 8
    assert (batch.layout.group_starts <= blocks).all() and (batch.layout.group_starts < blocks).any()
    again = batches.batch(3)
    assert torch.equal(batch.layout.group_starts, again.layout.group_starts) and torch.equal(batch.hidden, again.hidden)


def test_both_losses_of_oput_read_groups(model: BlockDiffusionLM) -> None:
    layout, hidden = draw_groups(lay_out([example(40, 9, seed=5)], 8, EOS), GroupSection(), 15, (0,))
    predict = Predictor(model, torch.float32, compile_model=False)
    parts = list(oput_losses(predict, layout, hidden, MASK, greedy))
    assert [part.name for part in parts] == ["mask", "pred"]
    for part in parts:
        part.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_a_group_draws_its_own_noise() -> None:
    with pytest.raises(ValidationError, match="leave out mask_ratio and noise"):
        BuiltInSection(kind="oput", mask_ratio=0.75, noise=(0.1, 0.9), group=GroupSection())
    with pytest.raises(ValidationError, match="t_low must not be above t_high"):
        GroupSection(t_low=0.5, t_high=0.4)


def test_a_misspelt_group_key_is_named_with_the_nearest_valid_one(tmp_path: Path) -> None:
    values = yaml.safe_load((RECIPES / "nano" / "multi-tf.yaml").read_text())
    values["objective"]["group"]["sise"] = 2
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(RecipeError, match=r"'objective\.group\.sise'; did you mean 'size'.*layout, schedule, t_low"):
        load_recipe(tmp_path / "recipe.yaml")
