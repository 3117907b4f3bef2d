"""The front door of generation: prompts in, answers with their cost out."""

from __future__ import annotations

import operator
import time
from collections import abc
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dmax.decoding import Decoder, get_decoder
from dmax.engine.loop import DecodeLoop, OnPass
from dmax.engine.outputs import GenerationOutput
from dmax.engine.params import GenerationError, GenerationParams
from dmax.engine.runner import CachedRunner, RecomputeRunner, Runner
from dmax.engine.sequence import Sequence
from dmax.engine.stopping import StopRule
from dmax.models import LLaDA2, Tokenizer, load_model, load_tokenizer

Message = Mapping[str, Any]
Prompt = str | abc.Sequence[int] | abc.Sequence[Message]
"""Raw text, token ids, or the messages of a conversation."""

_DEFAULTS = GenerationParams()


@dataclass
class _Group:
    """Sequences of one call that can share their forwards."""

    decoder: Decoder
    params: GenerationParams
    sequences: list[Sequence]

    def admits(self, params: GenerationParams) -> bool:
        """Whether a row with these params can join."""
        mine = self.params
        return (params.decoder, params.decoder_arguments(), params.block_length, params.use_cache) == (
            mine.decoder,
            mine.decoder_arguments(),
            mine.block_length,
            mine.use_cache,
        )


class LLM:
    """A model ready to generate.

    Args:
        model: a checkpoint folder, a Hub id or the name of an embedded model; or a model that is already loaded, which
            is put into eval mode and otherwise used as it is.
        tokenizer: for prompts and answers in text. None takes the checkpoint's, if it has one; a loaded model brings
            none.
        device: where a checkpoint is loaded to; the CPU if None.
        dtype: what a checkpoint's weights become. None means float32 on a CPU and the stored dtype elsewhere.
        max_batch_size: most prompts that are decoded together. The key/value cache has as many slots; further prompts
            wait until one becomes free.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be read.
        GenerationError: a loaded model came with a device or dtype.
    """

    def __init__(
        self,
        model: LLaDA2 | str | Path,
        tokenizer: Tokenizer | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        max_batch_size: int = 32,
    ) -> None:
        if max_batch_size < 1:
            raise GenerationError(f"max_batch_size is {max_batch_size}; it must be at least 1.")
        if isinstance(model, LLaDA2):
            if device is not None or dtype is not None:
                raise GenerationError(
                    "device and dtype are for checkpoints that are loaded here; move a loaded model with its own .to()."
                )
            self.model = model.eval()
            self.tokenizer = tokenizer
        else:
            target = torch.device(device or "cpu")
            if dtype is None and target.type == "cpu":
                dtype = torch.float32
            self.model = load_model(model, target, dtype)
            self.tokenizer = load_tokenizer(model) if tokenizer is None else tokenizer
        self.max_batch_size = max_batch_size

    @staticmethod
    def chat_prompt(text: str) -> list[dict[str, str]]:
        """The conversation that consists of one user turn."""
        return [{"role": "user", "content": text}]

    def generate(
        self,
        prompts: Prompt | abc.Sequence[Prompt],
        params: GenerationParams | abc.Sequence[GenerationParams] = _DEFAULTS,
        *,
        on_pass: OnPass | None = None,
    ) -> list[GenerationOutput]:
        """Answer one prompt or many.

        Rows whose decoder, decoder options, block length and use of the cache agree are decoded together, other
        groups after them. An answer depends on its own prompt, params and seed alone (up to rounding in the model's
        dtype).

        Args:
            prompts: a prompt, or a sequence of prompts of any kinds. Text is encoded as it is; messages go through
                the chat template; an empty list is one prompt without tokens.
            params: one for all prompts, of which prompt i draws with seed ``params.seed + i``; or one for each.
            on_pass: called with a prompt's index and a :class:`PassRecord` after each of its denoising passes.

        Returns:
            One output for each prompt, in order.

        Raises:
            GenerationError: a prompt cannot be used, is too long for the model, or the params do not fit.
            DecoderError: there is no such decoder or option.
        """
        started = time.perf_counter()
        prompt_ids = [self._encode(index, prompt) for index, prompt in enumerate(_as_batch(prompts))]
        sequences = [
            self._sequence(index, ids, row_params)
            for index, (ids, row_params) in enumerate(zip(prompt_ids, _as_rows(params, len(prompt_ids)), strict=True))
        ]
        groups = _group(sequences)
        for group in groups:
            self._run(group, started, on_pass)
        outputs = [(row.index, _output(row, group.decoder)) for group in groups for row in group.sequences]
        return [output for _, output in sorted(outputs, key=operator.itemgetter(0))]

    def _encode(self, index: int, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self._require_tokenizer(f"prompt {index} is text").encode(prompt)
        if prompt and all(isinstance(part, Mapping) for part in prompt):
            tokenizer = self._require_tokenizer(f"prompt {index} is a list of messages")
            try:
                return tokenizer.apply_chat_template(prompt)  # type: ignore[arg-type]
            except ValueError as error:
                raise GenerationError(f"prompt {index}: {error}") from error
        try:
            token_ids = [operator.index(part) for part in prompt]  # type: ignore[arg-type]
        except TypeError as error:
            raise GenerationError(
                f"prompt {index} is a {type(prompt).__name__} of mixed parts; a prompt is a string, "
                "a list of token ids or a list of messages."
            ) from error
        vocab_size = self.model.config.vocab_size
        outside = next((token_id for token_id in token_ids if not 0 <= token_id < vocab_size), None)
        if outside is not None:
            raise GenerationError(f"prompt {index} has token id {outside}; this model's ids are 0 to {vocab_size - 1}.")
        return token_ids

    def _require_tokenizer(self, need: str) -> Tokenizer:
        if self.tokenizer is None:
            raise GenerationError(f"{need}, and this model has no tokenizer; use token ids instead.")
        return self.tokenizer

    def _sequence(self, index: int, prompt_ids: list[int], params: GenerationParams) -> Sequence:
        limit = self.model.config.max_position_embeddings
        if len(prompt_ids) + params.gen_length > limit:
            raise GenerationError(
                f"prompt {index} has {len(prompt_ids)} tokens, which with gen_length {params.gen_length} exceeds this "
                f"model's limit of {limit} positions; shorten the prompt or lower gen_length."
            )
        if params.stop:
            self._require_tokenizer("stop strings are given")
        decode = None if self.tokenizer is None else self.tokenizer.decode
        stop_rule = StopRule(self.model.config.eos_token_id, params.gen_length, params.stop, decode)
        return Sequence(index, prompt_ids, params, stop_rule)

    def _run(self, group: _Group, started: float, on_pass: OnPass | None) -> None:
        length = group.params.block_length
        slots = min(len(group.sequences), self.max_batch_size)
        runner: Runner
        if group.params.use_cache:
            runner = CachedRunner(self.model, length, slots, max(row.furthest_end for row in group.sequences))
        else:
            runner = RecomputeRunner(self.model, length)
        DecodeLoop(self.model, group.decoder, runner, length, slots, on_pass).run(group.sequences, started)


def _as_batch(prompts: Prompt | abc.Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts; what can only be a single prompt becomes a list of one."""
    if isinstance(prompts, str) or not prompts or not isinstance(prompts[0], str | abc.Sequence):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _as_rows(params: GenerationParams | abc.Sequence[GenerationParams], count: int) -> list[GenerationParams]:
    """One params object a row, each with the seed of its row."""
    if isinstance(params, GenerationParams):
        return [replace(params, seed=params.seed + index) for index in range(count)]
    if len(params) != count:
        raise GenerationError(f"there are {len(params)} params for {count} prompts; give one for all, or one for each.")
    return list(params)


def _group(sequences: list[Sequence]) -> list[_Group]:
    groups: list[_Group] = []
    for sequence in sequences:
        params = sequence.params
        group = next((group for group in groups if group.admits(params)), None)
        if group is None:
            group = _Group(get_decoder(params.decoder, **params.decoder_arguments()), params, [])
            groups.append(group)
        group.sequences.append(sequence)
    return groups


def _output(row: Sequence, decoder: Decoder) -> GenerationOutput:
    ending, params = row.ending, row.params
    assert ending is not None
    return GenerationOutput(
        text=ending.text,
        token_ids=ending.token_ids,
        num_tokens=ending.num_tokens,
        passes=row.passes,
        nfe=row.nfe,
        blocks=row.blocks,
        revisions=row.revisions,
        tpf=ending.num_tokens / row.nfe,
        tps=ending.num_tokens / row.seconds,
        seconds=row.seconds,
        finish_reason=ending.reason,
        decoder=decoder.name,
        params={
            **_options(decoder, params),
            "gen_length": params.gen_length,
            "block_length": params.block_length,
            "temperature": params.temperature,
            "seed": params.seed,
            "stop": list(params.stop),
            "use_cache": params.use_cache,
        },
        trace=row.trace if params.trace else None,
    )


def _options(decoder: Decoder, params: GenerationParams) -> dict[str, Any]:
    """The decoder's options as they took effect; of one that is no dataclass, those that were given."""
    if is_dataclass(decoder) and not isinstance(decoder, type):
        return asdict(decoder)
    return params.decoder_arguments()
