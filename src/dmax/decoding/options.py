"""One declaration a setting: the command line, the API, the page, harness arguments and docs are made from it.

A dataclass declares its settings as fields made by :func:`number`, :func:`probability`, :func:`whole`, :func:`switch`,
:func:`text` or :func:`texts`; :func:`options_of` reads them back. Nothing here needs torch, which help texts must not
wait for.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal

MAX_COUNT = 2**31 - 1
"""Most of anything that is counted; larger numbers would overflow the arithmetic of tensors."""

Kind = Literal["number", "whole", "switch", "text", "texts", "any"]
"""``any`` is what a decoder declares in its signature alone, where the default does not tell the kind."""

_KEY = "dmax.option"


class OptionError(ValueError):
    """A decode that cannot be as asked.

    Args:
        message: what is wrong, and what is allowed.
        option: the setting at fault, if it is one alone.
    """

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


class DecoderError(OptionError):
    """An unknown decoder, an unknown option, or an option out of range."""


@dataclass(frozen=True)
class Option:
    """One setting of a decode, and everything that a surface needs to offer it."""

    name: str
    kind: Kind
    default: Any
    """None where nothing given means something of its own, such as the decoder's default."""
    help: str = ""
    """A sentence without bounds, which are told from ``minimum`` and ``maximum``."""
    minimum: float | None = None
    maximum: float | None = None
    served_maximum: float | None = None
    """Most that a server lets a request ask for, where that is less than ``maximum``."""
    label: str = ""
    """A few words for a form."""
    of_decoder: bool = False
    """Whether a field of ``GenerationParams`` is passed on to the decoder."""

    def problem(self, value: object) -> str | None:
        """Return what is wrong with a value, in a sentence that names the option; None where nothing is."""
        if value is None and self.default is None:
            return None
        wanted = self._wanted(value)
        return None if wanted is None else f"{self.name} is {value!r}; it must be {wanted}."

    def _wanted(self, value: object) -> str | None:
        if self.kind == "switch":
            # Nothing that merely counts as true or false: the string "false" would count as true.
            return None if isinstance(value, bool) else "True or False"
        if self.kind == "text":
            return None if isinstance(value, str) else "text"
        if self.kind in ("number", "whole"):
            return self._wanted_number(value)
        return None

    def _wanted_number(self, value: object) -> str | None:
        kinds = Integral if self.kind == "whole" else Real  # NumPy's numbers are of these kinds, too
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        if is_number and low <= value <= high and value != math.inf:  # type: ignore[operator]
            return None
        if self.kind == "whole":
            beyond = f" of at most {high:.0f}" if is_number and value > high else f" of at least {low:.0f}"  # type: ignore[operator]
            return f"a whole number{beyond if self.minimum is not None else ''}"
        if self.minimum is None:
            return "a finite number"
        return f"a finite number of at least {low:g}" if high == math.inf else f"a number from {low:g} to {high:g}"

    @property
    def title(self) -> str:
        """The label, or one made of the name."""
        return self.label or self.name.replace("_", " ").capitalize()

    @property
    def most_served(self) -> float | None:
        """Most that a request may ask for, None where nothing limits it."""
        return self.maximum if self.served_maximum is None else self.served_maximum

    @property
    def bounds(self) -> str:
        """The range in words, such as "0 to 1"; empty where there is none to tell."""
        if self.minimum is None:
            return ""
        if self.maximum is None or self.maximum >= MAX_COUNT:
            return f"{self.minimum:g} or more"
        return f"{self.minimum:g} to {self.maximum:g}"


def number(default: float | None, help: str, *, minimum: float = 0, maximum: float | None = None, **more: Any) -> Any:
    """Declare a setting that is a finite number."""
    return _field(Option("", "number", default, help, minimum, maximum, **more))


def probability(default: float | None, help: str, **more: Any) -> Any:
    """Declare a setting that is a number from 0 to 1."""
    return _field(Option("", "number", default, help, 0, 1, **more))


def whole(default: int | None, help: str, *, minimum: int = 1, maximum: int | None = MAX_COUNT, **more: Any) -> Any:
    """Declare a setting that is a whole number."""
    return _field(Option("", "whole", default, help, minimum, maximum, **more))


def switch(default: bool, help: str, **more: Any) -> Any:
    """Declare a setting that is on or off."""
    return _field(Option("", "switch", default, help, **more))


def text(default: str | None, help: str, **more: Any) -> Any:
    """Declare a setting that is a string."""
    return _field(Option("", "text", default, help, **more))


def texts(help: str, **more: Any) -> Any:
    """Declare a setting that is a tuple of strings, empty by default. What it holds is checked where it is declared."""
    return _field(Option("", "texts", (), help, **more))


def temperature() -> Any:
    """Declare the setting that every decoder has."""
    return number(0.0, "0 takes the most probable token, above 0 tokens are drawn.", served_maximum=2)


def like(declared: type, name: str) -> Any:
    """Declare a setting as another class declares it."""
    return _field(next(option for option in options_of(declared) if option.name == name))


def _field(option: Option) -> Any:
    return field(default=option.default, metadata={_KEY: option})


@cache
def options_of(declared: Any) -> tuple[Option, ...]:
    """Return the settings that a dataclass declares, in its order; of anything else, those that its signature tells.

    Args:
        declared: a class, or a function that builds a decoder. Parameters of a class that is no dataclass, and fields
            that are declared without help, become options of the kind that their default has.
    """
    described = {}
    if is_dataclass(declared):
        described = {each.name: replace(each.metadata[_KEY], name=each.name) for each in _declared(declared)}
    given = inspect.signature(declared).parameters.values()
    return tuple(described.get(each.name) or _undescribed(each.name, each.default) for each in given if _is_open(each))


def declared_options(declared: Any) -> tuple[Option, ...]:
    """Return those of :func:`options_of` that a dataclass declares with help, which are the ones to be shown."""
    names = {each.name for each in _declared(declared)}
    return tuple(option for option in options_of(declared) if option.name in names)


def _declared(of: Any) -> list[Any]:
    return [each for each in fields(of) if _KEY in each.metadata]


def _is_open(parameter: inspect.Parameter) -> bool:
    return parameter.default is not inspect.Parameter.empty and parameter.default is not MISSING


def _undescribed(name: str, default: Any) -> Option:
    kinds: dict[type, Kind] = {bool: "switch", int: "whole", float: "number", str: "text"}
    return Option(name, kinds.get(type(default), "any"), default)


def check_options(of: Any, error: type[OptionError] = DecoderError) -> None:
    """Check every setting that a dataclass declares with help, and make numbers plain ones: float, or int if whole.

    Raises:
        error: a value is of another kind, or outside its range.
    """
    for option in declared_options(type(of)):
        value = getattr(of, option.name)
        problem = option.problem(value)
        if problem is not None:
            raise error(problem, option.name)
        if option.kind in ("number", "whole") and value is not None:  # kernels read its bytes
            object.__setattr__(of, option.name, float(value) if option.kind == "number" else int(value))
