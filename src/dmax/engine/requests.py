"""From what a caller asks to a sequence that can be run, and from an ended sequence to what the caller gets."""

from __future__ import annotations

import logging
import operator
from collections import abc
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache, cached_property
from itertools import compress
from typing import Any, cast

from dmax.decoding import Decoder
from dmax.decoding.registry import BUILT_IN, is_built_in, multi_block_decoders
from dmax.engine.json_schema import JsonConstraint, JsonSchemas, check_json
from dmax.engine.outputs import GenerationOutput
from dmax.engine.params import GenerationError, GenerationParams
from dmax.engine.sequence import Sequence
from dmax.engine.stopping import StopRule
from dmax.models.config import ModelConfig
from dmax.models.tokenizer import Tokenizer

logger = logging.getLogger("dmax.engine")
Message = Mapping[str, Any]
Prompt = str | abc.Sequence[int] | abc.Sequence[Message]
"""Raw text, token ids (arrays and tensors too), or the messages of a conversation."""


class ContextOverflow(GenerationError):
    """Prompt and answer do not fit. The words tell clients to shorten a prompt: litellm reads OpenAI's, which come
    first, and LangChain "prompt is too long"."""

    def __init__(self, positions: int, how: str) -> None:
        super().__init__(f"This model's maximum context length is {positions} tokens, and {how}.")


@dataclass(frozen=True)
class RequestReader:
    """Checks requests for one model. Any thread may call it."""

    config: ModelConfig
    tokenizer: Tokenizer | None

    def read(self, request_id: str, prompt: Prompt, params: GenerationParams, started: float) -> Sequence:
        """Read a request into a sequence.

        Args:
            request_id: names the request.
            prompt: text, token ids or messages; errors call it ``prompt REQUEST_ID``.
            params: of this request alone, its seed included.
            started: ``time.perf_counter`` from which its seconds count.

        Raises:
            GenerationError: the prompt cannot be used, or is too long for the model.
            DecoderError: there is no such decoder or option.
        """
        name = f"prompt {request_id}"
        token_ids = self.encode(prompt, name)
        self.check_room(len(token_ids), params.gen_length, name)
        return self.sequence(request_id, token_ids, params, started)

    def sequence(self, request_id: str, token_ids: list[int], params: GenerationParams, started: float) -> Sequence:
        """Make a sequence of a prompt that was encoded before, and for whose answer there is room.

        Raises:
            GenerationError: the params do not go together.
            DecoderError: there is no such decoder or option.
        """
        params = params.with_defaults(self.config)
        self._warn_of_long_blocks(params)
        if params.stop:
            self._require_tokenizer("stop strings are given")
        decode = None if self.tokenizer is None else self.tokenizer.decode
        eos_token_ids = () if params.ignore_eos else self.config.eos_token_ids
        stop_rule = StopRule(eos_token_ids, params.gen_length, params.stop, decode, params.min_tokens)
        decoder = params.build_decoder()
        if params.buffer_size > 1 and not getattr(decoder, "multi_block", False):
            *others, last = multi_block_decoders()
            raise GenerationError(
                f"buffer_size is {params.buffer_size}, and {params.decoder} decodes one block at a time; leave it at "
                f"1, or take {', '.join(others)} or {last}.",
                "buffer_size",
            )
        constraint = None if params.json_schema is None else self._constraint(decoder, str(params.json_schema))
        sequence = Sequence(request_id, list(token_ids), params, stop_rule, decoder, started, constraint=constraint)
        length, routed = sequence.block_length, self.config.routing_block_length
        if self.config.expert_capacity and length % routed:
            raise GenerationError(
                f"block_length is {length}; this model chooses experts for blocks of {routed}, so give a multiple of "
                "that."
            )
        return sequence

    def _warn_of_long_blocks(self, params: GenerationParams) -> None:
        trained, asked = self.config.block_length, params.block_length
        if trained is not None and asked is not None and asked > trained:
            text = f"block_length is {asked}, and this model was trained with {trained}"
            warn_once(f"{text}: expect poor answers and many passes.")

    def check_room(self, prompt_tokens: int, gen_length: int, name: str, option: str = "gen_length") -> None:
        """Check that prompt and answer fit.

        Args:
            prompt_tokens: of the prompt, at least.
            gen_length: most tokens of the answer.
            name: what the prompt is called.
            option: what the answer's length is called.

        Raises:
            ContextOverflow: they do not.
        """
        positions = self.config.max_position_embeddings
        room = positions - prompt_tokens
        if room < 1:
            raise ContextOverflow(positions, f"{name} is too long: it has {prompt_tokens}; shorten it")
        if room < gen_length:
            raise ContextOverflow(
                positions,
                f"{name} is too long for the answer: it has {prompt_tokens}, which leaves {room}; {option} asks for "
                f"{gen_length}",
            )

    def encode(
        self, prompt: Prompt, name: str = "the prompt", tools: abc.Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """Encode a prompt. What is too long by its size alone is refused before that.

        Args:
            prompt: text, token ids or messages.
            name: what errors call it.
            tools: which a model may call, for the chat template.

        Raises:
            GenerationError: the prompt cannot be used.
        """
        token_ids = self._token_ids(plain(prompt), name, tools)
        problem = problem_with_ids(token_ids, self.config)
        if problem is not None:
            raise GenerationError(f"{name} {problem}.")
        return token_ids

    def _token_ids(self, prompt: Prompt, name: str, tools: abc.Sequence[Mapping[str, Any]]) -> list[int]:
        if isinstance(prompt, str):
            return self._encode_text(self._require_tokenizer(f"{name} is text"), prompt, name)
        kinds = "a prompt is a string, a list of token ids or a list of messages."
        if isinstance(prompt, bytes | bytearray) or not isinstance(prompt, abc.Sequence):
            raise GenerationError(f"{name} is a {type(prompt).__name__}; {kinds}")
        if prompt and all(isinstance(part, Mapping) for part in prompt):
            tokenizer = self._require_tokenizer(f"{name} is a list of messages")
            return self._encode_text(tokenizer, cast(abc.Sequence[Message], prompt), name, tools)
        self.check_room(len(prompt), 1, name)
        try:
            if any(isinstance(part, bool) for part in prompt):
                raise TypeError("True and False count as numbers, and are no token ids")
            return [operator.index(part) for part in prompt]  # type: ignore[arg-type]
        except TypeError as error:
            raise GenerationError(f"{name} is a {type(prompt).__name__} of mixed parts; {kinds}") from error

    def _encode_text(
        self,
        tokenizer: Tokenizer,
        prompt: str | abc.Sequence[Message],
        name: str,
        tools: abc.Sequence[Mapping[str, Any]] = (),
    ) -> list[int]:
        try:
            text = prompt if isinstance(prompt, str) else tokenizer.render_chat(prompt, marked=True, tools=tools)
            fewest, positions = tokenizer.fewest_tokens(text), self.config.max_position_embeddings
            if fewest >= positions:
                raise ContextOverflow(positions, f"{name} is too long: it has at least {fewest}; shorten it")
            return tokenizer.encode(text)
        except ContextOverflow:
            raise
        except ValueError as error:
            raise GenerationError(f"{name}: {error}") from error

    def _constraint(self, decoder: Decoder, schema: str) -> JsonConstraint:
        if not is_built_in(decoder):
            raise GenerationError(
                f"decoder {decoder.name!r} is of another package, and answers by a JSON schema need one of "
                f"{', '.join(BUILT_IN)}."
            )
        self._require_tokenizer("a JSON schema is given")
        return self._schemas.constraint(schema)

    @cached_property
    def _schemas(self) -> JsonSchemas:
        assert self.tokenizer is not None
        return JsonSchemas(self.config, self.tokenizer)

    def _require_tokenizer(self, need: str) -> Tokenizer:
        if self.tokenizer is None:
            raise GenerationError(f"{need}, and this model has no tokenizer; use token ids instead.")
        return self.tokenizer


@cache
def warn_once(text: str) -> None:
    """Log a warning, the first time in a process."""
    logger.warning(text)


def plain(prompts: Any) -> Any:
    """Return arrays and tensors as lists, and what a Hugging Face tokenizer gives as its ``input_ids``, padding apart.

    Raises:
        GenerationError: it is a mapping of another kind.
    """
    if not isinstance(prompts, Mapping):
        return prompts.tolist() if hasattr(prompts, "tolist") else prompts
    if "input_ids" not in prompts:
        raise GenerationError(
            f"a prompt is a {type(prompts).__name__} without input_ids; put a message in a list, [{{'role': …}}]."
        )
    ids, mask = plain(prompts["input_ids"]), plain(prompts.get("attention_mask"))
    if not mask:
        return ids
    rows = [list(compress(*row)) for row in zip(_rows(ids), _rows(mask), strict=True)]
    return rows if _rows(ids) is ids else rows[0]


def _rows(ids: list[Any]) -> list[Any]:
    return ids if ids and isinstance(ids[0], list) else [ids]


def problem_with_ids(token_ids: abc.Sequence[int], config: ModelConfig) -> str | None:
    """Return what keeps token ids from being a prompt, in words that go on from "the prompt"; None if nothing does."""
    size, mask = config.vocab_size, config.mask_token_id
    outside = next((token_id for token_id in token_ids if not 0 <= token_id < size), None)
    if outside is not None:
        return f"has token id {outside}; this model's ids are 0 to {size - 1}"
    if mask in token_ids:
        return f"holds the mask token (id {mask}), which stands for what is to be decoded; leave it out"
    return None


def output_of(sequence: Sequence) -> GenerationOutput:
    """Return what the caller gets of a sequence that has ended."""
    ending, params = sequence.ending, sequence.params
    assert ending is not None
    if params.json_schema is not None and ending.reason == "stop":
        check_json(ending.text)
    return GenerationOutput(
        text=ending.text,
        token_ids=ending.token_ids,
        num_tokens=ending.num_tokens,
        passes=sequence.passes,
        nfe=sequence.nfe,
        blocks=sequence.blocks,
        revisions=sequence.revisions,
        tpf=ending.num_tokens / sequence.nfe,
        tps=ending.num_tokens / sequence.seconds,
        seconds=sequence.seconds,
        finish_reason=ending.reason,
        decoder=sequence.decoder.name,
        params={
            **decoder_settings(sequence.decoder, params),
            "gen_length": params.gen_length,
            "seed": params.seed,
            "use_cache": params.use_cache,
        },
        trace=sequence.trace if params.trace else None,
        logprobs=None if params.logprobs is None else sequence.logprobs[: len(ending.token_ids)],
    )


def decoder_settings(decoder: Decoder, params: GenerationParams) -> dict[str, Any]:
    """Return everything that decides how tokens are chosen, as it took effect.

    The decoder's options (of one that is no dataclass, those that were given), then the settings around it; answer
    length and seed, which may differ between prompts, are not among them.
    """
    options = asdict(decoder) if is_dataclass(decoder) and not isinstance(decoder, type) else params.decoder_arguments()
    return {
        **options,
        "block_length": params.block_length,
        **params.blocks_in_flight(),
        "temperature": params.temperature,
        "stop": list(params.stop),
        **({} if params.json_schema is None else {"json_schema": params.json_schema}),
        **params.further_settings(),
    }
