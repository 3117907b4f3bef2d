"""Checkpoints: what is written is read back, and what went wrong while writing costs nothing that was there before."""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from dmax.training.checkpointing import (
    CheckpointWriteError,
    CheckpointWriter,
    ResumeError,
    RunState,
    checkpoint_folder,
    complete_checkpoints,
    load_checkpoint,
    load_state,
    newest_checkpoint,
)
from dmax.training.muon import StackedMuon

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Trained:
    """A small model with both optimisers."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
        self.optimizers = [
            StackedMuon([self.model[0].weight], lr=0.1),
            torch.optim.AdamW([self.model[0].bias, *self.model[1].parameters()], lr=0.1),
        ]

    def step(self, seed: int) -> None:
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
        self.model(inputs).square().mean().backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def save(self, writer: CheckpointWriter, step: int) -> None:
        writer.save(RunState(step, "abc", 1.5), self.model, self.optimizers)


def companions(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def writer(output: Path, asynchronous: bool = False) -> CheckpointWriter:
    return CheckpointWriter(output, companions, asynchronous=asynchronous)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path: Path, asynchronous: bool) -> None:
    first = Trained(1)
    for seed in (1, 2):
        first.step(seed)
    checkpoints = writer(tmp_path, asynchronous)
    first.save(checkpoints, 2)
    for seed in (3, 4):  # the background write must not see these
        first.step(seed)
    checkpoints.finish()

    second = Trained(9)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert load_state(newest) == RunState(2, "abc", 1.5)
    load_checkpoint(newest, second.model, second.optimizers)
    for seed in (3, 4):
        second.step(seed)
    for ours, theirs in zip(second.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    trained, checkpoints = Trained(1), writer(tmp_path)
    for step in (5, 10, 15):
        trained.save(checkpoints, step)
    assert complete_checkpoints(tmp_path) == [checkpoint_folder(tmp_path, step) for step in (10, 15)]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-0000010", "step-0000015"]


@pytest.mark.parametrize("damage", ["truncate", "remove", "state"])
def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    trained, checkpoints = Trained(1), writer(tmp_path)
    for step in (1, 2):
        trained.save(checkpoints, step)
    folder = checkpoint_folder(tmp_path, 2)
    weights = next((folder / "model").glob("*.safetensors"))
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "remove":
        weights.unlink()
    else:
        (folder / "trainer_state.json").write_text('{"step": 2, "rec')
    assert newest_checkpoint(tmp_path) == checkpoint_folder(tmp_path, 1)


def test_a_run_none_of_whose_checkpoints_is_whole_does_not_start_anew_by_itself(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    Trained(1).save(writer(tmp_path), 1)
    (checkpoint_folder(tmp_path, 1) / "trainer_state.json").unlink()
    with pytest.raises(ResumeError, match="step-0000001 lack files"):
        newest_checkpoint(tmp_path)


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond a few bytes: the system refuses writes as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_on_a_full_disk(trained: Trained, checkpoints: CheckpointWriter) -> None:
    with full_disk():
        trained.save(checkpoints, 2)
        checkpoints.finish()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_is_an_error_that_leaves_the_last_checkpoint_intact(tmp_path: Path, asynchronous: bool) -> None:
    trained, checkpoints = Trained(1), writer(tmp_path, asynchronous)
    trained.save(checkpoints, 1)
    checkpoints.finish()
    refused = r"step 2 could not be written \(File too large\); step-0000001 is still there"
    trained.step(1)
    with pytest.raises(CheckpointWriteError, match=refused):
        save_on_a_full_disk(trained, checkpoints)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000001"]
    other = Trained(2)
    load_checkpoint(complete_checkpoints(tmp_path)[0], other.model, other.optimizers)
    trained.save(checkpoints, 2)
    checkpoints.finish()
    assert newest_checkpoint(tmp_path) == checkpoint_folder(tmp_path, 2)


def write_and_hang(output: str) -> None:
    """Target of a process that is killed while its second checkpoint is being written."""

    def hang_at_the_second(folder: Path) -> None:
        companions(folder)
        if folder.parent.name.startswith("step-0000002"):
            (Path(output) / "writing").touch()
            time.sleep(600)

    checkpoints = CheckpointWriter(Path(output), hang_at_the_second)
    for step in (1, 2):
        Trained(1).save(checkpoints, step)


def test_a_process_killed_while_writing_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=write_and_hang, args=(str(tmp_path),))
    process.start()
    deadline = time.monotonic() + 280
    while not (tmp_path / "writing").exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    assert checkpoint_folder(tmp_path, 2).with_name("step-0000002.partial").is_dir()
    assert newest_checkpoint(tmp_path) == checkpoint_folder(tmp_path, 1)
    Trained(1).save(writer(tmp_path), 2)
    assert newest_checkpoint(tmp_path) == checkpoint_folder(tmp_path, 2)
    shutil.rmtree(tmp_path)


def test_the_state_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """It tells step and recipe, and neither the recipe's text nor the data."""
    Trained(1).save(writer(tmp_path), 1)
    path = checkpoint_folder(tmp_path, 1) / "trainer_state.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({key: values[key] for key in ("step", "recipe_digest", "seconds", "files")}))
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert load_state(newest) == RunState(1, "abc", 1.5)
