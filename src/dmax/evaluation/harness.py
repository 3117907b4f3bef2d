"""The model ``dmax`` of the lm-evaluation-harness.

``python -m dmax.evaluation.harness`` is the command ``lm_eval`` with this model in it. Releases of the harness after
0.4.13 find the model through the entry point ``lm_eval.models``, so that ``lm_eval --model dmax`` works as it is.

The module needs the ``harness`` extra; no other module of this package imports it.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from dmax.decoding import DecoderError, decoder_options
from dmax.engine import LLM, GenerationError, GenerationOutput, GenerationParams, NumericalError
from dmax.engine.requirements import Workload
from dmax.evaluation.harness_arguments import (
    AUTO,
    HarnessError,
    device_of,
    dtype_of,
    generation_params,
    new_file,
    rows_together,
)
from dmax.models import CheckpointError, Tokenizer

try:
    from lm_eval.api.model import LM  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from lm_eval.api.registry import model_registry  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from lm_eval.models.utils import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        normalize_gen_kwargs,
    )
    from lm_eval.utils import simple_parse_args_string, warning_once  # type: ignore[import-not-found,import-untyped,unused-ignore]
except ModuleNotFoundError as error:
    if error.name != "lm_eval":
        raise
    raise ModuleNotFoundError(
        "the lm-evaluation-harness is not installed; install it with: pip install 'dmax-llm[harness]'", name="lm_eval"
    ) from error

# A logger of the harness, because its command line shows no other.
_log = logging.getLogger("lm_eval.models.dmax")

_SAMPLING_ONLY = frozenset({"top_k", "top_p", "min_p", "typical_p"})
_UNTOLD_DEVICE = "cuda:0"
"""What the harness' command line asks for where it is told no device."""


@dataclass(frozen=True)
class _Row:
    """One request, ready for the engine."""

    request: Any
    repeat: int
    """Which of the request's repeats this is, from 0."""
    prompt_ids: list[int]
    cut: int
    """Tokens left out at the prompt's beginning, because prompt and answer would not fit into the model."""
    params: GenerationParams

    def record(self, output: GenerationOutput) -> dict[str, Any]:
        """Return what the statistics file says of the answer; times in seconds."""
        return {
            "task": self.request.task_name,
            "doc_id": self.request.doc_id,
            "repeat": self.repeat,
            "prompt_tokens": len(self.prompt_ids),
            "prompt_tokens_cut": self.cut,
            "num_tokens": output.num_tokens,
            "passes": output.passes,
            "nfe": output.nfe,
            "tpf": output.tpf,
            "tps": output.tps,
            "seconds": output.seconds,
            "finish_reason": output.finish_reason,
            "decoder": output.decoder,
            "params": output.params,
        }


@dataclass
class _Cost:
    """What a task's answers cost. Conventions are those of algorithm.md#counting."""

    answers: int = 0
    num_tokens: int = 0
    nfe: int = 0
    tpf_sum: float = 0.0

    def add(self, output: GenerationOutput) -> None:
        self.answers += 1
        self.num_tokens += output.num_tokens
        self.nfe += output.nfe
        self.tpf_sum += output.tpf

    @property
    def tpf_mean(self) -> float:
        """Mean over answers of their tokens per forward."""
        return self.tpf_sum / self.answers

    @property
    def tpf_pooled(self) -> float:
        """All tokens by all forwards."""
        return self.num_tokens / self.nfe

    def __str__(self) -> str:
        means = f"{self.tpf_mean:.2f} TPF (mean of answers), {self.tpf_pooled:.2f} TPF (all tokens by all NFE)"
        return f"{self.answers} answers, {self.num_tokens} tokens, {self.nfe} NFE, {means}"

    def to_dict(self) -> dict[str, float]:
        """Return counts and means as one JSON object."""
        names = ("answers", "num_tokens", "nfe", "tpf_mean", "tpf_pooled")
        return {name: getattr(self, name) for name in names}


class DMaxLM(LM):  # type: ignore[misc]
    """A diffusion language model as the harness sees one: it generates, and gives no likelihoods.

    Args:
        pretrained: a checkpoint folder, a Hub id or the name of an embedded model.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: float32 on a CPU, as stored elsewhere.
        device: such as ``cpu`` or ``cuda:0``; ``auto`` is a CUDA device if there is one.
        batch_size: prompts decoded together; ``auto`` is ``max_batch_size``, or 32.
        max_batch_size: what ``auto`` means for ``batch_size``.
        stats: a file that must not exist yet, for one JSON object an answer: what it cost.
        generation: fields of :class:`GenerationParams` (``decoder``, ``threshold``, …), ``max_gen_toks`` as another
            name of ``gen_length``, and options of the decoder by their names. ``gen_length`` and ``temperature`` are
            for tasks that do not set them.

    Raises:
        HarnessError: there is no such argument, or its value is not allowed.
        GenerationError: a generation setting is out of range.
        DecoderError: there is no such decoder, or a value is out of its range.
        CheckpointError: there is no such checkpoint, or it cannot be read.
    """

    def __init__(
        self,
        pretrained: str = "",
        *,
        dtype: str = AUTO,
        device: str = AUTO,
        batch_size: int | str = AUTO,
        max_batch_size: int | None = None,
        stats: str | None = None,
        **generation: Any,
    ) -> None:
        super().__init__()
        self.params = generation_params(generation)
        self.batch_size = rows_together(batch_size, max_batch_size)
        self._stats = None if stats is None else new_file(stats)
        if not pretrained:
            raise HarnessError("pretrained is missing; give a checkpoint: --model_args pretrained=FOLDER_OR_HUB_ID.")
        self._name = str(pretrained)
        self.llm = LLM(
            self._name,
            device=device_of(device),
            dtype=dtype_of(dtype),
            max_batch_size=self.batch_size,
            workload=Workload(self.batch_size),
        )
        if self.llm.tokenizer is None:
            raise HarnessError(f"{self._name} has no tokenizer, which the harness' prompts need; add tokenizer.json.")
        self._tokenizer: Tokenizer = self.llm.tokenizer
        self._device = self.llm.model.device
        self._costs: dict[str, _Cost] = {}

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> DMaxLM:
        """Build the model from ``--model_args``, which win over options such as ``--batch_size``."""
        options = {key: value for key, value in (additional_config or {}).items() if value is not None}
        options |= arg_dict
        if options.get("device") == _UNTOLD_DEVICE and "device" not in arg_dict and not torch.cuda.is_available():
            _log.warning("There is no CUDA device; the model runs on the CPU.")
            options["device"] = "cpu"
        return cls(**options)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> DMaxLM:
        """Make it as :meth:`create_from_arg_obj` does, from ``key=value,key=value``."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer the requests of a run, in their order.

        An answer goes to the harness' cache and the statistics file as soon as its batch is done. A request draws
        with the model's seed plus the number of its document, whatever else is in the run.

        Raises:
            HarnessError: a request leaves no room for a prompt.
            GenerationError: a generation setting is out of range, or the decoder does not have it.
        """
        rows = self._rows(requests)
        self._costs = {}
        texts: list[str] = []
        with tqdm(total=len(rows), desc="Running generate_until requests", disable=disable_tqdm) as progress:
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                outputs = self.llm.generate([row.prompt_ids for row in batch], [row.params for row in batch])
                for row, output in zip(batch, outputs, strict=True):
                    assert output.text is not None  # there is a tokenizer
                    self.cache_hook.add_partial("generate_until", row.request.args, output.text)
                    self._costs.setdefault(str(row.request.task_name), _Cost()).add(output)
                    texts.append(output.text)
                self._write_stats(row.record(output) for row, output in zip(batch, outputs, strict=True))
                progress.update(len(batch))
        for task, cost in self._costs.items():
            _log.info("%s: %s", task, cost)
        return texts

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Refuse: a masked diffusion model has no exact likelihood.

        Raises:
            HarnessError: always.
        """
        raise _no_likelihood(requests)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Refuse: a masked diffusion model has no exact likelihood.

        Raises:
            HarnessError: always.
        """
        raise _no_likelihood(requests)

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """Write the conversation as the prompt's text.

        Args:
            chat_history: messages with ``role`` and ``content``, oldest first.
            add_generation_prompt: whether the assistant's next turn begins at the end; if not, the last message is
                the beginning of the answer.

        Raises:
            HarnessError: there is no chat template, or it refuses these messages.
        """
        try:
            text = self._tokenizer.render_chat(chat_history, add_generation_prompt, marked=True)
        except ValueError as error:
            raise HarnessError(str(error)) from error
        if add_generation_prompt:
            return text
        beginning = str(chat_history[-1]["content"])
        for spelling in (beginning, beginning.strip()):  # many templates strip what they are given
            start = text.rfind(spelling)
            if start >= 0:
                return text[: start + len(spelling)]
        raise HarnessError("the chat template changes the beginning of the answer; leave out the task's gen_prefix.")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the template's source, for the results file.

        Raises:
            HarnessError: there is no template, or none of that name.
        """
        if self._tokenizer.chat_template is None:
            raise HarnessError(f"{self._name} has no chat template; leave out --apply_chat_template.")
        if isinstance(chat_template, str) and chat_template != "default":
            raise HarnessError(
                f"{self._name} has no chat template {chat_template!r}; give --apply_chat_template without a name."
            )
        return self._tokenizer.chat_template

    @property
    def tokenizer_name(self) -> str:
        """What tells this model's prompts from others' in the harness' cache of prompts."""
        return self._name.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """Return what the results file says of the model: how it decoded, and what the answers to each task cost."""
        params = self.params.with_defaults(self.llm.model.config)
        decoder = str(params.decoder)
        return {
            "dmax": {
                "dtype": str(self.llm.model.dtype).removeprefix("torch."),
                "device": str(self._device),
                "batch_size": self.batch_size,
                "decoder": decoder,
                "decoder_options": {**decoder_options(decoder), **params.decoder_arguments()},
                "block_length": params.block_length,
                "seed": params.seed,
                "cost": {task: cost.to_dict() for task, cost in self._costs.items()},
            }
        }

    def _rows(self, requests: Sequence[Any]) -> list[_Row]:
        seen: Counter[int] = Counter()
        rows = []
        for request in requests:
            # The harness repeats a request by naming the same object several times.
            rows.append(self._row(request, seen[id(request)]))
            seen[id(request)] += 1
        cut = sum(row.cut > 0 for row in rows)
        if cut:
            _log.warning("%d of %d prompts are cut at their beginning to fit into the model.", cut, len(rows))
        return rows

    def _row(self, request: Any, repeat: int) -> _Row:
        context, settings = request.args
        # Not the place in the list, which changes with what the harness finds in its cache.
        number = (request.doc_id or 0) * (request.repeats or 1) + repeat
        params = replace(_with_settings(self.params, settings), seed=self.params.seed + number)
        limit = self.llm.model.config.max_position_embeddings
        room = limit - params.gen_length
        if room < 1:
            raise HarnessError(
                f"max_gen_toks is {params.gen_length}, which leaves no room for a prompt in this model's {limit} "
                f"positions; lower it: --gen_kwargs max_gen_toks={limit // 2}."
            )
        prompt_ids = self._tokenizer.encode(context)
        cut = max(0, len(prompt_ids) - room)
        return _Row(request, repeat, prompt_ids[cut:], cut, params)

    def _write_stats(self, records: Iterable[dict[str, Any]]) -> None:
        if self._stats is not None:
            with self._stats.open("a", encoding="utf-8") as stream:
                stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _with_settings(params: GenerationParams, settings: Mapping[str, Any]) -> GenerationParams:
    """Return the params with a request's own generation settings."""
    temperature = params.temperature
    if settings.get("do_sample") and not temperature:
        temperature = 1.0  # what sampling without a temperature means to the harness' other models
    known = normalize_gen_kwargs({"temperature": temperature, **settings}, params.gen_length)
    stop = tuple(text for text in known.pop("until") if text)
    params = replace(params, gen_length=known.pop("max_gen_toks"), temperature=known.pop("temperature"), stop=stop)
    known.pop("do_sample")
    ignored = known.keys() if params.temperature else known.keys() - _SAMPLING_ONLY
    if ignored:
        warning_once(_log, f"This model has no generation setting {', '.join(sorted(ignored))}; going on without.")
    return params


def _no_likelihood(requests: Sequence[Any]) -> HarnessError:
    tasks = sorted({str(request.task_name) for request in requests})
    return HarnessError(
        f"{', '.join(tasks)} asks for log-likelihoods, which are not supported for this model, because a masked "
        "diffusion model gives no exact left-to-right likelihood; choose tasks that generate their answers "
        "(output_type: generate_until), such as gsm8k_cot or humaneval_instruct."
    )


if "dmax" not in model_registry:  # it is there where the harness has looked at this package's entry points
    model_registry.register("dmax", target=DMaxLM)


def main() -> None:
    """Run the command ``lm_eval``, in which ``--model dmax`` is this model.

    Raises:
        SystemExit: with code 2, after one sentence on stderr, where the user asked for something that is not there.
    """
    from lm_eval.__main__ import cli_evaluate  # type: ignore[import-not-found,import-untyped,unused-ignore]

    try:
        cli_evaluate()
    except (HarnessError, GenerationError, NumericalError, DecoderError, CheckpointError) as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
