"""What a generation gives back: plain Python values that go into JSON as they are."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class NumericalError(ArithmeticError):
    """A model whose logits are NaN: there is nothing to decode."""


def nan_logits(passes: int, dtype: torch.dtype) -> NumericalError:
    """Return the error of an answer whose logits are NaN in pass ``passes``, with the likely cause for this dtype."""
    name = str(dtype).removeprefix("torch.")
    cause = "it overflows in float16" if name == "float16" else f"its weights hold NaN, or are too large for {name}"
    return NumericalError(
        f"the model's logits were NaN in pass {passes} of this answer: {cause}; load it in bfloat16 or float32, from "
        "weights that did not overflow in float16 before."
    )


@dataclass(frozen=True)
class PassRecord:
    """One denoising pass of one sequence. Offsets count from the first position of the block."""

    pass_number: int
    """Passes of the answer up to this one, from 1; blocks in flight together share it."""
    block: int
    """Index of the block, counted from absolute position 0 (so the prompt's blocks count too)."""
    start: int
    """Absolute position of the block's first token."""
    tokens: list[int]
    """The whole block after the pass: the prompt's tail, decoded tokens, and the mask token where undecided."""
    confidence: list[float]
    """Probability of the most probable token at every position of the block, as the pass predicted it."""
    promoted: list[int]
    """Offsets whose mask became a token in this pass."""
    revised: list[int]
    """Offsets decoded earlier whose token changed in this pass."""
    active: list[int]
    """Offsets that belong to the answer."""
    final: bool
    """Whether the block converged in this pass, so that its tokens stay."""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as one JSON object; ``trace`` is left out where none was recorded."""
        return asdict(self)


@dataclass(frozen=True)
class TokenLogprob:
    """How probable a token of the answer was to the model in the pass that made its block final.

    Natural logarithms under the logits of that pass alone, with no constraint, temperature or narrowing of a draw. That
    pass reads the whole block, decoded tokens behind the position among it; so these are no factors of the probability
    of the answer.
    """

    token_id: int
    logprob: float
    top: list[tuple[int, float]]
    """The likeliest tokens and their log-probabilities, as many as were asked for; never the mask token."""


@dataclass(frozen=True)
class GenerationOutput:
    """The answer to one prompt and what it cost. Conventions are those of algorithm.md#counting."""

    text: str | None
    """The answer without special tokens, cut before a stop string; None where there is no tokenizer."""
    token_ids: list[int]
    """The answer's tokens, up to and including the first EOS, at most ``gen_length``."""
    num_tokens: int
    """Tokens before the first EOS; the EOS is not counted."""
    passes: int
    """Denoising passes over all blocks."""
    nfe: int
    """Forward passes of the model: ``passes``, plus 1 where the prompt filled at least one whole block."""
    blocks: int
    """Blocks decoded."""
    revisions: int
    """Times a pass changed a token that was decoded already, padding behind the EOS included."""
    tpf: float
    """Tokens per forward: ``num_tokens / nfe``."""
    tps: float
    """Tokens per second: ``num_tokens / seconds``."""
    seconds: float
    """Wall time from the start of the call to the end of this answer."""
    finish_reason: str
    """``"stop"`` (EOS or a stop string) or ``"length"`` (``gen_length`` reached)."""
    decoder: str
    """Name of the decoder."""
    params: dict[str, Any]
    """The decoder's options as they took effect, and the generation's settings; ``seed`` is this answer's own."""
    trace: list[PassRecord] | None = None
    """Every pass in order, where ``GenerationParams.trace`` asked for it."""
    logprobs: list[TokenLogprob] | None = None
    """Of each of ``token_ids``, where ``GenerationParams.logprobs`` asked for it."""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as one JSON object; ``trace`` and ``logprobs`` are left out where not asked for."""
        values = asdict(self)
        for name in ("trace", "logprobs"):
            if values[name] is None:
                del values[name]
        return values


@dataclass(frozen=True)
class RequestUpdate:
    """What a step did to one request."""

    request_id: str
    final_ids: list[int]
    """Answer tokens that became final in this step; they are never revised."""
    records: list[PassRecord]
    """The pass as every block in flight saw it, where the engine or the request's params ask for records."""
    output: GenerationOutput | None
    """The whole answer, once it has ended."""
    failure: Exception | None
    """Why the request was given up; None where it was not."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of ``final_ids``, where the request's params ask for them."""

    @property
    def finished(self) -> bool:
        """Whether the answer has ended, or was given up."""
        return self.output is not None or self.failure is not None


@dataclass
class EngineStats:
    """Where an engine stands, and what it has done since it was made."""

    backend: str = ""
    """Name of what computes its passes."""
    waiting: int = 0
    """Requests that hold no pages yet."""
    running: int = 0
    """Requests whose prompt is being stored or whose answer is being decoded."""
    pages: int = 0
    pages_held: int = 0
    """By running requests."""
    pages_cached: int = 0
    """Pages whose contents are known and can be reused, held ones included."""
    prefix_queries: int = 0
    """Whole prompt pages looked up."""
    prefix_hits: int = 0
    """Those that were there."""
    preemptions: int = 0
    """Times a request lost its pages, to be taken up again."""
    steps: int = 0
    """Forwards."""
    positions: int = 0
    """Positions of all forwards."""
    prefilled: int = 0
    """Prompt positions among them, recomputed ones included."""
    decoded: int = 0
    """Positions of blocks in flight among them, the only ones that have logits."""
    attended: int = 0
    """Positions that each of them attended to, itself included, summed."""
    ahead: int = 0
    """Forwards launched before the host had seen the one before them."""
    discarded: int = 0
    """Those of them that were in vain; no sequence counts them as passes."""
