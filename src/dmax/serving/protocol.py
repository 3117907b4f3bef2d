"""The bodies of requests, as OpenAI's clients send them, and what dmax adds to them."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from dmax.decoding.options import MAX_COUNT, Option
from dmax.decoding.registry import all_options
from dmax.engine import GenerationParams
from dmax.engine.params import MAX_LOGPROBS, PARAMS, params_of
from dmax.serving.body import Body, Whole, whole, wholes
from dmax.serving.errors import bad_request
from dmax.serving.messages import ChatMessage, messages_of_items
from dmax.serving.structure import ChatTool, ResponseTool, Structure, of_format, of_tools

MAX_CHOICES = 16
MAX_PROMPTS = 1024
"""Most prompts of a request; how many a server takes is decided by its queue."""
MAX_STOPS = 8
LOGPROBS = "message.output_text.logprobs"
"""By which a response's ``include`` asks for log-probabilities."""

S = TypeVar("S", bound="Sampling")
Texts = Annotated[list[str], Field(fail_fast=True)]
TokenIds = Annotated[list[int], Field(fail_fast=True), BeforeValidator(wholes)]
Messages = Annotated[list[ChatMessage], Field(fail_fast=True)]
"""Lists are read up to the first thing wrong with them: a megabyte of such things would hold up everybody."""

_LEFT_TO_THE_SERVER = ("seed", "max_tokens", "max_completion_tokens", "max_output_tokens")
_TYPES: dict[str, Any] = {"number": float, "whole": Whole, "switch": bool, "text": str, "any": Any}


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = None


class Sampling(Body):
    """Fields that all kinds of answers have; :func:`request_models` adds one for every setting of a decode.

    Values are taken as they are: ``"12"`` is no number, and ``"yes"`` is not true.
    """

    neutral: ClassVar[Mapping[str, Sequence[Any]]] = {
        "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "length_penalty": (1,),
        "use_beam_search": (False,), "early_stopping": (False,), "logit_bias": ({},), "bad_words": ([],),
        "stop_token_ids": ([],), "include_stop_str_in_output": (False,), "skip_special_tokens": (True,),
        "spaces_between_special_tokens": (True, False), "add_special_tokens": (False,), "priority": (0,),
        "add_generation_prompt": (True,), "continue_final_message": (False,),
        "chat_template_kwargs": ({}, {"enable_thinking": False}),
        "documents": ([],), "typical_p": (1,), "echo": (False,), "suffix": ("",), "best_of": (1,), "functions": ([],),
        "function_call": ("none", "auto"), "tools": ([],), "tool_choice": ("none", "auto"),
        "modalities": ([], ["text"]), "previous_response_id": ("",), "background": (False,),
        "truncation": ("disabled", "auto"), "allowed_token_ids": ([],), "logits_processors": ([],),
        "detokenize": (True,), "return_token_ids": (False,), "return_tokens_as_token_ids": (False,),
        "timings_per_token": (False,), "repeat_penalty": (1,), "mirostat": (0,), "tfs_z": (1,), "typ_p": (1,),
        "dynatemp_range": (0,), "dry_multiplier": (0,), "xtc_probability": (0,), "top_a": (0,), "min_length": (0,),
        "no_repeat_ngram_size": (0,), "num_beams": (1,), "epsilon_cutoff": (0,), "eta_cutoff": (0,),
        "penalty_alpha": (0,), "guidance_scale": (1,), "smoothing_factor": (0,), "n_probs": (0,),
        "return_hidden_states": (False,), "enable_thinking": (False,), "thinking": ({"type": "disabled"},),
        "top_logprobs": (0,), "logprobs": (False,),
    }  # fmt: skip

    model: str | None = None
    stop: str | Texts | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    top_k: Whole | None = Field(default=None, ge=-1)
    """Draw from so many of the likeliest tokens; -1 and 0 are all."""
    decoder_options: dict[str, Any] | None = None

    settings: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that say how to decode. None leaves one at the default of server, checkpoint or decoder: so
    decoding is greedy unless asked otherwise, which is not OpenAI's default."""

    @classmethod
    def normalized(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values without a -1 by which clients leave the seed or the length to the server.

        Options of a decoder, which have no type here, are read as fields are: null is absent, and 8.0 is 8.
        """
        if isinstance(options := values.get("decoder_options"), dict):
            options = {name: whole(value) for name, value in options.items() if value is not None}
            values = {**values, "decoder_options": options}
        return {name: value for name, value in values.items() if name not in _LEFT_TO_THE_SERVER or value != -1}

    @property
    def choices(self) -> int:
        """How many answers a prompt gets."""
        return 1

    @abstractmethod
    def limit(self) -> int | None:
        """Return the most tokens of the answer, where the request says."""

    @property
    @abstractmethod
    def length_field(self) -> str:
        """The field that says so."""

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
        stops = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        if len(stops) > MAX_STOPS or not all(stops):
            raise bad_request(f"stop takes up to {MAX_STOPS} strings, none of them empty.", "stop")
        given = {name: value for name in self.settings if (value := getattr(self, name)) is not None}
        structure = self.structure()
        if structure is not None and stops:
            raise bad_request(f"a stop string would cut what {structure.field} asks for; leave one out.", "stop")
        if structure is not None and given.get("buffer_size", 1) > 1:
            text = f"buffer_size must be 1 with {structure.field}: such an answer has one block in flight."
            raise bad_request(text, "buffer_size")
        fewest, most = given.get("min_tokens", 0), self.limit()
        if most is not None and fewest > most:
            text = f"min_tokens is {fewest}, more than {self.length_field}, which is {most}; lower it."
            raise bad_request(text, "min_tokens")
        top_k = min(max(self.top_k or 0, 0), MAX_COUNT)
        return params_of(
            {"block_length": default_block_length, "seed": seed, "draw_top_k": top_k, **given},
            self.decoder_options,
            gen_length=most or max(default_length, fewest),
            stop=tuple(stops),
            json_schema=None if structure is None else json.loads(json.dumps(structure.schema), parse_float=_number),
            logprobs=self.wanted_logprobs(),
        )

    @abstractmethod
    def structure(self) -> Structure | None:
        """Return what the answer has to look like; None where it is any text.

        Raises:
            ApiError: the request asks for what there is not.
        """

    def told_tools(self) -> list[dict[str, Any]]:
        """List the tools that a chat template is to tell the model of."""
        return []

    @abstractmethod
    def wanted_logprobs(self) -> int | None:
        """Return how many log-probabilities are wanted beside that of each token; None where none are wanted at all."""


class CompletionSampling(Sampling):
    """Fields that chat and text completions share."""

    max_tokens: Whole | None = Field(default=None, ge=1)
    max_completion_tokens: Whole | None = Field(default=None, ge=1)
    n: Whole = Field(default=1, ge=1, le=MAX_CHOICES)
    response_format: dict[str, Any] | None = None

    @property
    def choices(self) -> int:
        """Return as many as ``n`` says."""
        return self.n

    def limit(self) -> int | None:
        """Return what ``max_completion_tokens`` says, else ``max_tokens``."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def length_field(self) -> str:
        """Whichever of the two is given."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    def structure(self) -> Structure | None:
        """Return what ``response_format`` asks for."""
        return of_format(self.response_format, "response_format")


class ChatRequest(CompletionSampling):
    """``POST /v1/chat/completions``."""

    messages: Messages = Field(min_length=1)
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    tools: Annotated[list[ChatTool], Field(fail_fast=True)] | None = None
    tool_choice: Any = None

    def structure(self) -> Structure | None:
        """Return what the answer has to look like: a call that ``tool_choice`` asks for comes before a format."""
        call = of_tools([tool.function for tool in self.tools or ()], self.tool_choice)
        return call or super().structure()

    def told_tools(self) -> list[dict[str, Any]]:
        """List the tools that a chat template is to tell the model of."""
        return [] if self.tool_choice == "none" else [tool.function.as_tool() for tool in self.tools or ()]

    def wanted_logprobs(self) -> int | None:
        """Return as many as ``top_logprobs`` says, which needs ``logprobs``."""
        if self.top_logprobs and not self.logprobs:
            raise bad_request("top_logprobs needs logprobs: true.", "top_logprobs")
        return self.top_logprobs or 0 if self.logprobs else None


class CompletionRequest(CompletionSampling):
    """``POST /v1/completions``."""

    prompt: str | Texts | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)]
    logprobs: Whole | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    @classmethod
    def normalized(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values without a ``best_of`` of as many answers as are asked for, and ``logprobs`` of false."""
        idle = {"best_of"} if values.get("best_of") == values.get("n", 1) else set()
        idle |= {"logprobs"} if values.get("logprobs") is False else set()
        return super().normalized({name: value for name, value in values.items() if name not in idle})

    def wanted_logprobs(self) -> int | None:
        """Return as many as ``logprobs`` says."""
        return self.logprobs

    def prompts(self) -> list[str | list[int]]:
        """List the prompts, one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and all(isinstance(part, int) for part in self.prompt):
            return [self.prompt]  # type: ignore[list-item]
        if not 1 <= len(self.prompt) <= MAX_PROMPTS:
            raise bad_request(f"prompt takes 1 to {MAX_PROMPTS} prompts, not {len(self.prompt)}.", "prompt")
        return list(self.prompt)  # type: ignore[arg-type]


class ResponsesRequest(Sampling):
    """``POST /v1/responses``, for text and calls of functions."""

    hints: ClassVar[frozenset[str]] = Body.hints | {"max_tool_calls"}
    neutral: ClassVar[Mapping[str, Sequence[Any]]] = {
        **Sampling.neutral,
        "n": (1,),
        **dict.fromkeys(("conversation", "max_tokens", "max_completion_tokens", "response_format"), ()),
    }

    input: Annotated[
        str | Annotated[list[ChatMessage | None], Field(fail_fast=True)], BeforeValidator(messages_of_items)
    ] = Field(min_length=1)
    instructions: str | None = None
    max_output_tokens: Whole | None = Field(default=None, ge=1)
    tools: Annotated[list[ResponseTool], Field(fail_fast=True)] | None = None
    tool_choice: Any = None
    include: Texts | None = None
    top_logprobs: Whole | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    text: dict[str, Any] | None = None

    def limit(self) -> int | None:
        """Return the most tokens of the answer, where the request says."""
        return self.max_output_tokens

    @property
    def length_field(self) -> str:
        """The field that says so."""
        return "max_output_tokens"

    def opening(self) -> list[ChatMessage]:
        """Return the instructions, which come before the input."""
        return [] if self.instructions is None else [ChatMessage(role="system", content=self.instructions)]

    def items(self) -> list[ChatMessage | None]:
        """Return the input item by item; None where one tells a model nothing."""
        return [ChatMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input

    def messages(self) -> list[ChatMessage]:
        """Return the conversation, instructions first."""
        return [*self.opening(), *(item for item in self.items() if item is not None)]

    def structure(self) -> Structure | None:
        """Return what the answer has to look like: a call that ``tool_choice`` asks for comes before a format."""
        text = self.text or {}
        if any(value is not None and name not in ("format", "verbosity") for name, value in text.items()):
            raise bad_request("text takes format and verbosity; leave the rest out.", "text", "unsupported_parameter")
        return of_tools(self.tools or (), self.tool_choice) or of_format(text.get("format"), "text.format")

    def told_tools(self) -> list[dict[str, Any]]:
        """List the tools that a chat template is to tell the model of."""
        return [] if self.tool_choice == "none" else [tool.as_tool() for tool in self.tools or ()]

    def wanted_logprobs(self) -> int | None:
        """Return as many as ``top_logprobs`` says, which ``include`` has to ask for."""
        if LOGPROBS not in (self.include or ()):
            if self.top_logprobs:
                raise bad_request(f"top_logprobs needs include: [{LOGPROBS!r}].", "top_logprobs")
            return None
        return self.top_logprobs or 0


class TokenizeRequest(Body):
    """``POST /tokenize``: a prompt, or messages."""

    neutral: ClassVar[Mapping[str, Sequence[Any]]] = Sampling.neutral

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = Field(default=None, min_length=1)
    return_token_strs: bool = False


class DetokenizeRequest(Body):
    """``POST /detokenize``: token ids."""

    model: str | None = None
    tokens: TokenIds


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


def _number(text: str) -> Any:
    return whole(float(text))


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
