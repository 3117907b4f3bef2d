"""The bodies of requests, as OpenAI's clients send them, and what dmax adds to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator
from pydantic_core import PydanticCustomError

from dmax.decoding.options import Option
from dmax.decoding.registry import all_options
from dmax.engine import GenerationParams
from dmax.engine.params import PARAMS, params_of
from dmax.serving.errors import bad_request

MAX_CHOICES = 16
MAX_PROMPTS = 1024
"""Most prompts of a request; how many a server takes is decided by its queue."""
MAX_STOPS = 8

S = TypeVar("S", bound="Sampling")
_NEAR = 0.75
"""How alike a field's name must be to be suggested: a hint that is wrong is worse than none."""


def _whole(value: Any) -> Any:
    """Read 12.0 as 12: JSON has one kind of number, and some clients write all of them as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
_TYPES: dict[str, Any] = {"number": float, "whole": Whole, "switch": bool, "text": str, "any": Any}


class Body(BaseModel):
    """What all bodies have in common: null is absent, and an unknown field is refused by its name."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    hints: ClassVar[frozenset[str]] = frozenset(
        {
            "client_metadata", "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options",
            "prompt_cache_retention", "reasoning_effort", "safety_identifier", "service_tier", "store", "user",
            "verbosity",
        }
    )  # fmt: skip
    """Fields of OpenAI's API that change nothing of what an answer may be, whatever their value."""

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_meant(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, value in values.items():
            if name in cls.model_fields or name in cls.hints or value is None:
                continue
            nearest = get_close_matches(str(name), cls.model_fields, n=1, cutoff=_NEAR)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            shown = str(name).encode(errors="backslashreplace").decode()  # pydantic takes no half of a surrogate pair
            raise PydanticCustomError(
                "unknown_parameter", "there is no field '{param}'{hint}", {"param": shown, "hint": hint}
            )
        kept = {name: value for name, value in values.items() if value is not None and name not in cls.hints}
        return cls.normalized(kept)

    @classmethod
    def normalized(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values with those left out that stand for nothing given."""
        return values


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = None


class Sampling(Body):
    """Fields that all kinds of answers have; :func:`request_models` adds one for every setting of a decode.

    Fields of OpenAI's API, and of other servers, that this server does not act on are taken where their value asks for
    nothing, and refused where it asks for something; so a client's defaults pass, and nobody believes that a setting
    had an effect. Values are taken as they are: ``"12"`` is no number, and ``"yes"`` is not true.
    """

    model: str | None = None
    max_tokens: Whole | None = Field(default=None, ge=1)
    max_completion_tokens: Whole | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    n: Whole = Field(default=1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None

    top_k: Whole | None = Field(default=None, ge=-1)
    """Draw from so many of the likeliest tokens; -1 and 0 are all."""
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    length_penalty: float | None = None
    use_beam_search: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    logit_bias: dict[str, float] | None = None

    decoder_options: dict[str, Any] | None = None

    settings: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that say how to decode. None leaves one at the default of server, checkpoint or decoder: so
    decoding is greedy unless asked otherwise, which is not OpenAI's default."""

    @classmethod
    def normalized(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values without a seed of -1, by which clients ask for one that the server draws."""
        return {name: value for name, value in values.items() if name != "seed" or value != -1}

    def limit(self) -> int | None:
        """Return the most tokens of the answer, where the request says."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def length_field(self) -> str:
        """The field that says so."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    def params(self, default_length: int, default_block_length: int, seed: int) -> GenerationParams:
        """Return what the engine is to do.

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
        default_length = max(default_length, given.get("min_tokens", 0))
        return params_of(
            {"block_length": default_block_length, "seed": seed, "draw_top_k": max(self.top_k or 0, 0), **given},
            self.decoder_options,
            gen_length=self.limit() or default_length,
            stop=tuple(stops),
        )

    def _refuse_what_has_no_effect(self) -> None:
        neutral: dict[str, Sequence[Any]] = {
            "presence_penalty": (None, 0),
            "frequency_penalty": (None, 0),
            "repetition_penalty": (None, 1),
            "length_penalty": (None, 1),
            "use_beam_search": (None, False),
            "skip_special_tokens": (None, True),
            "spaces_between_special_tokens": (None, True, False),
            "logit_bias": (None, {}),
            **self._neutral(),
        }
        for name, values in neutral.items():
            if getattr(self, name) not in values:
                raise bad_request(f"{name} is not supported; leave it out.", name, "unsupported_parameter")

    def _neutral(self) -> dict[str, Sequence[Any]]:
        """List further fields without effect, with the values that ask for nothing."""
        return {}


def text_of_parts(content: Any) -> Any:
    """Read a message's content: text, or parts of text, whose further keys (``cache_control``) do not matter.

    Raises:
        PydanticCustomError: a part is no text, or the content is neither.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise PydanticCustomError("content_type", "it must be text, or a list of parts of text")
    texts = []
    for number, part in enumerate(content, 1):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind not in _TEXT_PARTS:
            raise PydanticCustomError(
                "content_type", "part {number} is {kind}; only text is taken", {"number": number, "kind": str(kind)}
            )
        if not isinstance(part.get("text"), str):
            raise PydanticCustomError("content_type", "part {number} has no text", {"number": number})
        texts.append(part["text"])
    return "".join(texts)


_TEXT_PARTS = ("text", "input_text", "output_text")
Content = Annotated[str, BeforeValidator(text_of_parts)]


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = ""
    name: str | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None

    @property
    def is_of_a_tool(self) -> bool:
        """Whether a template has to know tools to tell what this is."""
        return self.role in ("tool", "function")

    def as_turn(self) -> dict[str, Any]:
        """Return the message for the chat template."""
        further = {"name": self.name, "tool_calls": self.tool_calls, "tool_call_id": self.tool_call_id}
        return {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content,
            **{name: value for name, value in further.items() if value},
        }


class ChatRequest(Sampling):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1)
    logprobs: bool | None = None
    top_logprobs: Whole | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    modalities: list[str] | None = None
    response_format: dict[str, Any] | None = None

    def _neutral(self) -> dict[str, Sequence[Any]]:
        return {
            "logprobs": (None, False),
            "top_logprobs": (None, 0),
            "tools": (None, []),
            "tool_choice": (None, "none", "auto"),
            "functions": (None, []),
            "function_call": (None, "none", "auto"),
            "modalities": (None, [], ["text"]),
            "response_format": (None, {"type": "text"}),
        }


class CompletionRequest(Sampling):
    """``POST /v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool = False
    best_of: Whole | None = None
    logprobs: Whole | None = None
    suffix: str | None = None

    def prompts(self) -> list[str | list[int]]:
        """List the prompts, one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and all(isinstance(part, int) for part in self.prompt):
            return [self.prompt]  # type: ignore[list-item]
        if not 1 <= len(self.prompt) <= MAX_PROMPTS:
            raise bad_request(f"prompt takes 1 to {MAX_PROMPTS} prompts, not {len(self.prompt)}.", "prompt")
        return list(self.prompt)  # type: ignore[arg-type]

    def _neutral(self) -> dict[str, Sequence[Any]]:
        return {"echo": (False,), "best_of": (None, 1, self.n), "logprobs": (None,), "suffix": (None, "")}


class InputMessage(ChatMessage):
    """One item of a response's input: a message, in a form with or without its ``type``."""

    type: Literal["message"] = "message"


class ResponsesRequest(Sampling):
    """``POST /v1/responses``, for text."""

    hints: ClassVar[frozenset[str]] = Body.hints | {"include", "reasoning"}

    input: str | list[InputMessage] = Field(min_length=1)
    instructions: str | None = None
    max_output_tokens: Whole | None = Field(default=None, ge=1)
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    max_tool_calls: Whole | None = None
    top_logprobs: Whole | None = None
    truncation: str | None = None
    text: dict[str, Any] | None = None

    def limit(self) -> int | None:
        """Return the most tokens of the answer, where the request says."""
        return self.max_output_tokens

    @property
    def length_field(self) -> str:
        """The field that says so."""
        return "max_output_tokens"

    def messages(self) -> list[ChatMessage]:
        """Return the conversation, instructions first."""
        opening = [] if self.instructions is None else [ChatMessage(role="system", content=self.instructions)]
        given = [ChatMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        return [*opening, *given]

    def _neutral(self) -> dict[str, Sequence[Any]]:
        formats = {name: value for name, value in (self.text or {}).items() if name != "verbosity" and value}
        return {
            "n": (1,),
            "max_tokens": (None,),
            "max_completion_tokens": (None,),
            "previous_response_id": (None, ""),
            "conversation": (None,),
            "background": (None, False),
            "tools": (None, []),
            "tool_choice": (None, "none", "auto"),
            "max_tool_calls": (None, self.max_tool_calls),
            "top_logprobs": (None, 0),
            "truncation": (None, "disabled", "auto"),
            "text": (self.text if formats in ({}, {"format": {"type": "text"}}) else None,),
        }


class TokenizeRequest(Body):
    """``POST /tokenize``: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1)
    add_special_tokens: bool = False
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class RequestModels(NamedTuple):
    """The bodies of requests, with the settings of the decoders there are."""

    chat: type[ChatRequest]
    completion: type[CompletionRequest]
    responses: type[ResponsesRequest]


def request_models() -> RequestModels:
    """Return the bodies with a field for every setting of a decode: of the params, and of every registered decoder."""
    settings = request_settings()
    return RequestModels(
        _with_settings(ChatRequest, settings),
        _with_settings(CompletionRequest, settings),
        _with_settings(ResponsesRequest, settings),
    )


def request_settings() -> dict[str, Option]:
    """Return the settings that are fields of a request, by name.

    The length of the answer, stop strings and ``top_k`` have the names and forms that clients know. An option of a
    decoder whose name means something else in a request is given in ``decoder_options``.
    """
    fields = {*ChatRequest.model_fields, *CompletionRequest.model_fields, *ResponsesRequest.model_fields}
    taken = {"gen_length", "draw_top_k", "stop", *fields, *ResponsesRequest.hints}
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
