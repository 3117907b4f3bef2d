"""What a caller may ask of one generation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dmax.decoding import options
from dmax.decoding.multi_block import MultiBlockRule
from dmax.decoding.options import Option, declared_options

if TYPE_CHECKING:
    from dmax.decoding import Decoder
    from dmax.decoding.drawing import Nucleus
    from dmax.models.config import ModelConfig

DEFAULT_DECODER = "soft-parallel"
"""What decodes where neither a caller nor a model says anything."""


MAX_LOGPROBS = 20
"""Most tokens whose log-probabilities are told beside that of the one that was taken; OpenAI's limit."""


class GenerationError(options.OptionError):
    """A request that cannot be run as asked; the message says what is allowed."""


@dataclass(frozen=True)
class GenerationParams:
    """How one prompt is decoded. Field values are checked when the object is made.

    The four thresholds and ``decoder_options`` are options of the decoder. ``None`` leaves an option at what the
    model's checkpoint says (``ModelConfig.decoder_defaults``), else at the decoder's own default; a decoder that does
    not have an option given here refuses it when the generation starts.

    Fields that are declared as options are offered by the command line, the API, the page and the harness too.

    Raises:
        GenerationError: a value lies outside what its field allows.
    """

    decoder: str | None = options.text(
        None,
        "soft-parallel, threshold, hierarchical, fixed-steps, joint-threshold, joint-threshold-indel, entropy-bounded, "
        "remask, or a decoder of your own; the model's if not given.",
    )
    """None takes the one that the model is best decoded with (``ModelConfig.default_decoder``)."""
    threshold: float | None = options.probability(
        None, "Confidence from which a mask becomes a token.", of_decoder=True
    )
    acceptance_threshold: float | None = options.probability(
        None, "Confidence from which a decoded block is settled.", of_decoder=True
    )
    low_threshold: float | None = options.probability(None, "Lower bar of hierarchical.", of_decoder=True)
    editing_threshold: float | None = options.probability(
        None, "Confidence from which joint-threshold edits a token.", of_decoder=True
    )
    decoder_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Any further option of the decoder, by name."""
    gen_length: int = options.whole(512, "Most tokens of the answer.", maximum=None, label="Longest answer")
    block_length: int | None = options.whole(None, "Tokens denoised together.", maximum=None, served_maximum=1024)
    """None is what the checkpoint was trained with (``ModelConfig.usual_block_length``)."""
    temperature: float = options.number(0.0, "0 decodes greedily, above 0 tokens are drawn.", served_maximum=2)
    """0 decodes greedily; above 0 tokens are drawn (algorithm.md#predict)."""
    top_p: float = options.probability(1.0, "Draw from the likeliest tokens that together have this probability.")
    """As the next two, without effect where decoding is greedy."""
    draw_top_k: int = options.whole(0, "Draw from so many of the likeliest tokens; 0 is all.", minimum=0)
    """``top_k`` in a request; here that is an option of ``soft-parallel``."""
    min_p: float = options.probability(0.0, "Draw from tokens with this share of the likeliest one's probability.")
    buffer_size: int = options.like(MultiBlockRule, "buffer_size")
    """Above 1 only with decoders that can carry it (algorithm.md#blocks-in-flight)."""
    add_threshold: float = options.like(MultiBlockRule, "add_threshold")
    stable_threshold: float = options.like(MultiBlockRule, "stable_threshold")
    semi_threshold: float = options.like(MultiBlockRule, "semi_threshold")
    seed: int = options.whole(0, "Seed of the draws.", minimum=0, maximum=None, served_maximum=2**62 - 1)
    """One object shared by a whole call gives row i the seed ``seed + i``."""
    stop: tuple[str, ...] = options.texts("End the answer where this begins; repeatable.")
    """Strings that end the answer where the first of them begins; they need a tokenizer."""
    min_tokens: int = options.whole(0, "Fewest tokens of the answer: an end before it does not count.", minimum=0)
    """EOS and stop strings end nothing before the answer has so many tokens."""
    ignore_eos: bool = options.switch(False, "Go on to the greatest length, whatever the model says; for benchmarks.")
    """EOS is a token like any other, though one without text."""
    json_schema: Mapping[str, Any] | str | None = None
    """A JSON Schema, kept as JSON text, by which the answer is JSON; it needs a tokenizer (extra ``structured``)."""
    logprobs: int | None = None
    """Not None: the log-probability of every token of the answer, with so many of the likeliest tokens beside it."""
    use_cache: bool = True
    """False recomputes the whole prefix in every pass: slow, and the same answer."""
    trace: bool = False
    """Whether the output carries a record of every pass."""

    def __post_init__(self) -> None:
        options.check_options(self, GenerationError)
        self._check_stop()
        self._check_json_schema()
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            text = f"logprobs is {self.logprobs}; it must be a whole number from 0 to {MAX_LOGPROBS}."
            raise GenerationError(text, "logprobs")
        if self.min_tokens > self.gen_length:
            raise GenerationError(
                f"min_tokens is {self.min_tokens}, more than gen_length, which is {self.gen_length}; lower it.",
                "min_tokens",
            )
        for name in (*_DECODER_FIELDS, *_IN_FLIGHT, "temperature"):
            if name in self.decoder_options:
                text = f"decoder_options holds {name}; give it as the field of that name instead."
                raise GenerationError(text, "decoder_options")

    def _check_stop(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(text, str) and text for text in stop):
            text = f"stop is {self.stop!r}; every stop string must be a string that is not empty."
            raise GenerationError(text, "stop")
        try:
            "".join(stop).encode()
        except UnicodeEncodeError as error:
            raise GenerationError(
                f"stop is {self.stop!r}, which holds half of a surrogate pair; every stop string must be valid "
                "Unicode.",
                "stop",
            ) from error
        object.__setattr__(self, "stop", stop)

    def _check_json_schema(self) -> None:
        schema = self.json_schema
        if schema is None:
            return
        try:
            value = json.loads(schema) if isinstance(schema, str) else schema
            object.__setattr__(self, "json_schema", json.dumps(value, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise GenerationError(f"json_schema is no JSON ({error}); give a JSON Schema.", "json_schema") from error
        if self.stop:
            raise GenerationError(
                "a stop string would cut what json_schema promises; leave one of the two out.", "stop"
            )
        if self.buffer_size > 1:
            raise GenerationError(
                f"buffer_size is {self.buffer_size}; an answer by a json_schema has one block in flight: leave it at "
                "1.",
                "buffer_size",
            )

    def blocks_in_flight(self) -> dict[str, Any]:
        """Return ``buffer_size`` and, where it is above 1, the settings that matter then."""
        names = _IN_FLIGHT if self.buffer_size > 1 else ("buffer_size",)
        return {name: getattr(self, name) for name in names}

    def nucleus(self) -> Nucleus:
        """Return which tokens a draw may give."""
        from dmax.decoding.drawing import Nucleus  # loads torch, which checking the parameters does without

        return Nucleus(self.draw_top_k, self.top_p, self.min_p)

    def further_settings(self) -> dict[str, Any]:
        """Return the settings that results name only where they are not at their defaults."""
        values = {name: getattr(self, name) for name in OPTIONAL_SETTINGS}
        return {name: value for name, value in values.items() if value != PARAMS[name].default}

    def with_defaults(self, config: ModelConfig) -> GenerationParams:
        """Return these params with a model's own where nothing is given: decoder, its options, block length.

        Raises:
            GenerationError: a value of the checkpoint lies outside what its field allows.
        """
        decoder = self.decoder or config.default_decoder
        defaults = config.decoder_defaults.get(decoder, {})
        fields = {name: defaults[name] for name in _DECODER_FIELDS if name in defaults and getattr(self, name) is None}
        further = {name: value for name, value in defaults.items() if name not in _DECODER_FIELDS}
        length = config.usual_block_length if self.block_length is None else self.block_length
        try:
            return replace(
                self,
                decoder=decoder,
                **fields,
                block_length=length,
                decoder_options={**further, **self.decoder_options},
            )
        except GenerationError as error:
            raise GenerationError(f"decoder_defaults.{decoder} in the checkpoint's config.json: {error}") from None

    def decoder_arguments(self) -> dict[str, Any]:
        """Return the options given for the decoder, by name, without those left at their default."""
        given = {name: value for name in _DECODER_FIELDS if (value := getattr(self, name)) is not None}
        if self.temperature > 0:  # a decoder that can only be greedy need not know the option
            given["temperature"] = self.temperature
        return {**given, **self.decoder_options}

    def build_decoder(self) -> Decoder:
        """Build the decoder with the options given for it; soft-parallel where none is named.

        Raises:
            DecoderError: there is no such decoder or option.
        """
        from dmax.decoding import get_decoder  # loads torch, which checking the parameters does without

        return get_decoder(self.decoder or DEFAULT_DECODER, **self.decoder_arguments())


_IN_FLIGHT = tuple(option.name for option in declared_options(MultiBlockRule))
PARAMS: dict[str, Option] = {option.name: option for option in declared_options(GenerationParams)}
"""The fields that are offered to users, by name."""
OPTIONAL_SETTINGS = ("top_p", "draw_top_k", "min_p", "min_tokens", "ignore_eos")
"""Settings that results and sweeps of earlier versions do not name, and mean at their defaults."""
_DECODER_FIELDS = tuple(name for name, option in PARAMS.items() if option.of_decoder)


def params_of(given: Mapping[str, Any], further: Mapping[str, Any] | None = None, **fields: Any) -> GenerationParams:
    """Make params of settings by name, each either a field or an option of the decoder.

    Args:
        given: names of :data:`PARAMS`, and names that only the decoder has.
        further: more options of the decoder, also those whose names a field has taken.
        fields: fields that no user sets, and others, as they are.

    Raises:
        GenerationError: a value is out of range.
    """
    known = {name: value for name, value in given.items() if name in PARAMS}
    own = {name: value for name, value in given.items() if name not in PARAMS}
    return GenerationParams(**known, decoder_options={**own, **(further or {})}, **fields)
