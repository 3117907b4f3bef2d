"""What ``import dmax`` gives, and what it must not cost."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dmax


@pytest.mark.parametrize("name", dmax.__all__)
def test_every_public_name_exists(name: str) -> None:
    value = getattr(dmax, name)
    assert value.__name__ == name
    assert name in dir(dmax)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'dmax' has no attribute 'Llm'"):
        _ = dmax.Llm


@pytest.mark.parametrize("module", ["dmax", "dmax.engine"])
def test_importing_does_not_load_torch(module: str) -> None:
    check = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
