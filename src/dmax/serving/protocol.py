"""The bodies of requests, as OpenAI's clients send them, and what dmax adds to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from dmax.decoding.options import Option
from dmax.decoding.registry import all_options
from dmax.engine import GenerationParams
from dmax.engine.params import PARAMS, params_of
from dmax.serving.errors import bad_request

MAX_CHOICES = 16
MAX_STOPS = 8

S = TypeVar("S", bound="Sampling")
_TYPES: dict[str, Any] = {"number": float, "whole": int, "switch": bool, "text": str, "any": Any}


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool = False


class Sampling(BaseModel):
    """Fields that both kinds of completion have; :func:`request_models` adds one for every setting of a decode.

    Fields of OpenAI's API that this server does not act on are taken where their value asks for nothing, and refused
    where it asks for something; so a client's defaults pass, and nobody believes that a setting had an effect. Values
    are taken as they are: ``"12"`` is no number, and ``"yes"`` is not true.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    decoder_options: dict[str, Any] | None = None

    settings: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that say how to decode. None leaves one at the default of server, checkpoint or decoder: so
    decoding is greedy unless asked otherwise, which is not OpenAI's default."""

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_fields(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for name in values:
                if name not in cls.model_fields:
                    nearest = get_close_matches(str(name), cls.model_fields, n=1)
                    hint = f"; did you mean {nearest[0]}?" if nearest else ""
                    raise ValueError(f"there is no field {name!r}{hint}")
        return values

    def limit(self) -> int | None:
        """Most tokens of the answer, where the request says."""
        return self.max_tokens

    def params(self, default_length: int, default_block_length: int, seed: int) -> GenerationParams:
        """What the engine is to do.

        Args:
            default_length: answer tokens, where the request does not say.
            default_block_length: as the server was started.
            seed: of the first choice, where the request does not say.

        Raises:
            ApiError: a field asks for something that this server does not do.
            GenerationError: a value is out of range.
        """
        self._refuse_what_has_no_effect()
        stops = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        if len(stops) > MAX_STOPS or not all(stops):
            raise bad_request(f"stop takes up to {MAX_STOPS} strings, none of them empty.", "stop")
        given = {name: value for name in self.settings if (value := getattr(self, name)) is not None}
        return params_of(
            {"block_length": default_block_length, "seed": seed, **given},
            self.decoder_options,
            gen_length=self.limit() or default_length,
            stop=tuple(stops),
        )

    def _refuse_what_has_no_effect(self) -> None:
        neutral: dict[str, Sequence[Any]] = {
            "top_p": (None, 1),
            "presence_penalty": (None, 0),
            "frequency_penalty": (None, 0),
            "logit_bias": (None, {}),
            **self._neutral(),
        }
        for name, values in neutral.items():
            if getattr(self, name) not in values:
                raise bad_request(f"{name} is not supported; leave it out.", name, "unsupported")

    def _neutral(self) -> dict[str, Sequence[Any]]:
        """Further fields without effect, with the values that ask for nothing."""
        return {}


class TextPart(BaseModel):
    """One part of a message in parts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def as_turn(self) -> dict[str, str]:
        """For the chat template."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(Sampling):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None

    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def _neutral(self) -> dict[str, Sequence[Any]]:
        return {
            "logprobs": (None, False),
            "top_logprobs": (None, 0),
            "tools": (None, []),
            "tool_choice": (None, "none", "auto"),
            "response_format": (None, {"type": "text"}),
            "store": (None, False),
        }


class CompletionRequest(Sampling):
    """``POST /v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool = False
    best_of: int | None = None
    logprobs: int | None = None
    suffix: str | None = None

    def prompts(self) -> list[str | list[int]]:
        """The prompts, one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and all(isinstance(part, int) for part in self.prompt):
            return [self.prompt]  # type: ignore[list-item]
        if not 1 <= len(self.prompt) <= MAX_CHOICES:
            raise bad_request(f"prompt takes 1 to {MAX_CHOICES} prompts, not {len(self.prompt)}.", "prompt")
        return list(self.prompt)  # type: ignore[arg-type]

    def _neutral(self) -> dict[str, Sequence[Any]]:
        return {"echo": (False,), "best_of": (None, 1, self.n), "logprobs": (None,), "suffix": (None, "")}


class RequestModels(NamedTuple):
    """The bodies of requests, with the settings of the decoders there are."""

    chat: type[ChatRequest]
    completion: type[CompletionRequest]


def request_models() -> RequestModels:
    """Return the bodies with a field for every setting of a decode: of the params, and of every registered decoder."""
    settings = request_settings()
    return RequestModels(_with_settings(ChatRequest, settings), _with_settings(CompletionRequest, settings))


def request_settings() -> dict[str, Option]:
    """Return the settings that are fields of a request, by name.

    The length of the answer and stop strings have OpenAI's names and forms. An option of a decoder whose name means
    something else in a request is given in ``decoder_options``.
    """
    taken = {"gen_length", "stop", *ChatRequest.model_fields, *CompletionRequest.model_fields}
    return {name: option for name, option in {**all_options(), **PARAMS}.items() if name not in taken}


def _with_settings(base: type[S], settings: Mapping[str, Option]) -> type[S]:
    fields: dict[str, Any] = {
        name: (_TYPES[option.kind] | None, Field(default=None, description=option.help, **_bounds(option)))
        for name, option in settings.items()
    }
    model = create_model(base.__name__, __base__=base, __doc__=base.__doc__, **fields)
    model.settings = tuple(settings)
    return model


def _bounds(option: Option) -> dict[str, Any]:
    if option.kind not in ("number", "whole"):
        return {}
    bounds = {"ge": option.minimum, "le": option.most_served}
    return {name: bound for name, bound in bounds.items() if bound is not None}
