"""Every family goes wherever the first one goes: commands, server, training, conversion, shares."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from typer.testing import CliRunner, Result

from dmax import LLM, EngineConfig, GenerationParams, LLMEngine
from dmax.cli import app
from dmax.measurement.passes import PassDriver
from dmax.models import BlockDiffusionLM, load_config, load_model, load_tokenizer
from dmax.models.convert import Quantization, convert_checkpoint
from dmax.models.parallel import tensor_parallel
from dmax.training.adapters import Adapters
from dmax.training.data import Example, generator_for
from dmax.training.layout import lay_out
from dmax.training.predictor import Predictor
from dmax.training.recipe import LoraSection
from dmax.training.run import run_recipe

SHORT = ("--gen-length", "8", "--block-length", "4")
ROWS = [{"question": f"w{3 + i} w7", "answer": f"w9\n#### {i}"} for i in range(2)]
PARAMS = GenerationParams(gen_length=8, block_length=4)


def run(*arguments: object, stdin: str | None = None) -> Result:
    runner = CliRunner(env={"FORCE_COLOR": None, "NO_COLOR": "1", "COLUMNS": "100"})
    return runner.invoke(app, [str(argument) for argument in arguments], input=stdin, catch_exceptions=False)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_generate_and_chat(checkpoint: Path) -> None:
    llm = LLM(checkpoint)
    [output] = llm.generate([LLM.chat_prompt("w7 w8")], PARAMS)
    told = run("generate", "w7 w8", "--model", checkpoint, *SHORT, "--json")
    assert (told.exit_code, json.loads(told.stdout)["text"]) == (0, output.text)
    chatted = run("chat", "--model", checkpoint, *SHORT, stdin="w7 w8\n")
    assert (chatted.exit_code, chatted.stdout.strip()) == (0, (output.text or "").strip())


def test_info(checkpoint: Path, family: str) -> None:
    facts = json.loads(run("info", checkpoint, "--json").stdout)
    assert facts["architecture"]["family"] == family
    assert facts["architecture"]["block_length"] == load_config(checkpoint).block_length
    assert facts["parameters"]["total"] == sum(p.numel() for p in load_model(checkpoint).parameters())
    assert run("info", checkpoint).stdout.count(family) >= 1


def test_serve(checkpoint: Path) -> None:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from dmax.serving.app import create_app
    from dmax.serving.settings import ServerSettings

    llm = LLM(checkpoint)
    assert llm.tokenizer is not None
    engine = LLMEngine(llm.model, llm.tokenizer, EngineConfig(page_length=8, kv_memory=2**22))
    settings = ServerSettings("it", block_length=4, default_gen_length=8, max_gen_length=64)
    body = {"model": "it", "messages": LLM.chat_prompt("w7 w8")}
    with TestClient(create_app(engine, llm.tokenizer, settings)) as client:
        reply = client.post("/v1/chat/completions", json=body).json()
        page = client.get("/web/settings.json").json()
    [output] = llm.generate([LLM.chat_prompt("w7 w8")], PARAMS)
    assert reply["choices"][0]["message"]["content"] == output.text
    assert page["decoders"][0]["name"] == output.decoder == "threshold"


def test_eval(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    rows = write_lines(tmp_path / "rows.jsonl", ROWS)
    told = run("eval", "--model", checkpoint, "--tasks", "gsm8k", "--data", rows, "--out", tmp_path / "run", *SHORT)
    assert told.exit_code == 0, told.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["decoder"], results["params"]["block_length"]) == ("threshold", 4)
    assert results["tasks"]["gsm8k"]["metrics"]["failed"] == 0


def test_distill(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": row["question"], "id": "x"} for row in ROWS[:1]])
    told = run("distill", "--model", checkpoint, "--data", prompts, "--out", tmp_path / "out", *SHORT)
    assert told.exit_code == 0, told.output
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]["prompts"] == 1


RECIPE = """
name: family
seed: 1
model: {{start_from: "{checkpoint}"}}
tokenizer: {{start_from: "{checkpoint}"}}
data: [{{source: jsonl, path: "{rows}"}}]
objective: {{kind: oput, block_length: 4, mask_ratio: 0.75}}
optimizer: {{adamw_lr: 0.01}}
train: {{steps: 2, rows: 2, context: 64, dtype: float32, device: cpu, validation_rows: 1, validate_every: 2}}
"""


def test_training_by_a_recipe(checkpoint: Path, family: str, tmp_path: Path) -> None:
    rows = write_lines(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(checkpoint=checkpoint, rows=rows))
    folder = run_recipe(tmp_path / "recipe.yaml", tmp_path / "run")
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[1]["loss_mask"] < metrics[0]["loss_mask"]
    assert load_config(folder) == replace(load_config(checkpoint), block_length=4)
    before, after = (load_file(place / "model.safetensors") for place in (checkpoint, folder))
    assert before.keys() == after.keys()
    unchanged = {name for name, tensor in after.items() if torch.equal(tensor, before[name])}
    # Of two layers, a token goes to half of the experts only.
    assert all(".experts." in name for name in unchanged), unchanged


def test_training_by_adapters(checkpoint: Path) -> None:
    pytest.importorskip("peft")
    model = load_model(checkpoint)
    ids = torch.randint(3, 48, (2, 8), generator=generator_for(2)).tolist()
    layout = lay_out([Example(tuple(row), (False,) * 3 + (True,) * 5) for row in ids], 4, pad_token_id=0)
    with torch.no_grad():
        before = Predictor(model, torch.float32)(layout.noisy_ids, layout)
    adapters = Adapters(model, LoraSection(rank=2, alpha=4.0), generator_for(3))
    predict = Predictor(model, torch.float32, adapters=adapters)
    torch.testing.assert_close(predict(layout.noisy_ids, layout), before)
    predict(layout.noisy_ids, layout).square().mean().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_B" in name)
    assert predict.finished_model() is model


@pytest.mark.parametrize("weights", ["int8", "fp8"])
def test_conversion(checkpoint: Path, weights: Any, tmp_path: Path) -> None:
    model = load_model(checkpoint)
    convert_checkpoint(checkpoint, tmp_path / "merged", "merged")
    convert_checkpoint(tmp_path / "merged", tmp_path / "again", "separate")
    theirs, again = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "again"))
    assert theirs.keys() == again.keys() and all(torch.equal(theirs[name], again[name]) for name in theirs)
    errors = convert_checkpoint(checkpoint, tmp_path / "small", quantization=Quantization(weights))
    assert errors and all(0 < error.relative_error < 0.05 for error in errors)
    names = load_file(tmp_path / "small" / "model.safetensors").keys()
    assert any(name.endswith("q_proj.weight_scale") for name in names)
    small = load_model(tmp_path / "small")
    ids = torch.randint(3, 48, (1, 12), generator=generator_for(1))
    expected = model.logits(ids, 4)
    assert 0 < (small.logits(ids, 4) - expected).std() < (0.05 if weights == "int8" else 0.15) * expected.std()
    [output] = LLM(small).generate([[5, 6, 7]], PARAMS)
    assert len(output.token_ids) > 0


def _share(rank: int, folder: Path, checkpoints: list[Path]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    found = [_said(tensor_parallel(load_model(checkpoint), mesh)) for checkpoint in checkpoints]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _said(model: BlockDiffusionLM) -> dict[str, Any]:
    [output] = LLM(model).generate([[5, 6, 7]], PARAMS)
    return {"tokens": output.token_ids, "logits": model.logits(torch.tensor([[5, 6, 7, 8, 9]]), 4).tolist()}


def test_tensor_parallelism(make: Callable[..., Any], tmp_path: Path) -> None:
    from dmax.models.families import family_names

    names = [name for name in family_names() if name != "llada2_moe"]
    checkpoints = [make(name).folder for name in names]
    checkpoints.append(make("a2d-llama", attention_bias=True).folder)  # a bias behind a sum over processes
    context = multiprocessing.get_context("fork")
    members = [context.Process(target=_share, args=(rank, tmp_path, checkpoints)) for rank in range(2)]
    for member in members:
        member.start()
    expected = [_said(load_model(checkpoint)) for checkpoint in checkpoints]
    for member in members:
        member.join(timeout=300)
        assert member.exitcode == 0
    for rank in range(2):
        for name, found, whole in zip(
            [*names, "bias"], json.loads((tmp_path / f"{rank}.json").read_text()), expected, strict=True
        ):
            assert found["tokens"] == whole["tokens"], name
            torch.testing.assert_close(torch.tensor(found["logits"]), torch.tensor(whole["logits"]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("blocks", [1, 2])
def test_passes_are_timed(family: str, make: Callable[..., Any], blocks: int) -> None:
    model = load_model(make(family, max_position_embeddings=512).folder)
    length = model.config.usual_block_length
    driver = PassDriver(model, batch=2, context=2 * length, positions=blocks * length)
    assert len(driver.run(3)) == 3


def test_a_tokenizer_that_does_not_name_its_mask_token(make: Callable[..., Any], tmp_path: Path) -> None:
    """The family knows what it is called, and as a last resort its id."""
    from dmax.models import CheckpointError

    values = json.loads((make("sdar").folder / "config.json").read_text())
    del values["mask_token_id"]
    tokenizer = load_tokenizer(make("sdar").folder)
    assert tokenizer is not None
    del tokenizer.settings["mask_token"]
    tokenizer.pipeline.add_special_tokens(["<|MASK|>"])
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**values, "vocab_size": 64}))
    assert load_config(tmp_path).mask_token_id == 48
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="mask_token_id is 151669, outside the vocabulary of 64"):
        load_config(tmp_path)
