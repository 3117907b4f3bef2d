"""Decoders by name: the ones of this package, and those that other packages register.

A package adds a decoder through the entry-point group ``dmax.decoders``. Entry points are looked up when a name is
asked for and loaded only when it is theirs, so that a broken package can spoil nothing but its own decoder.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeGuard

from dmax.decoding.base import Decoder
from dmax.decoding.entropy_bounded import EntropyBoundedDecoder
from dmax.decoding.fixed_steps import FixedStepsDecoder
from dmax.decoding.hierarchical import HierarchicalDecoder
from dmax.decoding.joint_threshold import JointThresholdDecoder
from dmax.decoding.joint_threshold_indel import JointThresholdIndelDecoder
from dmax.decoding.options import DecoderError, Option, options_of
from dmax.decoding.prediction import DecidingDecoder, PredictedDecoder
from dmax.decoding.remask import RemaskDecoder
from dmax.decoding.soft_parallel import SoftParallelDecoder
from dmax.decoding.threshold import ThresholdDecoder

ENTRY_POINT_GROUP = "dmax.decoders"

BUILT_IN: dict[str, Callable[..., Decoder]] = {
    SoftParallelDecoder.name: SoftParallelDecoder,
    ThresholdDecoder.name: ThresholdDecoder,
    HierarchicalDecoder.name: HierarchicalDecoder,
    FixedStepsDecoder.name: FixedStepsDecoder,
    JointThresholdDecoder.name: JointThresholdDecoder,
    JointThresholdIndelDecoder.name: JointThresholdIndelDecoder,
    EntropyBoundedDecoder.name: EntropyBoundedDecoder,
    RemaskDecoder.name: RemaskDecoder,
}
"""The decoders of this package, whose names cannot be taken over."""


def decoder_names() -> list[str]:
    """List all decoders: this package's first, then those of other packages in alphabetical order."""
    others = {entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)}
    return [*BUILT_IN, *sorted(others - BUILT_IN.keys())]


def decoder_options(name: str) -> dict[str, Any]:
    """Return the options of a decoder with their defaults.

    Raises:
        DecoderError: there is no such decoder, or the package that registers it is broken.
    """
    return {option.name: option.default for option in described_options(name)}


def described_options(name: str) -> tuple[Option, ...]:
    """Return the options of a decoder with their kinds, bounds and help.

    Raises:
        DecoderError: there is no such decoder, or the package that registers it is broken.
    """
    return _options(name, _factory(name))


def about(name: str) -> str:
    """Return the first sentence of what a decoder's class says of itself; empty where it says nothing.

    Raises:
        DecoderError: there is no such decoder, or the package that registers it is broken.
    """
    text = " ".join((inspect.getdoc(_factory(name)) or "").partition("\n\n")[0].split())
    return text.replace("``", "")


def multi_block_decoders() -> list[str]:
    """List the decoders of this package that can carry several blocks in flight."""
    return [name for name, kind in BUILT_IN.items() if getattr(kind, "multi_block", False)]


def sound_decoders() -> list[str]:
    """List those of :func:`decoder_names` that can be built; a broken package's are left out."""
    return [name for name in decoder_names() if _is_sound(name)]


def all_options() -> dict[str, Option]:
    """Collect every option that any decoder has, by name.

    Where decoders have options of one name, the first decoder's words are taken, and the bounds that all agree on.
    """
    found: dict[str, Option] = {}
    for name in sound_decoders():
        for option in described_options(name):
            known = found.setdefault(option.name, option)
            if (known.kind, known.minimum, known.maximum) != (option.kind, option.minimum, option.maximum):
                found[option.name] = replace(known, kind="any", minimum=None, maximum=None)
    return found


def _is_sound(name: str) -> bool:
    try:
        described_options(name)
    except DecoderError:
        return False
    return True


def get_decoder(name: str, /, **options: Any) -> Decoder:
    """Build a decoder.

    Args:
        name: one of :func:`decoder_names`.
        options: values for some of :func:`decoder_options`; the others keep their defaults.

    Raises:
        DecoderError: there is no such decoder or option, or a value is out of range.
    """
    factory = _factory(name)
    known = [option.name for option in _options(name, factory)]
    for option in options:
        if option not in known:
            raise DecoderError(f"decoder {name!r} has no option {option!r}; {_suggest(option, known)}.", option)
    decoder = factory(**options)
    for part in ("name", "temperature"):
        if not hasattr(decoder, part):
            raise DecoderError(f"decoder {name!r} has no {part}; its class must give it (docs/reference/decoding.md).")
    return decoder


def is_built_in(decoder: Decoder) -> bool:
    """Tell whether a decoder is one of this package's own, whose results need no check."""
    return type(decoder) in BUILT_IN.values()


def decides(decoder: Decoder) -> TypeGuard[DecidingDecoder]:
    """Tell whether a decoder is one of this package's own, all of which have ``decide``."""
    return is_built_in(decoder)


def reads_predictions(decoder: Decoder) -> TypeGuard[PredictedDecoder]:
    """Tell whether a decoder is one of this package's own, and takes the one most probable token of every position."""
    if not is_built_in(decoder) or not isinstance(decoder, PredictedDecoder):
        return False
    return decoder.temperature == 0 and decoder.num_candidates == 1


def _factory(name: str) -> Callable[..., Decoder]:
    """Find the callable that builds the decoder of that name. This package's own names cannot be taken over."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    found = tuple(entry_points(group=ENTRY_POINT_GROUP, name=name))
    if not found:
        raise DecoderError(f"there is no decoder {name!r}; {_suggest(name, decoder_names())}.", "decoder")
    if len({entry.value for entry in found}) > 1:
        claims = " and ".join(sorted(entry.value for entry in found))
        raise DecoderError(f"decoder {name!r} is registered more than once ({claims}); uninstall all but one package.")
    return _load(found[0])


def _load(entry: EntryPoint) -> Callable[..., Decoder]:
    try:
        factory = entry.load()
    except Exception as error:  # another package's import may raise anything
        raise DecoderError(f"decoder {entry.name!r} could not be loaded from {entry.value}: {error}.") from error
    if not callable(factory) or not callable(getattr(factory, "step", None)):
        raise DecoderError(f"decoder {entry.name!r}: {entry.value} must be a class with a step method.")
    return factory


def _options(name: str, factory: Callable[..., Decoder]) -> tuple[Option, ...]:
    parameters = inspect.signature(factory).parameters
    required = [key for key, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    if required:
        raise DecoderError(f"decoder {name!r} has options without a default ({', '.join(required)}); give them one.")
    return options_of(factory)


def _suggest(wrong: str, valid: Iterable[str]) -> str:
    valid = list(valid)
    near = difflib.get_close_matches(wrong, valid, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}choose from {', '.join(valid)}"
