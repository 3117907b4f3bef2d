"""Checkpoints that other tools left, and downloads that broke off, each recognised in one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch

from dmax.models import CheckpointError, load_model, load_tokenizer

Tensors = dict[str, torch.Tensor]


@pytest.mark.parametrize(
    ("prefix", "mend"),
    [
        ("_orig_mod.", "torch.compile"),
        ("module.", "DataParallel"),
        ("base_model.model.", "merge_and_unload"),
        ("_fsdp_wrapped_module.", "gather the whole state dict"),
        ("state_dict.", "begin with model"),
    ],
)
def test_a_wrapper_that_named_all_tensors_is_recognised(edit: Callable[..., Path], prefix: str, mend: str) -> None:
    def rename(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    with pytest.raises(CheckpointError, match=f"are all called {prefix}.*{mend}"):
        load_model(edit(rename))


def test_an_adapter_is_no_model(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds a PEFT adapter, not a model"):
        load_model(tmp_path / "adapter")
    (folder / "adapter_config.json").write_text("{}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds a PEFT adapter, not a model"):
        load_model(folder)


@pytest.mark.parametrize("link", [False, True])
def test_a_download_that_broke_off_is_recognised(folder: Path, link: bool) -> None:
    weights = folder / "model.safetensors"
    weights.rename(folder / "model.safetensors.incomplete")
    if link:  # as the Hub's cache has them
        (folder / "model.safetensors.incomplete").unlink()
        weights.symlink_to("../blobs/0123")
    with pytest.raises(
        CheckpointError, match=r"was not fetched whole \(model\.safetensors.*fetch the checkpoint again"
    ):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_small_file_that_was_not_fetched_is_recognised(folder: Path, name: str) -> None:
    load = load_model if name == "config.json" else load_tokenizer
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(folder / "tokenizer.json"))
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../blobs/0123")  # as the Hub's cache has them
    with pytest.raises(CheckpointError, match=rf"was not fetched whole \({re.escape(name)}\): fetch"):
        load(folder)
    (folder / name).unlink()
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} is a Git LFS pointer, .*run `git lfs pull`"):
        load(folder)


def test_a_file_that_was_not_fetched_is_recognised(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match="is a Git LFS pointer, not the weights: run `git lfs pull`"):
        load_model(folder)


@pytest.mark.parametrize(
    ("part", "mend"),
    [("_orig_mod.", "torch.compile"), ("_fsdp_wrapped_module.", "FSDP"), ("_checkpoint_wrapped_module.", "activation")],
)
@pytest.mark.parametrize("before", ["model.layers.", "model.layers.1."])
def test_a_wrapper_of_a_part_of_the_model_is_recognised(
    edit: Callable[..., Path], part: str, mend: str, before: str
) -> None:
    def rename(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith(before)]:
            tensors[name.replace(before, before + part)] = tensors.pop(name)

    with pytest.raises(CheckpointError, match=f"are called as {before}.*{part}.*{mend}.*take {part} out"):
        load_model(edit(rename))


def test_an_adapter_without_its_configuration_is_no_model(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="holds a PEFT adapter, not a model"):
        load_model(folder)


@pytest.mark.parametrize("ending", ["part", "crdownload", "download", "tmp"])
def test_a_file_that_another_program_is_fetching_is_recognised(folder: Path, ending: str) -> None:
    (folder / "model.safetensors").rename(folder / f"model.safetensors.{ending}")
    with pytest.raises(CheckpointError, match=rf"was not fetched whole \(model\.safetensors\.{ending}\)"):
        load_model(folder)


def test_a_file_that_has_its_size_before_its_content_is_recognised(folder: Path) -> None:
    (folder / "model.safetensors.aria2").touch()
    with pytest.raises(CheckpointError, match=r"was not fetched whole \(model\.safetensors\.aria2\)"):
        load_model(folder)
