"""The front door of generation: prompts in, answers with their cost out."""

from __future__ import annotations

import time
from collections import abc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from dmax.engine.backends import Backend, choose_backend
from dmax.engine.config import EngineConfig
from dmax.engine.engine import LLMEngine
from dmax.engine.outputs import GenerationOutput, PassRecord
from dmax.engine.params import GenerationError, GenerationParams
from dmax.engine.requests import Prompt, RequestReader, output_of, plain
from dmax.engine.requirements import Workload, check_before_fetching, check_memory
from dmax.engine.scheduler import IDLE_PREFILL_TOKENS
from dmax.engine.sequence import Sequence
from dmax.engine.uncached import decode_uncached
from dmax.machine import multiplies_bfloat16
from dmax.models import BlockDiffusionLM, Tokenizer, load_model, load_tokenizer
from dmax.models.memory import DoesNotFit

OnPass = Callable[[int, PassRecord], None]

_DEFAULTS = GenerationParams()


class LLM:
    """A model ready to generate.

    Args:
        model: a checkpoint folder, a Hub id or the name of an embedded model; or a model that is already loaded, which
            is put into eval mode and otherwise used as it is.
        tokenizer: for prompts and answers in text. None takes the checkpoint's, if it has one; a loaded model brings
            none.
        device: where a checkpoint is loaded to; the CPU if None.
        dtype: what a checkpoint's weights become. None means float32 on a CPU and the stored dtype elsewhere. On a CPU
            without products in bfloat16, float32 takes its place where it fits: it is quicker there.
        max_batch_size: most prompts that are decoded together; further ones wait until one has ended.
        workload: what has to fit into memory beside the weights; one prompt if None. Nothing is limited by it.
        ignore_memory: whether a checkpoint is loaded although it does not fit.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be read.
        DoesNotFit: it needs more memory than there is; nothing has been read then.
        GenerationError: a loaded model came with a device or dtype.
    """

    def __init__(
        self,
        model: BlockDiffusionLM | str | Path,
        tokenizer: Tokenizer | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        max_batch_size: int = 32,
        workload: Workload | None = None,
        ignore_memory: bool = False,
    ) -> None:
        if max_batch_size < 1:
            raise GenerationError(f"max_batch_size is {max_batch_size}; it must be at least 1.")
        if isinstance(model, BlockDiffusionLM):
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
            load = workload or Workload()
            if not ignore_memory:
                check_before_fetching(model, dtype, target, load)
            check = None if ignore_memory else partial(check_memory, name=str(model), load=load)
            self.model = self._load(model, target, dtype, check)
            self.tokenizer = load_tokenizer(model) if tokenizer is None else tokenizer
        self.max_batch_size = max_batch_size
        self._idle_backend: Backend | None = None
        self._reader = RequestReader(self.model.config, self.tokenizer)

    @staticmethod
    def _load(
        model: str | Path,
        device: torch.device,
        dtype: torch.dtype | None,
        check: Callable[[BlockDiffusionLM, torch.dtype, torch.device], object] | None,
    ) -> BlockDiffusionLM:
        """Load a checkpoint, in float32 in place of bfloat16 where the processor has no products in it."""
        if dtype == torch.bfloat16 and device.type == "cpu" and check is not None and not multiplies_bfloat16():
            with suppress(DoesNotFit):  # in bfloat16 it may
                return load_model(model, device, torch.float32, mapped=True, check=check)
        return load_model(model, device, dtype, mapped=True, check=check)

    @staticmethod
    def chat_prompt(text: str) -> list[dict[str, str]]:
        """Return the conversation that consists of one user turn."""
        return [{"role": "user", "content": text}]

    def generate(
        self,
        prompts: Prompt | abc.Sequence[Prompt],
        params: GenerationParams | abc.Sequence[GenerationParams] = _DEFAULTS,
        *,
        on_pass: OnPass | None = None,
    ) -> list[GenerationOutput]:
        """Answer one prompt or many.

        All prompts share their forwards, whatever their params; those that ask for no cache go after the others. An
        answer depends on its own prompt, params and seed alone (up to rounding in the model's dtype).

        Args:
            prompts: a prompt, or a sequence of prompts of any kinds. Text is encoded as it is; messages go through
                the chat template; an empty list is one prompt without tokens. Token ids may be arrays or tensors, of
                two dimensions for several prompts, or what a Hugging Face tokenizer gives.
            params: one for all prompts, of which prompt i draws with seed ``params.seed + i``; or one for each.
            on_pass: called with a prompt's index and a :class:`PassRecord` after each of its denoising passes.

        Returns:
            One output for each prompt, in order.

        Raises:
            GenerationError: a prompt cannot be used, is too long for the model, or the params do not fit.
            DecoderError: there is no such decoder or option.
        """
        started = time.perf_counter()
        asked = _as_batch(prompts)
        sequences = [
            self._reader.read(str(index), prompt, own_params, started)
            for index, (prompt, own_params) in enumerate(zip(asked, _one_each(params, len(asked)), strict=True))
        ]
        cached = [sequence for sequence in sequences if sequence.params.use_cache]
        outputs = self._run(cached, on_pass) if cached else {}
        modules = choose_backend(self.model, self._idle_backend).modules  # which round as they do with a cache
        for sequence in sequences:
            if not sequence.params.use_cache:
                for record in decode_uncached(modules, sequence):
                    if on_pass is not None:
                        on_pass(int(sequence.request_id), record)
                outputs[sequence.request_id] = output_of(sequence)
        return [outputs[sequence.request_id] for sequence in sequences]

    def _run(self, sequences: list[Sequence], on_pass: OnPass | None) -> dict[str, GenerationOutput]:
        """Decode sequences to their ends, over a cache that holds as many of the longest as can run together."""
        page_length = max(sequence.block_length for sequence in sequences)
        needs = sorted((-(-sequence.furthest_end // page_length) for sequence in sequences), reverse=True)
        slots = min(len(sequences), self.max_batch_size)
        # A call that runs has taken the backend out, so that calls from several threads never share one.
        backend, self._idle_backend = choose_backend(self.model, self._idle_backend), None
        engine = LLMEngine(
            self.model,
            self.tokenizer,
            EngineConfig(
                page_length=page_length,
                pages=sum(needs[:slots]),
                max_batch_size=slots,
                prefill_tokens=IDLE_PREFILL_TOKENS,
                record_passes=on_pass is not None,
            ),
            backend=backend,
            reader=self._reader,
        )
        for sequence in sequences:
            engine.add(sequence)
        outputs: dict[str, GenerationOutput] = {}
        while engine.has_requests():
            for update in engine.step():
                if update.failure is not None:
                    raise update.failure
                if on_pass is not None:
                    for record in update.records:
                        on_pass(int(update.request_id), record)
                if update.output is not None:
                    outputs[update.request_id] = update.output
        backend.close()
        self._idle_backend = backend
        return outputs


def _as_batch(prompts: Prompt | abc.Sequence[Prompt]) -> list[Prompt]:
    """Return a list of prompts; what can only be a single prompt becomes a list of one."""
    prompts = plain(prompts)
    if not isinstance(prompts, abc.Sequence) or isinstance(prompts, str) or not prompts or not _is_prompt(prompts[0]):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _is_prompt(part: object) -> bool:
    """Tell whether a part of what was given is a prompt by itself: neither a token id nor a message."""
    if isinstance(part, abc.Mapping):
        return "input_ids" in part
    return isinstance(part, str | abc.Sequence) or getattr(part, "ndim", 0) > 0


def _one_each(params: GenerationParams | abc.Sequence[GenerationParams], count: int) -> list[GenerationParams]:
    """Return params for each of ``count`` prompts, with the seed of its place."""
    if isinstance(params, GenerationParams):
        return [replace(params, seed=params.seed + index) for index in range(count)]
    if len(params) != count:
        raise GenerationError(f"there are {len(params)} params for {count} prompts; give one for all, or one for each.")
    return list(params)
