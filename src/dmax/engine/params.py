"""What a caller may ask of one generation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmax.decoding import Decoder

_PROBABILITIES = ("threshold", "acceptance_threshold", "low_threshold", "editing_threshold")
_JOINING = ("add_threshold", "stable_threshold", "semi_threshold")


class GenerationError(ValueError):
    """A request that cannot be run as asked; the message says what is allowed."""


@dataclass(frozen=True)
class GenerationParams:
    """How one prompt is decoded. Field values are checked when the object is made.

    The four thresholds and ``decoder_options`` are options of the decoder. ``None`` leaves an option at what the
    model's checkpoint says (``ModelConfig.decoder_defaults``), else at the decoder's own default; a decoder that does
    not have an option given here refuses it when the generation starts.

    Raises:
        GenerationError: a value lies outside what its field allows.
    """

    decoder: str = "soft-parallel"
    """Name of a registered decoder."""
    threshold: float | None = None
    """Confidence from which a mask becomes a token, in [0, 1]."""
    acceptance_threshold: float | None = None
    """Confidence from which a decoded block counts as settled, in [0, 1]."""
    low_threshold: float | None = None
    """Lower bar of the ``hierarchical`` decoder, in [0, 1]."""
    editing_threshold: float | None = None
    """Confidence from which ``joint-threshold`` replaces a token, in [0, 1]."""
    decoder_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Any further option of the decoder, by name."""
    gen_length: int = 512
    """Most tokens of the answer."""
    block_length: int = 32
    """Tokens denoised together; the checkpoint was trained for one value (32 for the published ones)."""
    temperature: float = 0.0
    """0 decodes greedily; above 0 tokens are drawn (algorithm.md#predict)."""
    buffer_size: int = 1
    """Most blocks in flight; above 1 only with decoders that can carry it (algorithm.md#blocks-in-flight)."""
    add_threshold: float = 0.1
    """Share of the last block in flight that must be decoded before the next one joins, in [0, 1]."""
    stable_threshold: float = 0.5
    """Share of its decoded tokens that must have stayed as they were, in [0, 1]."""
    semi_threshold: float = 0.9
    """A block promotes in every pass only once the one before it is decoded beyond this share, in [0, 1]."""
    seed: int = 0
    """Seed of the draws. One object shared by a whole call gives row i the seed ``seed + i``."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer where the first of them begins; they need a tokenizer."""
    use_cache: bool = True
    """False recomputes the whole prefix in every pass: slow, and the same answer."""
    trace: bool = False
    """Whether the output carries a record of every pass."""

    def __post_init__(self) -> None:
        for name in ("gen_length", "block_length", "buffer_size"):
            _require_int(name, getattr(self, name), minimum=1)
        _require_int("seed", self.seed, minimum=0)
        for name in (*_PROBABILITIES, *_JOINING):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value <= 1):
                raise GenerationError(f"{name} is {value!r}; it must be a number from 0 to 1.")
        if not (_is_number(self.temperature) and 0 <= self.temperature < math.inf):
            raise GenerationError(
                f"temperature is {self.temperature!r}; it must be 0 (greedy) or a finite number above."
            )
        self._check_stop()
        for name in (*_PROBABILITIES, *_JOINING, "buffer_size", "temperature"):
            if name in self.decoder_options:
                raise GenerationError(f"decoder_options holds {name}; give it as the field of that name instead.")

    def _check_stop(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(text, str) and text for text in stop):
            raise GenerationError(f"stop is {self.stop!r}; every stop string must be a string that is not empty.")
        try:
            "".join(stop).encode()
        except UnicodeEncodeError as error:
            raise GenerationError(
                f"stop is {self.stop!r}, which holds half of a surrogate pair; every stop string must be valid Unicode."
            ) from error
        object.__setattr__(self, "stop", stop)

    def blocks_in_flight(self) -> dict[str, Any]:
        """``buffer_size`` and, where it is above 1, the settings that matter then."""
        names = ("buffer_size", *_JOINING) if self.buffer_size > 1 else ("buffer_size",)
        return {name: getattr(self, name) for name in names}

    def with_defaults(self, by_decoder: Mapping[str, Mapping[str, Any]]) -> GenerationParams:
        """These params, with what a checkpoint's ``decoder_defaults`` say of the decoder where nothing is given.

        Raises:
            GenerationError: a value of the checkpoint lies outside what its field allows.
        """
        defaults = by_decoder.get(self.decoder, {})
        fields = {name: defaults[name] for name in _PROBABILITIES if name in defaults and getattr(self, name) is None}
        options = {name: value for name, value in defaults.items() if name not in _PROBABILITIES}
        try:
            return replace(self, **fields, decoder_options={**options, **self.decoder_options})
        except GenerationError as error:
            raise GenerationError(f"decoder_defaults.{self.decoder} in the checkpoint's config.json: {error}") from None

    def decoder_arguments(self) -> dict[str, Any]:
        """The options given for the decoder, by name, without those left at their default."""
        given = {name: value for name in _PROBABILITIES if (value := getattr(self, name)) is not None}
        if self.temperature > 0:  # a decoder that can only be greedy need not know the option
            given["temperature"] = self.temperature
        return {**given, **self.decoder_options}

    def build_decoder(self) -> Decoder:
        """The decoder with the options given for it.

        Raises:
            DecoderError: there is no such decoder or option.
        """
        from dmax.decoding import get_decoder  # loads torch, which checking the parameters does without

        return get_decoder(self.decoder, **self.decoder_arguments())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_int(name: str, value: Any, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise GenerationError(f"{name} is {value!r}; it must be a whole number of at least {minimum}.")
