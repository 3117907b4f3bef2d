"""The registry of families: another package's is found, and nobody's takes over this package's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from dmax.models import BlockDiffusionLM, ModelConfig, load_config, load_model, save_model
from dmax.models.families import ConfigError, family_names, get_family
from dmax.models.transformer import initialize

SOURCE = """
    from dmax.models.families.base import APART, DENSE, Family

    FAMILY = Family(
        model_type="house",
        architecture="HouseForCausalLM",
        keys={"hidden_size": ("width",)},
        fixed={**DENSE, "shift_logits": True},
        defaults={"default_decoder": "threshold", "mask_token_id": 1, "eos_token_id": 2},
        modules={**APART, "mlp.gate_proj": "mlp.w1"},
        block_length=16,
    )
"""
SIZES = {
    "vocab_size": 24, "width": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """``install(source, name)``: a distribution on the path with a family of that name, as pip would leave it."""
    monkeypatch.syspath_prepend(tmp_path)

    def build(source: str = SOURCE, name: str = "house", package: str = "house_family") -> None:
        (tmp_path / f"{package}.py").write_text(dedent(source), encoding="utf-8")
        monkeypatch.delitem(sys.modules, package, raising=False)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[dmax.families]\n{name} = {package}:FAMILY\n", encoding="utf-8")

    return build


def test_a_family_of_another_package_is_read_and_written(install: Install, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model_type is 'house'; this package loads llada2_moe, sdar"):
        ModelConfig.from_dict({**SIZES, "model_type": "house"})
    install()
    assert family_names()[-1] == "house"
    config = ModelConfig.from_dict({**SIZES, "model_type": "house"})
    assert (config.hidden_size, config.mask_token_id, config.usual_block_length) == (32, 1, 16)
    assert (config.default_decoder, config.shift_logits) == ("threshold", True)
    model = initialize(BlockDiffusionLM(config), torch.Generator().manual_seed(1))
    save_model(model, tmp_path / "saved")
    values = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (values["model_type"], values["architectures"], values["width"]) == ("house", ["HouseForCausalLM"], 32)
    assert load_config(tmp_path / "saved") == config
    again = load_model(tmp_path / "saved").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_names_of_this_package_cannot_be_taken(install: Install) -> None:
    install(name="sdar")
    assert get_family("sdar").architecture == "SDARForCausalLM"
    assert family_names().count("sdar") == 1


def test_a_broken_package_spoils_only_its_own_family(install: Install) -> None:
    install("raise RuntimeError('no such layer')", name="broken")
    assert get_family("sdar").model_type == "sdar"
    with pytest.raises(ConfigError, match="'broken' could not be loaded from house_family:FAMILY: no such layer"):
        get_family("broken")


def test_what_is_no_family_is_refused(install: Install) -> None:
    install("FAMILY = {}")
    with pytest.raises(ConfigError, match="house_family:FAMILY must be a Family"):
        get_family("house")


def test_two_packages_may_not_claim_one_name(install: Install) -> None:
    install()
    install(package="other_family")
    with pytest.raises(ConfigError, match=r"'house' is registered more than once \(house_family.* and other_family"):
        get_family("house")


def test_layers_without_experts_are_told_by_number(tiny_config: Callable[..., ModelConfig]) -> None:
    def sparse(**changes: int | tuple[int, ...]) -> list[int]:
        config = tiny_config(moe=True, num_hidden_layers=6, **{"first_k_dense_replace": 0, **changes})
        return [index for index in range(6) if config.is_moe_layer(index)]

    assert sparse() == [0, 1, 2, 3, 4, 5]
    assert sparse(mlp_only_layers=(0, 3)) == [1, 2, 4, 5]
    assert sparse(decoder_sparse_step=2) == [1, 3, 5]
    assert sparse(decoder_sparse_step=2, mlp_only_layers=(3,), first_k_dense_replace=2) == [5]
