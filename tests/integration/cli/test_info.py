"""``dmax info``: the numbers are those of the model, and no weight is needed for them."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from dmax import load_model, load_tokenizer, save_model

PUBLISHED_MINI = {
    "model_type": "llada2_moe",
    "vocab_size": 157184,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "partial_rotary_factor": 0.5,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "moe_intermediate_size": 512,
    "first_k_dense_replace": 1,
    "n_group": 8,
    "topk_group": 4,
    "mask_token_id": 156895,
    "eos_token_id": 156892,
}
"""algorithm.md#the-model."""


@pytest.fixture
def describe(invoke: Callable[..., Result]) -> Callable[[object], dict[str, Any]]:
    """A model -> what ``dmax info --json`` says of it."""
    return lambda model: json.loads(invoke("info", model, "--json").stdout)


def test_numbers_agree_with_the_loaded_model(describe: Callable[[object], dict[str, Any]], checkpoints: Any) -> None:
    model = load_model(checkpoints.chat)
    facts = describe(checkpoints.chat)
    total = sum(parameter.numel() for parameter in model.parameters())
    # One of two layers has 4 experts of three 32 x 16 projections, of which a token uses 2.
    assert facts["parameters"] == {"total": total, "active": total - 2 * 3 * 32 * 16}
    assert facts["weight_bytes"] == {"float32": 4 * total, "bfloat16": 2 * total, "float16": 2 * total}
    # Keys and values of 2 layers, 2 heads, 16 channels.
    assert facts["cache_bytes_per_token"]["float32"] == 2 * 2 * 2 * 16 * 4
    assert facts["special_tokens"]["eos"] == {"id": 2, "text": "<eos>"}
    assert facts["tokenizer"] == {"vocab_size": 48, "chat_template": True}
    assert facts["backend"] in ("cpu", "cpu-compiled", "cuda", "torch")
    assert facts["weights"]["dtypes"] == ["F32"]
    assert facts["weights"]["bytes"] == (checkpoints.chat / "model.safetensors").stat().st_size


def test_how_a_checkpoint_is_best_decoded(
    describe: Callable[[object], dict[str, Any]], invoke: Callable[..., Result], tmp_path: Path
) -> None:
    defaults = {"soft-parallel": {"threshold": 0.8, "soft": True}}
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_MINI | {"decoder_defaults": defaults}), encoding="utf-8")
    assert describe(tmp_path)["decoder_defaults"] == defaults
    assert "soft-parallel: threshold 0.8, soft True" in invoke("info", tmp_path).stdout


def test_layouts(describe: Callable[[object], dict[str, Any]], checkpoints: Any, tmp_path: Path) -> None:
    save_model(load_model(checkpoints.bare), tmp_path / "merged", merged=True)
    save_model(load_model(checkpoints.bare), tmp_path / "sharded", max_shard_bytes=20_000)
    assert describe(checkpoints.bare)["weights"]["layout"] == "separate experts"
    assert describe(tmp_path / "merged")["weights"]["layout"] == "merged experts"
    sharded = describe(tmp_path / "sharded")["weights"]
    assert sharded["files"] > 1
    for shard in (tmp_path / "sharded").glob("*.safetensors"):
        shard.unlink()
    index_only = describe(tmp_path / "sharded")["weights"]
    assert index_only["here"] is False
    assert (index_only["layout"], index_only["files"]) == ("separate experts", sharded["files"])


def test_the_published_mini_from_its_configuration_alone(invoke: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_MINI), encoding="utf-8")
    text = invoke("info", tmp_path).stdout
    for part in ("16.26 B", "1.43 B active", "30.3 GiB in bfloat16 or float16", "mask 156895", "no weights"):
        assert part in text


def test_the_table_tells_of_tokenizer_and_files(invoke: Callable[..., Result], checkpoints: Any) -> None:
    text = invoke("info", checkpoints.chat).stdout
    for part in ("48 tokens, with chat template", "eos 2 <eos>", "1 file, F32, separate experts"):
        assert part in text
    assert "takes token ids only" in invoke("info", checkpoints.bare).stdout


def test_weights_that_are_damaged(refusal: Callable[..., str], checkpoints: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints.raw, tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"no tensors")
    assert "model.safetensors" in refusal("info", folder)
    (folder / "config.json").write_text("{", encoding="utf-8")
    assert "config.json" in refusal("info", folder)


def test_of_a_hub_model_only_the_small_files_are_fetched(
    describe: Callable[[object], dict[str, Any]], checkpoints: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.extend([name, *allow_patterns])
        return str(checkpoints.chat)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert describe("owner/model")["special_tokens"] == describe(checkpoints.chat)["special_tokens"]
    assert asked[0] == "owner/model"
    assert "config.json" in asked
    assert not any(pattern.endswith(".safetensors") for pattern in asked)


def test_a_hub_that_cannot_be_reached(refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    assert "'owner/model'" in refusal("info", "owner/model")


def test_the_tokenizer_is_the_one_that_loads(describe: Callable[[object], dict[str, Any]], checkpoints: Any) -> None:
    tokenizer = load_tokenizer(checkpoints.raw)
    assert tokenizer is not None
    assert describe(checkpoints.raw)["tokenizer"] == {"vocab_size": tokenizer.vocab_size, "chat_template": False}


def test_it_tells_what_a_model_needs_to_run_and_what_is_there(
    invoke: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_MINI))
    monkeypatch.setattr("dmax.cli._common.facts.available_memory", lambda _: 24 * 2**30)
    memory = json.loads(invoke("info", tmp_path, "--json").stdout)["memory"]
    assert memory["available"] == 24 * 2**30
    needed = {name: size / 2**30 for name, size in memory["needed"].items()}
    assert list(needed) == ["float32", "bfloat16", "int8", "int4", "int4 --embeddings int8"]
    assert 60 < needed["float32"] < 65 and 30 < needed["bfloat16"] < 32 and 9 < needed["int4"] < 13
    assert "here are 24.0 GiB" in " ".join(invoke("info", tmp_path).stdout.split())


def test_the_page_of_memory_is_made_of_the_code() -> None:
    writer = Path(__file__).parents[3] / ".ci" / "write_memory.py"
    if not writer.is_file():
        pytest.skip("not in a checkout")
    page = (writer.parents[1] / "docs" / "reference" / "memory.md").read_text(encoding="utf-8")
    assert page == runpy.run_path(str(writer))["page"](), "run python .ci/write_memory.py"
