"""Model families by ``model_type``: the ones of this package, one file each, and those that other packages register.

A package adds a :class:`Family` through the entry-point group ``dmax.families``, under its model type. Entry points are
looked up when a model type is asked for and loaded only when it is theirs.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from dmax.models.families import (
    a2d_llama,
    a2d_qwen2,
    a2d_qwen3,
    fast_dllm_qwen,
    llada2_moe,
    sdar,
    sdar_moe,
)
from dmax.models.families.base import ConfigError, Family

__all__ = ["DEFAULT", "ENTRY_POINT_GROUP", "ConfigError", "Family", "adapted_family", "family_names", "get_family"]

ENTRY_POINT_GROUP = "dmax.families"

_FILES = (llada2_moe, sdar, sdar_moe, a2d_qwen3, a2d_qwen2, a2d_llama, fast_dllm_qwen)
_BUILT_IN: dict[str, Family] = {file.FAMILY.model_type: file.FAMILY for file in _FILES}
_BY_ANY_NAME = {name: family for family in _BUILT_IN.values() for name in (family.model_type, *family.also)}
DEFAULT = llada2_moe.FAMILY.model_type
"""What a configuration without a model type is."""

_FULL_ATTENTION = ("llada", "llada_moe", "dream")
_ADAPTABLE = tuple(sorted({family.adapted_from for family in _BUILT_IN.values() if family.adapted_from is not None}))
_AUTOREGRESSIVE = ("qwen2_moe", "qwen3_moe", "mistral", "gemma", "gemma2", "gemma3", "phi3")


def family_names() -> list[str]:
    """Return all model types there are: this package's first, then those of other packages in alphabetical order."""
    others = {entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)}
    return [*_BUILT_IN, *sorted(others - _BUILT_IN.keys())]


def get_family(model_type: object) -> Family:
    """Return the family of a model type. This package's own names cannot be taken over.

    Raises:
        ConfigError: there is none, and why that cannot be, where it is known; or a package that registers it is broken.
    """
    if model_type in _BY_ANY_NAME:
        return _BY_ANY_NAME[str(model_type)]
    found = tuple(entry_points(group=ENTRY_POINT_GROUP, name=str(model_type)))
    if not found:
        raise ConfigError(f"model_type is {model_type!r}{_why_not(str(model_type).lower())}")
    if len({entry.value for entry in found}) > 1:
        claims = " and ".join(sorted(entry.value for entry in found))
        raise ConfigError(
            f"family {model_type!r} is registered more than once ({claims}); uninstall all but one package."
        )
    return _load(found[0])


def adapted_family(model_type: object, shifted: bool) -> Family:
    """Return the family that an autoregressive model becomes.

    Args:
        model_type: of the autoregressive model.
        shifted: whether tokens are read one position before their own. A family in which that is fixed is preferred:
            other tools that load it know of it.

    Raises:
        ConfigError: there is none.
    """
    candidates = [family for family in _BUILT_IN.values() if family.adapted_from == model_type]
    fitting = [family for family in candidates if family.fixed.get("shift_logits", shifted) == shifted]
    if not fitting:
        known = str(model_type) in _BY_ANY_NAME
        reason = ", a block-diffusion model already: load it as it is" if known else ""
        raise ConfigError(f"model_type is {model_type!r}{reason}; {', '.join(_ADAPTABLE)} can be adapted.")
    return min(fitting, key=lambda family: "shift_logits" not in family.fixed)


def _why_not(model_type: str) -> str:
    if model_type in _FULL_ATTENTION:
        return ": such models have full attention, not block-causal, and cannot be decoded block by block."
    if model_type in _ADAPTABLE:
        return ": an autoregressive model, not a diffusion model; `dmax adapt` makes one of it."
    if model_type in _AUTOREGRESSIVE:
        return ": an autoregressive model, not a diffusion model."
    return f"; this package loads {', '.join(family_names())}."


def _load(entry: EntryPoint) -> Family:
    try:
        family = entry.load()
    except Exception as error:  # another package's import may raise anything
        raise ConfigError(f"family {entry.name!r} could not be loaded from {entry.value}: {error}.") from error
    if not isinstance(family, Family):
        raise ConfigError(f"family {entry.name!r}: {entry.value} must be a Family.")
    return family
