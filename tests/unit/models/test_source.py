"""Finding checkpoints, and what is said of those that are not whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors

from dmax.models import BlockDiffusionLM, CheckpointError, load_model, resolve, save_model
from dmax.models.source import listing

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(model: BlockDiffusionLM, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "sharded", max_shard_bytes=20_000)
    return tmp_path / "sharded"


def edit_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_a_local_folder_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(folder) == folder
    assert resolve(str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    assert resolve("checkpoint") == Path("checkpoint")


def test_an_embedded_name_never_means_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nano").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dmax.models.source.files", lambda _: tmp_path / "package")
    with pytest.raises(CheckpointError, match="'nano' is not part of this installation"):
        resolve("nano")
    (tmp_path / "package" / "assets" / "nano").mkdir(parents=True)
    assert resolve("nano") == tmp_path / "package" / "assets" / "nano"
    assert resolve("./nano") == Path("nano")


@pytest.mark.parametrize("name", ["no-such-model", "a/b/c", "/no/such/folder", "../x/y", "owner/", "", "-o/x"])
def test_a_name_that_means_nothing(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"is not a folder here, not an embedded model|not a checkpoint folder"):
        load_model(name)


def test_a_path_object_is_never_a_hub_id() -> None:
    with pytest.raises(CheckpointError, match="No model 'owner/name'"):
        resolve(Path("owner/name"))


def test_a_file_is_not_a_checkpoint(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file"):
        load_model(folder / "model.safetensors")


def test_the_hub_is_asked_for_weights_and_text_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def snapshot(hub_id: str, allow_patterns: list[str]) -> str:
        asked.update(id=hub_id, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert resolve("owner/name") == folder
    patterns = asked["patterns"]
    assert asked["id"] == "owner/name"
    assert isinstance(patterns, list)
    wanted = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", INDEX, "tokenizer.json"]
    unwanted = ["modeling_llada2_moe.py", "pytorch_model.bin", "model.pt", "optimizer.safetensors", "README.md"]
    assert list(huggingface_hub.utils.filter_repo_objects(wanted + unwanted, allow_patterns=patterns)) == wanted


HUB_FAILURES = [
    # These two are made of a server's response, which says nothing here.
    (errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError), "has no such model, or it is private"),
    (errors.GatedRepoError.__new__(errors.GatedRepoError), "accounts that were granted access"),
    (errors.LocalEntryNotFoundError("offline"), "cannot be reached"),
    (errors.HFValidationError("bad id"), r"failed \(HFValidationError: bad id\)"),
    (TimeoutError("slow"), r"failed \(TimeoutError: slow\)"),
    (OSError(28, "No space left on device"), "No space left on device"),
]


@pytest.mark.parametrize(("failure", "reason"), HUB_FAILURES, ids=[type(f).__name__ for f, _ in HUB_FAILURES])
def test_what_is_said_when_the_hub_gives_nothing(
    failure: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot(*_: object, **__: object) -> str:
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(CheckpointError, match=f"^Model 'owner/name' is not a folder here, and .*{reason}"):
        load_model("owner/name")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a checkpoint folder: it has no config\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1, 2]"])
def test_a_broken_config(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json (cannot be read as JSON|must hold a JSON object)"):
        load_model(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_a_truncated_file(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors file"):
        load_model(folder)


@pytest.mark.parametrize("content", [b"version 2\n", b"\x00" * 64, b"PK\x03\x04" * 30])
def test_a_file_of_another_kind(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors file"):
        load_model(folder)


def test_a_truncated_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=f"{shard.name} is not a whole safetensors file"):
        load_model(sharded)


def test_a_missing_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"lacks {shard.name}"):
        load_model(sharded)


def test_an_index_at_odds_with_its_files(sharded: Path) -> None:
    shards = sorted(path.name for path in sharded.glob("*.safetensors"))

    def misplace(weight_map: dict[str, str]) -> None:
        weight_map["lm_head.weight"] = next(shard for shard in shards if shard != weight_map["lm_head.weight"])

    edit_index(sharded, misplace)
    with pytest.raises(CheckpointError, match=r"not in their files: lm_head\.weight"):
        load_model(sharded)


def test_an_index_that_leaves_the_folder(sharded: Path, folder: Path) -> None:
    edit_index(sharded, lambda weight_map: weight_map.update(dict.fromkeys(weight_map, f"../{folder.name}/x")))
    with pytest.raises(CheckpointError, match="files outside the folder"):
        load_model(sharded)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_an_index_without_a_map(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match="has no weight_map"):
        load_model(sharded)


def test_listing_counts_what_it_leaves_out() -> None:
    assert listing(["a", "b"]) == "a, b"
    assert listing((str(i) for i in range(9)), most=2) == "0, 1 and 7 more"
