"""From what a caller asks to a sequence that can be run, and from an ended sequence to what the caller gets."""

from __future__ import annotations

import logging
import operator
from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache
from itertools import compress
from typing import Any, cast

from dmax.decoding import Decoder
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


@dataclass(frozen=True)
class RequestReader:
    """Checks requests for one model."""

    config: ModelConfig
    tokenizer: Tokenizer | None

    def read(self, request_id: str, prompt: Prompt, params: GenerationParams, started: float) -> Sequence:
        """Read a request into a sequence.

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
        params = params.with_defaults(self.config)
        self._warn_of_long_blocks(params)
        limit = self.config.max_position_embeddings
        if len(token_ids) + params.gen_length > limit:
            raise GenerationError(
                f"prompt {request_id} has {len(token_ids)} tokens, which with gen_length {params.gen_length} exceeds "
                f"this model's limit of {limit} positions; shorten the prompt or lower gen_length."
            )
        if params.stop:
            self._require_tokenizer("stop strings are given")
        decode = None if self.tokenizer is None else self.tokenizer.decode
        eos_token_ids = () if params.ignore_eos else self.config.eos_token_ids
        stop_rule = StopRule(eos_token_ids, params.gen_length, params.stop, decode, params.min_tokens)
        decoder = params.build_decoder()
        if params.buffer_size > 1 and not getattr(decoder, "multi_block", False):
            raise GenerationError(
                f"buffer_size is {params.buffer_size}, and {params.decoder} decodes one block at a time; leave it at "
                "1, or take soft-parallel, threshold, joint-threshold or entropy-bounded."
            )
        sequence = Sequence(request_id, token_ids, params, stop_rule, decoder, started)
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

    def encode(self, request_id: str, prompt: Prompt) -> list[int]:
        """Encode a prompt.

        Raises:
            GenerationError: the prompt cannot be used.
        """
        token_ids = self._token_ids(request_id, plain(prompt))
        problem = problem_with_ids(token_ids, self.config)
        if problem is not None:
            raise GenerationError(f"prompt {request_id} {problem}.")
        return token_ids

    def _token_ids(self, request_id: str, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self._tokens(request_id, "text", lambda tokenizer: tokenizer.encode(prompt))
        if prompt and all(isinstance(part, Mapping) for part in prompt):
            messages = cast(abc.Sequence[Message], prompt)
            return self._tokens(
                request_id, "a list of messages", lambda tokenizer: tokenizer.apply_chat_template(messages)
            )
        try:
            return [operator.index(part) for part in prompt]  # type: ignore[arg-type]
        except TypeError as error:
            raise GenerationError(
                f"prompt {request_id} is a {type(prompt).__name__} of mixed parts; a prompt is a string, "
                "a list of token ids or a list of messages."
            ) from error

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
        **params.further_settings(),
    }
