"""From what a caller asks to a sequence that can be run, and from an ended sequence to what the caller gets."""

from __future__ import annotations

import operator
from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, cast

from dmax.decoding import Decoder
from dmax.engine.outputs import GenerationOutput
from dmax.engine.params import GenerationError, GenerationParams
from dmax.engine.sequence import Sequence
from dmax.engine.stopping import StopRule
from dmax.models.config import ModelConfig
from dmax.models.tokenizer import Tokenizer

Message = Mapping[str, Any]
Prompt = str | abc.Sequence[int] | abc.Sequence[Message]
"""Raw text, token ids, or the messages of a conversation."""


@dataclass(frozen=True)
class RequestReader:
    """Checks requests for one model."""

    config: ModelConfig
    tokenizer: Tokenizer | None

    def read(self, request_id: str, prompt: Prompt, params: GenerationParams, started: float) -> Sequence:
        """The sequence of a request.

        Args:
            request_id: names the request; messages call the prompt by it.
            prompt: text, token ids or messages.
            params: of this request alone, its seed included.
            started: ``time.perf_counter`` from which its seconds count.

        Raises:
            GenerationError: the prompt cannot be used, or is too long for the model.
            DecoderError: there is no such decoder or option.
        """
        token_ids = self.encode(request_id, prompt)
        params = params.with_defaults(self.config.decoder_defaults)
        limit = self.config.max_position_embeddings
        if len(token_ids) + params.gen_length > limit:
            raise GenerationError(
                f"prompt {request_id} has {len(token_ids)} tokens, which with gen_length {params.gen_length} exceeds "
                f"this model's limit of {limit} positions; shorten the prompt or lower gen_length."
            )
        if params.stop:
            self._require_tokenizer("stop strings are given")
        decode = None if self.tokenizer is None else self.tokenizer.decode
        eos_token_id = None if params.ignore_eos else self.config.eos_token_id
        stop_rule = StopRule(eos_token_id, params.gen_length, params.stop, decode, params.min_tokens)
        decoder = params.build_decoder()
        if params.buffer_size > 1 and not getattr(decoder, "multi_block", False):
            raise GenerationError(
                f"buffer_size is {params.buffer_size}, and {params.decoder} decodes one block at a time; leave it at "
                "1, or take soft-parallel, threshold or joint-threshold."
            )
        return Sequence(request_id, token_ids, params, stop_rule, decoder, started)

    def encode(self, request_id: str, prompt: Prompt) -> list[int]:
        """Token ids of a prompt.

        Raises:
            GenerationError: the prompt cannot be used.
        """
        if isinstance(prompt, str):
            return self._tokens(request_id, "text", lambda tokenizer: tokenizer.encode(prompt))
        if prompt and all(isinstance(part, Mapping) for part in prompt):
            messages = cast(abc.Sequence[Message], prompt)
            return self._tokens(
                request_id, "a list of messages", lambda tokenizer: tokenizer.apply_chat_template(messages)
            )
        try:
            token_ids = [operator.index(part) for part in prompt]  # type: ignore[arg-type]
        except TypeError as error:
            raise GenerationError(
                f"prompt {request_id} is a {type(prompt).__name__} of mixed parts; a prompt is a string, "
                "a list of token ids or a list of messages."
            ) from error
        size = self.config.vocab_size
        outside = next((token_id for token_id in token_ids if not 0 <= token_id < size), None)
        if outside is not None:
            raise GenerationError(f"prompt {request_id} has token id {outside}; this model's ids are 0 to {size - 1}.")
        return token_ids

    def _tokens(self, request_id: str, kind: str, read: Callable[[Tokenizer], list[int]]) -> list[int]:
        tokenizer = self._require_tokenizer(f"prompt {request_id} is {kind}")
        try:
            return read(tokenizer)
        except ValueError as error:
            raise GenerationError(f"prompt {request_id}: {error}") from error

    def _require_tokenizer(self, need: str) -> Tokenizer:
        if self.tokenizer is None:
            raise GenerationError(f"{need}, and this model has no tokenizer; use token ids instead.")
        return self.tokenizer


def output_of(sequence: Sequence) -> GenerationOutput:
    """What the caller gets of a sequence that has ended."""
    ending, params = sequence.ending, sequence.params
    assert ending is not None
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
    )


def decoder_settings(decoder: Decoder, params: GenerationParams) -> dict[str, Any]:
    """Everything that decides how tokens are chosen, as it took effect.

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
        **params.further_settings(),
    }
