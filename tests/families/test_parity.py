"""Every family computes what transformers' own class does, and writes what that class reads."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dmax import LLM, GenerationParams
from dmax.models import BlockDiffusionLM, CheckpointError, load_config, load_model, save_model
from dmax.models.masks import block_causal_mask

Make = Callable[..., Any]

SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn, all numbers": {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "beta_fast": 16, "beta_slow": 2,
        "mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False,
    },
}  # fmt: skip


def ids_of(length: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(3, 48, (rows, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
def their_logits(theirs: Any, ids: torch.Tensor, block_length: int) -> torch.Tensor:
    """Of the tokens at the positions where they are read, under a block-causal mask."""
    positions = torch.arange(ids.shape[1])[None]
    sees = block_causal_mask(positions, positions, block_length)[:, None]
    bias = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
    return theirs(ids, attention_mask=bias.expand(ids.shape[0], -1, -1, -1), position_ids=positions).logits


def assert_same_logits(model: BlockDiffusionLM, theirs: Any, block_length: int) -> None:
    ids = ids_of(24)
    ours, expected = model.logits(ids, block_length), their_logits(theirs, ids, block_length)
    if model.config.shift_logits:
        ours, expected = ours[:, 1:], expected[:, :-1]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_logits_are_those_of_transformers(family: str, make: Make, tied: bool, shards: bool) -> None:
    made = make(family, tie_word_embeddings=tied, shards=shards)
    model = load_model(made.folder)
    assert model.config.family == family
    for block_length in (1, 4, 8):
        assert_same_logits(model, made.theirs, block_length)
    with pytest.raises(AssertionError):  # the comparison notices the mask
        torch.testing.assert_close(model.logits(ids_of(24), 4), model.logits(ids_of(24), 8), rtol=0, atol=1e-2)


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS.keys())
def test_stretched_rotary_embedding_is_that_of_transformers(
    make: Make, scaling: dict[str, Any], tmp_path: Path
) -> None:
    made = make("a2d-llama", rope_parameters={"rope_theta": 500.0, **scaling})
    model = load_model(made.folder)
    assert_same_logits(model, made.theirs, 8)
    plain = make("a2d-llama", rope_parameters={"rope_theta": 500.0, "rope_type": "default"})
    assert (load_model(plain.folder).logits(ids_of(24)) - model.logits(ids_of(24))).abs().max() > 1e-2
    save_model(model, tmp_path / "saved")
    assert load_config(tmp_path / "saved") == model.config


SAID: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "yarn without the original length": ("sdar", {"rope_type": "yarn", "factor": 4.0}, {}),
    "the original length beside": (
        "sdar", {"rope_type": "yarn", "factor": 4.0}, {"original_max_position_embeddings": 32},
    ),
    "theta twice": ("sdar", {"rope_type": "default", "rope_theta": 50.0}, {"rope_theta": 1000.0}),
    "both sections": (
        "sdar", {"rope_type": "default", "rope_theta": 50.0},
        {"rope_theta": 1000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ),
    "swish": ("a2d-llama", {"rope_type": "default"}, {"hidden_act": "swish"}),
    "a window of no layer": (
        "a2d-qwen2", {"rope_type": "default"},
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2, "layer_types": None},
    ),
    "a window of no layer, by their kinds": (
        "sdar", {"rope_type": "default"},
        {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention"] * 2},
    ),
    "a window without a width": (
        "sdar_moe", {"rope_type": "default"}, {"use_sliding_window": True, "sliding_window": None},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "rotary", "changes"), SAID.values(), ids=SAID.keys())
def test_a_configuration_means_what_it_means_to_transformers(
    make: Make, name: str, rotary: dict[str, Any], changes: dict[str, Any], tmp_path: Path
) -> None:
    made = make(name)
    shutil.copytree(made.folder, tmp_path / "model")
    values = {**json.loads((made.folder / "config.json").read_text()), "rope_parameters": rotary, **changes}
    (tmp_path / "model" / "config.json").write_text(json.dumps({**values, "model_type": made.theirs.config.model_type}))
    theirs = type(made.theirs).from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    (tmp_path / "model" / "config.json").write_text(json.dumps(values))
    assert_same_logits(load_model(tmp_path / "model"), theirs, 8)


def test_what_is_saved_is_what_transformers_wrote(family: str, make: Make, tmp_path: Path) -> None:
    made = make(family)
    model = load_model(made.folder)
    save_model(model, tmp_path / "saved")
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (made.folder, tmp_path / "saved"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert load_config(tmp_path / "saved") == model.config
    values = json.loads((tmp_path / "saved" / "config.json").read_text())
    config = type(made.theirs.config)(**{k: v for k, v in values.items() if k not in ("model_type", "architectures")})
    again = type(made.theirs).from_pretrained(tmp_path / "saved", config=config, attn_implementation="eager")
    assert torch.equal(their_logits(again, ids_of(24), 8), their_logits(made.theirs, ids_of(24), 8))


def test_blocks_of_one_are_greedy_decoding_where_logits_are_shifted(make: Make) -> None:
    made = make("Fast_dLLM_Qwen")
    with torch.no_grad():
        made.theirs.lm_head.weight[1] = 0  # the mask token, which we never choose
        made.theirs.lm_head.weight[2] = 0  # the end, so that answers are long
    model = load_model(made.folder)
    with torch.no_grad():
        model.lm_head.weight.copy_(made.theirs.lm_head.weight)
    for length in (1, 5, 16):
        prompt = ids_of(length, rows=1)
        expected = made.theirs.generate(prompt, max_new_tokens=24, do_sample=False, eos_token_id=-1, pad_token_id=0)
        for decoder in ("threshold", "soft-parallel"):
            for use_cache in (True, False):
                params = GenerationParams(decoder=decoder, block_length=1, gen_length=24, use_cache=use_cache)
                [answer] = LLM(model).generate(prompt[0].tolist(), params)
                assert answer.token_ids == expected[0, length:].tolist()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "full attention": ({"model_type": "llada"}, "full attention, not block-causal"),
    "full attention too": ({"model_type": "Dream"}, "full attention, not block-causal"),
    "autoregressive": (
        {"model_type": "qwen3"},
        "an autoregressive model, not a diffusion model; `dmax adapt` makes one of it",
    ),
    "autoregressive, with experts": (
        {"model_type": "qwen3_moe"},
        r"'qwen3_moe': an autoregressive model, not a diffusion model\.",
    ),
    "unknown": ({"model_type": "t5"}, r"model_type is 't5'; this package loads llada2_moe, sdar, .*Fast_dLLM_Qwen\."),
    "window": (
        {"use_sliding_window": True, "sliding_window": 8, "layer_types": None, "max_window_layers": 1},
        "use_sliding_window is True",
    ),
    "window of one layer": (
        {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]},
        "use_sliding_window is True",
    ),
    "window of a model with experts": (
        {
            "model_type": "sdar_moe",
            "num_experts": 4,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 28,
        },
        "use_sliding_window is True",
    ),
    "bias of feed-forwards": ({"model_type": "a2d-llama", "mlp_bias": True}, "mlp_bias is True"),
    "rotary": (
        {"rope_parameters": {"rope_type": "longrope"}},
        "'longrope' is not supported; only linear, llama3, yarn",
    ),
    "rotary without a number": ({"rope_parameters": {"rope_type": "linear"}}, "needs factor, a number above 0"),
    "rotary as text": ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; it must be a mapping"),
    "missing": ({"hidden_size": None}, "lacks hidden_size"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_work_says_why(make: Make, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    values = json.loads((make("sdar").folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message) as refusal:
        load_config(tmp_path)
    assert re.fullmatch(r"[^\n]+\.", str(refusal.value))


def test_names_of_another_family_do_not_fit(make: Make, tmp_path: Path) -> None:
    folder = make("a2d-qwen2").folder
    values = json.loads((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "a2d-qwen3", "head_dim": 16}))
    missing = r"missing: model\.layers\.\{0-1\}\.self_attn\.q_norm\.weight, .*k_norm.*; 6 unexpected: .*q_proj\.bias"
    with pytest.raises(CheckpointError, match=missing):
        load_model(tmp_path)
