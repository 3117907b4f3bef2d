"""Whole runs of the smoke recipe: killed and resumed, on one process and on two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("reasoning_gym")

RECIPE = Path(__file__).parents[2] / "recipes" / "smoke" / "oput.yaml"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses(output: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in metrics(output)}


def command(recipe: Path, output: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "dmax.training", str(recipe), "--output", str(output), *options]


def edited(
    folder: Path, optimizer: dict[str, Any] | None = None, objective: dict[str, Any] | None = None, **train: Any
) -> Path:
    """The smoke recipe with other values in its ``optimizer`` and ``train`` sections, or another ``objective``."""
    values = yaml.safe_load(RECIPE.read_text())
    values["train"] |= train
    values["optimizer"] |= optimizer or {}
    values["objective"] = objective or values["objective"]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(RECIPE, output), check=True, env=ENVIRONMENT, capture_output=True, timeout=300)
    return output


def test_a_run_leaves_metrics_checkpoints_and_a_loadable_model(finished: Path) -> None:
    from dmax.models.checkpoint import load_model, load_tokenizer

    rows = metrics(finished)
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert {"loss_mask", "loss_pred", "accuracy_mask", "accuracy_pred", "tokens_per_second"} <= rows[0].keys()
    model, tokenizer = load_model(finished / "model"), load_tokenizer(finished / "model")
    assert tokenizer is not None
    assert model.config.block_length == 32
    assert tokenizer.eos_token_id == model.config.eos_token_id != model.config.mask_token_id == tokenizer.mask_token_id
    assert len(tokenizer.encode("1234")) == 4


def test_a_run_from_a_quantised_model_trains_all_of_its_weights(finished: Path, tmp_path: Path) -> None:
    from dmax.models.checkpoint import load_model
    from dmax.models.convert import Quantization, convert_checkpoint
    from dmax.models.quantized import widen

    small = tmp_path / "small"
    convert_checkpoint(finished / "model", small, quantization=Quantization("int8", embeddings="int8"))
    recipe = edited(tmp_path, steps=2, generate_rows=0)
    values = yaml.safe_load(recipe.read_text())
    values["model"] = values["tokenizer"] = {"start_from": str(small)}
    recipe.write_text(yaml.safe_dump(values))
    subprocess.run(command(recipe, tmp_path / "run"), check=True, env=ENVIRONMENT, capture_output=True, timeout=300)
    before, after = load_model(small), load_model(tmp_path / "run" / "model")
    widen(before, torch.float32)
    start, trained = dict(before.named_parameters()), dict(after.named_parameters())
    assert start.keys() == trained.keys()
    assert [name for name, tensor in start.items() if torch.equal(tensor, trained[name].float())] == []


def test_a_killed_run_resumes_with_the_losses_of_the_uninterrupted_one(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = subprocess.Popen(command(RECIPE, output), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (output / "metrics.jsonl").exists() or len(metrics_lines(output)) < 23:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(metrics_lines(output)) < 40
    subprocess.run(command(RECIPE, output, "--resume"), check=True, env=ENVIRONMENT, capture_output=True, timeout=300)
    assert losses(output) == losses(finished)
    ours, theirs = ((folder / "model" / "model.safetensors").read_bytes() for folder in (output, finished))
    assert ours == theirs
    provenance = json.loads((output / "model" / "provenance.json").read_text())
    assert [start["step"] for start in provenance["starts"]] == [0, 20]
    assert all({"git_commit", "hardware", "versions"} <= start.keys() for start in provenance["starts"])
    assert provenance["steps"] == 40 and provenance["recipe"]["seed"] == yaml.safe_load(RECIPE.read_text())["seed"]
    assert provenance["hours"] > 0 and provenance["positions"] > 40 * 100
    assert provenance["validation"][-1]["step"] == 40


def metrics_lines(output: Path) -> list[str]:
    return (output / "metrics.jsonl").read_text().splitlines()


def test_weights_are_kept_after_shares_of_a_run(tmp_path: Path) -> None:
    """As the run left them: in one step of training the smoke recipe moves every matrix."""
    from dmax.models.checkpoint import load_model

    recipe = edited(tmp_path, steps=4, snapshots=[0.01, 0.5, 1.0], checkpoint_every=2)
    subprocess.run(command(recipe, tmp_path / "run"), check=True, env=ENVIRONMENT, capture_output=True, timeout=300)
    kept = sorted((tmp_path / "run" / "snapshots").iterdir())
    assert [folder.name for folder in kept] == ["step-0000001", "step-0000002", "step-0000004"]
    first, half, last, final = (
        load_model(folder).state_dict()["lm_head.weight"] for folder in (*kept, tmp_path / "run" / "model")
    )
    assert last.equal(final) and not half.equal(last) and not first.equal(half)
    resumed = load_model(tmp_path / "run" / "checkpoints" / "step-0000002" / "model").state_dict()["lm_head.weight"]
    assert half.equal(resumed)


def test_a_run_on_soft_rollouts_lowers_both_losses(tmp_path: Path) -> None:
    rollout = {"rollout_passes": 2, "rollout_states": "soft", "rollout_threshold": [0.0, 0.9]}
    objective = {"kind": "oput", "block_length": 16, **rollout}
    recipe = edited(tmp_path, objective=objective, steps=24, accumulation=2, checkpoint_every=24, validate_every=24)
    subprocess.run(command(recipe, tmp_path / "run"), check=True, env=ENVIRONMENT, capture_output=True, timeout=300)
    rows = metrics(tmp_path / "run")
    for name in ("loss_mask", "loss_pred"):
        assert rows[-1][name] < 0.9 * rows[0][name]


@pytest.mark.parametrize("form", ["joint", "alternate"])
def test_a_run_on_groups_of_blocks_lowers_both_losses(tmp_path: Path, form: str) -> None:
    objective = {"kind": "oput", "block_length": 16, "form": form, "group": {"size": 3}}
    recipe = edited(tmp_path, objective=objective, steps=24, accumulation=2, checkpoint_every=24, validate_every=24)
    subprocess.run(command(recipe, tmp_path / "run"), check=True, env=ENVIRONMENT, capture_output=True, timeout=300)
    rows = metrics(tmp_path / "run")
    for name in ("loss_mask", "loss_pred"):
        assert rows[-1][name] < 0.9 * rows[0][name]


def test_a_masked_run_smooths_the_labels_that_its_recipe_says(tmp_path: Path) -> None:
    """Smoothed labels cannot be foretold, so what is left of the loss is higher."""
    plain: dict[str, Any] = {"kind": "masked", "block_length": 16}
    last = []
    for objective in (plain, plain | {"far_smoothing": {"share": 0.9, "near": 1}}):
        recipe = edited(tmp_path, objective=objective, steps=15, validate_every=1000)
        output = tmp_path / str(len(last))
        subprocess.run(command(recipe, output), check=True, env=ENVIRONMENT, capture_output=True, timeout=300)
        last.append(losses(output)[15])
    assert last[1] > last[0] + 0.3


def test_validation_answers_problems_by_generation(tmp_path: Path) -> None:
    recipe = edited(tmp_path, steps=2, validate_every=2, generate_rows=2, generate_with="soft-parallel")
    by_command = [sys.executable, "-m", "dmax", "train", str(recipe), "--output", str(tmp_path / "run")]
    told = subprocess.run(by_command, check=True, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert told.stdout.strip() == str(tmp_path / "run" / "model")
    first, last = metrics(tmp_path / "run")
    assert {"validation_exact", "validation_accuracy", "validation_tpf"} <= last.keys() - first.keys()
    assert last["validation_tpf"] > 0
    without_engine = subprocess.run(
        command(recipe, tmp_path / "other"), check=False, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert without_engine.returncode == 2
    assert "generate_rows needs the engine" in without_engine.stderr
    assert not (tmp_path / "other").exists()


def test_resuming_with_another_recipe_is_refused(finished: Path, tmp_path: Path) -> None:
    from dmax.training.run import run_recipe

    with pytest.raises(ValueError, match=r"different recipe: train\.rows \(was 4, is 3\)"):
        run_recipe(edited(tmp_path, rows=3), finished, resume=True)


def test_a_run_on_rows_of_ones_own_is_validated_on_some_and_knows_them_again(tmp_path: Path) -> None:
    """It is made longer, and refused once a row has changed."""
    from dmax.evaluation.validation import validator
    from dmax.training.checkpointing import ResumeError
    from dmax.training.run import run_recipe, show_rows

    rows = tmp_path / "rows.jsonl"
    lines = [json.dumps({"question": f"Say {i}.", "answer": str(i)}) for i in range(20)]
    rows.write_text("\n".join(lines))

    def recipe(steps: int) -> Path:
        values = yaml.safe_load(RECIPE.read_text()) | {"data": [{"source": "jsonl", "path": str(rows)}]}
        values["train"] |= {"steps": steps, "validate_every": 2, "validation_share": 0.2, "generate_rows": 9}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    output = tmp_path / "run"
    run_recipe(recipe(2), output, validator=validator)
    assert json.loads((output / "data.json").read_text()) == {
        str(rows): {"examples": 16, "dropped": 0, "empty": 0, "validation": 4}
    }
    assert {"validation_exact", "validation_accuracy", "validation_tpf"} <= metrics(output)[-1].keys()
    answered = [json.loads(line) for line in (output / "validation.jsonl").read_text().splitlines()]
    assert {(row["prompt"].strip(), row["reference"]) for row in answered} < {(f"Say {i}.", str(i)) for i in range(20)}
    assert len(answered) == 4
    (row,) = show_rows(recipe(2), 1, output)
    assert "".join(text for text, supervised in row if supervised).endswith("<|endoftext|>")
    run_recipe(recipe(4), output, resume=True, validator=validator)
    assert [row["step"] for row in metrics(output)] == [1, 2, 3, 4]
    rows.write_text("\n".join([lines[0].replace("0", "7"), *lines[1:]]))
    with pytest.raises(ResumeError, match=r"rows of data\.0 \(jsonl\) are not those"):
        run_recipe(recipe(6), output, resume=True, validator=validator)


def test_an_output_that_holds_a_run_is_not_overwritten(finished: Path) -> None:
    from dmax.training.run import run_recipe
    from dmax.training.section import RecipeError

    with pytest.raises(RecipeError, match="--resume"):
        run_recipe(RECIPE, finished)
