"""Objectives by name: the ones of this package, and those that other packages register.

A package adds an objective through the entry-point group ``dmax.objectives``. Entry points are looked up when a name
is asked for and loaded only when it is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import field_validator
from pydantic_core import PydanticCustomError

from dmax.training.objectives.base import Objective
from dmax.training.objectives.calibrated import Calibrated, CalibratedOptions
from dmax.training.objectives.consistency import Consistency, ConsistencyOptions
from dmax.training.objectives.dparallel import DParallel, DParallelOptions
from dmax.training.objectives.entropy_weighted import EntropyWeighted, EntropyWeightedOptions
from dmax.training.objectives.masked import Masked, MaskedOptions
from dmax.training.objectives.options import CommonOptions, ObjectiveSection
from dmax.training.objectives.oput import Oput, OputOptions
from dmax.training.objectives.oput_indel import OputIndel
from dmax.training.objectives.uniform import Uniform
from dmax.training.section import RecipeError

ENTRY_POINT_GROUP = "dmax.objectives"

_BUILT_IN: dict[str, type[Objective[Any]]] = {
    kind.name: kind for kind in (Masked, Oput, Uniform, DParallel, OputIndel, Consistency, Calibrated, EntropyWeighted)
}


class BuiltInSection(
    EntropyWeightedOptions,
    CalibratedOptions,
    ConsistencyOptions,
    ObjectiveSection,
    MaskedOptions,
    DParallelOptions,
    OputOptions,
):
    """The options of most objectives here, side by side: a recipe changes its ``kind`` and keeps the rest.

    The order of the bases is that of the keys in the fingerprint of a run, so none is added: the section of a new
    objective is checked by itself.
    """

    @field_validator("kind")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        if kind not in _BUILT_IN:
            raise PydanticCustomError("literal_error", "Input should be {known}", {"known": _one_of(objective_names())})
        return kind


def objective_names() -> list[str]:
    """Return all objectives there are: this package's first, then those of other packages in alphabetical order."""
    others = {entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)}
    return [*_BUILT_IN, *sorted(others - _BUILT_IN.keys())]


def section_of(kind: object) -> type[CommonOptions]:
    """Return what the ``objective`` section of a kind is checked by; a kind that is not known is refused by it.

    Raises:
        RecipeError: the package that registers the objective is broken.
    """
    if not isinstance(kind, str) or kind not in objective_names():
        return BuiltInSection
    section = _class(kind).section
    return BuiltInSection if kind in _BUILT_IN and issubclass(BuiltInSection, section) else section


def parse_section(values: object) -> object:
    """Check an ``objective`` section by its kind's options; anything but a mapping is given back as it is.

    Raises:
        ValueError: a key or value is not for this objective.
    """
    if not isinstance(values, Mapping):
        return values
    section = section_of(values.get("kind")).model_validate(values)
    _class(section.kind).check(section)
    return section


def get_objective(options: CommonOptions) -> Objective[Any]:
    """Build the objective that a recipe's section describes."""
    return _class(options.kind)(options)


def _class(kind: str) -> type[Objective[Any]]:
    """Return the objective of that name. This package's own names cannot be taken over."""
    if kind in _BUILT_IN:
        return _BUILT_IN[kind]
    found = tuple(entry_points(group=ENTRY_POINT_GROUP, name=kind))
    if len({entry.value for entry in found}) > 1:
        claims = " and ".join(sorted(entry.value for entry in found))
        raise RecipeError(f"objective {kind!r} is registered more than once ({claims}); uninstall all but one package.")
    return _load(found[0])


def _load(entry: EntryPoint) -> type[Objective[Any]]:
    try:
        objective = entry.load()
    except Exception as error:  # another package's import may raise anything
        raise RecipeError(f"objective {entry.name!r} could not be loaded from {entry.value}: {error}.") from error
    if not (isinstance(objective, type) and issubclass(objective, Objective)):
        raise RecipeError(f"objective {entry.name!r}: {entry.value} must be a subclass of Objective.")
    return objective


def _one_of(names: list[str]) -> str:
    *first, last = [repr(name) for name in names]
    return f"{', '.join(first)} or {last}"
