"""Runs on one, two and four processes: the same losses, whatever cuts the model, and checkpoints that all can read."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dmax.models import load_model, load_tokenizer

datasets = pytest.importorskip("datasets")

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["dmax.training.run", "torch.distributed.fsdp", "torch.distributed.checkpoint"])


def train(recipe: str, output: str, resume: bool) -> None:
    """Target of a process: a run, its last words kept where the test can read them."""
    from dmax.training.run import run_recipe

    try:
        run_recipe(Path(recipe), Path(output), resume)
    except Exception as error:
        Path(f"{output}.error-{os.environ.get('RANK', '0')}").write_text(f"{type(error).__name__}: {error}")
        raise


def member(rank: int, world: int, port: int, arguments: tuple[str, str, bool]) -> None:
    """One of the processes that ``torchrun`` would start."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
    }
    train(*arguments)


def run(recipe: Path, output: Path, world: int | None, resume: bool = False) -> list[str]:
    """Run a recipe on so many processes, or without a launcher (None); returns what went wrong."""
    arguments = (str(recipe), str(output), resume)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if world is None:
        processes = [CONTEXT.Process(target=train, args=arguments)]
    else:
        processes = [CONTEXT.Process(target=member, args=(rank, world, port, arguments)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=280)
        process.kill()
    return [path.read_text() for path in sorted(output.parent.glob(f"{output.name}.error-*"))]


def losses(output: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["HF_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [{"question": f"{i} + {i + 3} =", "answer": f"{2 * i + 3} " * (1 + i % 5)} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(folder: Path, data: Path, parallel: dict[str, Any] | None = None, **sections: Any) -> Path:
    """A model of three layers, four passes a step in float32."""
    model = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "num_experts": 6, "num_experts_per_tok": 2, "num_shared_experts": 1,
        "moe_intermediate_size": 8, "first_k_dense_replace": 1, "initializer_range": 0.2,
    }  # fmt: skip
    values: dict[str, Any] = {
        "name": "processes",
        "seed": 3,
        "model": {"config": model},
        "tokenizer": {"vocab_size": 300},
        "data": [{"source": "jsonl", "path": str(data)}],
        "objective": {"kind": "oput", "block_length": 8},
        "optimizer": {"adamw_lr": 0.01, "router_bias_rate": 0.001},
        "train": {"steps": 4, "rows": 2, "accumulation": 4, "context": 64, "dtype": "float32", "device": "cpu"}
        | {"checkpoint_every": 2, "validation_rows": 0},
        "parallel": parallel or {},
    }
    for name, section in sections.items():
        values[name] = values[name] | section
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that no launcher started."""
    folder = tmp_path_factory.mktemp("alone")
    assert run(recipe(folder, data), folder / "run", None) == []
    return folder / "run"


@pytest.fixture(scope="module")
def pair(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes, which writes its checkpoints in the background."""
    folder = tmp_path_factory.mktemp("pair")
    settings = {"asynchronous_checkpoints": True}
    assert run(recipe(folder, data, settings), folder / "run", 2) == []
    return folder / "run"


def test_two_processes_give_the_losses_of_one(alone: Path, pair: Path) -> None:
    assert len(losses(alone)) == 4
    assert losses(pair) == pytest.approx(losses(alone), abs=1e-5)


@pytest.mark.parametrize(
    ("world", "parallel"),
    [(4, {"replicas": 2, "recompute": True}), (1, {"cpu_offload": True})],
    ids=["four-in-two-copies", "one-sharded"],
)
def test_every_number_of_processes_gives_the_same_losses(
    alone: Path, data: Path, tmp_path: Path, world: int, parallel: dict[str, Any]
) -> None:
    assert run(recipe(tmp_path, data, parallel), tmp_path / "run", world) == []
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), abs=1e-5)


@pytest.mark.parametrize(
    ("sections", "tolerance"),
    [
        ({"objective": {"form": "alternate", "rollout": "sampled"}}, 1e-5),
        # Muon iterates in bfloat16, which turns the last bit of a gradient into one of its own.
        ({"optimizer": {"muon_lr": 0.01}}, 1e-3),
    ],
    ids=["rows-of-both-losses", "muon"],
)
def test_rollouts_and_whole_matrices_need_no_whole_model(
    data: Path, tmp_path: Path, sections: dict[str, Any], tolerance: float
) -> None:
    for name, world in (("one", None), ("two", 2)):
        assert run(recipe(tmp_path, data, **sections), tmp_path / name, world) == []
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=tolerance)


@pytest.mark.parametrize("world", [None, 2])
def test_a_run_resumes_on_another_number_of_processes_past_a_torn_checkpoint(
    alone: Path, pair: Path, data: Path, tmp_path: Path, world: int | None
) -> None:
    """A run of two processes goes on in one, and the other way round, from the last checkpoint but one."""
    started = pair if world is None else alone
    output = tmp_path / "run"
    shutil.copytree(started, output)
    torn = next((output / "checkpoints" / "step-0000004" / "optimizer").glob("*.safetensors"))
    torn.write_bytes(torn.read_bytes()[:-8])
    shutil.rmtree(output / "model")
    assert run(recipe(tmp_path, data), output, world, resume=True) == []
    assert losses(output) == pytest.approx(losses(alone), abs=1e-5)
    ours, theirs = (load_model(folder / "model").state_dict() for folder in (output, alone))
    for name, tensor in theirs.items():  # orthogonalised updates are bfloat16: a sum in another order may turn a bit
        torch.testing.assert_close(ours[name], tensor, atol=4e-5, rtol=0)


def test_the_weights_of_a_checkpoint_are_a_model(pair: Path) -> None:
    """Of two processes too: what each wrote is put together."""
    folder = pair / "checkpoints" / "step-0000004" / "model"
    final = load_model(pair / "model").state_dict()
    assert all(torch.equal(tensor, final[name]) for name, tensor in load_model(folder).state_dict().items())
    assert load_tokenizer(folder) is not None


def test_a_loss_that_is_no_number_stops_the_run_with_its_batches(data: Path, tmp_path: Path) -> None:
    (error,) = run(recipe(tmp_path, data, optimizer={"adamw_lr": 1e30}), tmp_path / "run", None)
    assert error.startswith("TrainingDiverged: step")
    assert list((tmp_path / "run" / "diverged").glob("*.safetensors"))


def test_passes_that_cannot_be_shared_evenly_are_refused(data: Path, tmp_path: Path) -> None:
    errors = run(recipe(tmp_path, data, train={"accumulation": 3}), tmp_path / "run", 2)
    assert len(errors) == 2
    assert all(error.startswith("RecipeError: train.accumulation is 3 forward passes a step") for error in errors)
