"""Recipes for models that are not here fit the devices that they are for: their shapes and rows stand in."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dmax.cli import app
from dmax.measurement.shapes import SHAPES
from dmax.models import ModelConfig, Tokenizer
from dmax.models.checkpoint import save_companions

pytest.importorskip("datasets")

RECIPES = Path(__file__).parents[2] / "recipes"
SMOLLM2 = ModelConfig(
    family="a2d-llama", shift_logits=True, vocab_size=49_153, hidden_size=576, intermediate_size=1536,
    num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, head_dim=64, use_qk_norm=False,
    tie_word_embeddings=True, rope_theta=1e5, mask_token_id=49_152, eos_token_id=2, pad_token_id=2,
)  # fmt: skip
SDAR = replace(SHAPES["sdar-1.7b"], eos_token_id=2)
GIB: dict[str, tuple[ModelConfig, float]] = {
    "sdar-1.7b/oput-lora-1gpu": (SDAR, 22.0),
    "sdar-1.7b/oput-1gpu": (SDAR, 74.0),
    "smollm2-135m/1-autoregressive": (SMOLLM2, 8.0),
    "smollm2-135m/2-block-diffusion": (SMOLLM2, 8.0),
    "smollm2-135m/3-oput": (SMOLLM2, 8.0),
}
"""A recipe -> the model that it is for, and what a device of 24 or 80 GB, or a laptop, has free."""


@pytest.fixture
def dry_run(
    tmp_path: Path, word_tokenizer: Callable[[str | None], Tokenizer], chat_template: str
) -> Callable[[str, ModelConfig, float], str]:
    """A recipe, a model's shape and GiB of a device -> what a dry run prints, with rows as long as the context."""

    def run(name: str, config: ModelConfig, gib: float) -> str:
        values = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
        save_companions(config, tmp_path, word_tokenizer(chat_template))
        rows = tmp_path / "rows.jsonl"
        row = {"question": "w5", "answer": "w6 " * (values["train"]["context"] - 40) + "#### 7"}
        rows.write_text(f"{json.dumps(row)}\n" * 8, encoding="utf-8")
        values["model"] = values["tokenizer"] = {"start_from": str(tmp_path)}
        values["data"] = [{"source": "jsonl", "path": str(rows)} if "path" in d else d for d in values["data"]]
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        command = ["train", str(tmp_path / "recipe.yaml"), "--dry-run", "--device-memory", str(gib)]
        result = CliRunner(env={"COLUMNS": "200"}).invoke(
            app, [*command, "--data", f"openai/gsm8k={rows}"], catch_exceptions=False
        )
        assert result.exit_code == 0, result.stderr
        return result.stdout

    return run


@pytest.mark.parametrize("name", GIB)
def test_a_recipe_fits_its_device(name: str, dry_run: Callable[[str, ModelConfig, float], str]) -> None:
    config, gib = GIB[name]
    printed = dry_run(name, config, gib)
    context = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))["train"]["context"]
    assert "rows of" in printed
    if name.startswith("sdar"):
        positions = int(printed.split(" rows of ")[1].split()[0].replace(",", ""))
        assert 1.9 * context < positions <= 2 * (context + 32), "noisy and clean halves as long as the context"


STAGES = ("1-autoregressive", "2-block-diffusion", "3-oput")


def test_each_stage_for_smollm2_starts_from_the_one_before() -> None:
    before = "runs/smollm2-135m-adapted"
    for stage in STAGES:
        values = yaml.safe_load((RECIPES / "smollm2-135m" / f"{stage}.yaml").read_text(encoding="utf-8"))
        assert values["name"] == f"smollm2-135m-{stage}"
        assert values["model"] == values["tokenizer"] == {"start_from": before}
        before = f"runs/{values['name']}/model"


@pytest.fixture
def said(tmp_path: Path) -> Callable[..., list[str]]:
    """Runs a script of ``recipes`` and returns how it calls ``dmax``, which adapts by making a folder."""
    dmax = tmp_path / "bin" / "dmax"
    dmax.parent.mkdir()
    dmax.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\n[ "$1" = train ] || mkdir "$3"\n', encoding="utf-8")
    dmax.chmod(0o755)

    def run(script: Path, *arguments: str) -> list[str]:
        environment = {**os.environ, "PATH": f"{dmax.parent}:{os.environ['PATH']}"}
        subprocess.run(["bash", str(script), *arguments], cwd=tmp_path, env=environment, check=True)
        lines = (tmp_path / "said").read_text(encoding="utf-8").splitlines()
        (tmp_path / "said").unlink()
        return lines

    return run


def test_the_chain_for_smollm2_is_run_in_order(said: Callable[..., list[str]], tmp_path: Path) -> None:
    script = RECIPES / "smollm2-135m" / "train.sh"
    runs = tmp_path / "runs"
    trained = [f"train {script.parent}/{stage}.yaml --output {runs}/smollm2-135m-{stage} --resume" for stage in STAGES]
    adapted = f"{runs}/smollm2-135m-adapted --dtype float32"
    assert said(script) == [f"adapt HuggingFaceTB/SmolLM2-135M-Instruct {adapted}", *trained]
    assert said(script, "model.gguf", "runs", "--data", "a=b") == [f"{line} --data a=b" for line in trained], (
        "adapted already"
    )
    (runs / "smollm2-135m-adapted").rmdir()
    assert said(script, "model.gguf", "runs")[0] == f"adapt model.gguf {adapted}"


def test_the_chain_of_nano_goes_on_behind_its_finished_stages(said: Callable[..., list[str]], tmp_path: Path) -> None:
    script, runs = RECIPES / "nano" / "train.sh", tmp_path / "out" / "runs"
    trained = [f"train {script.parent}/{stage}.yaml --output {runs}/nano-{stage} --resume" for stage in STAGES]
    assert said(script, "out/runs", "--data", "a=b") == [f"{line} --data a=b" for line in trained]
    finished = runs / f"nano-{STAGES[0]}" / "model"
    finished.mkdir(parents=True)
    (finished / "provenance.json").touch()
    assert said(script, "out/runs") == trained[1:]
