"""What follows the layers in a pass, in one call: head, rule, and the embeddings that the next pass reads.

Shape suffixes: B blocks, L block positions, V vocabulary, D hidden.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeGuard

from torch import Tensor

from dmax.decoding import BlockState, Decoder, StepResult
from dmax.decoding.soft_parallel import SoftParallelDecoder
from dmax.engine import compiled
from dmax.kernels.cpu.experts import in_panels
from dmax.kernels.cpu.rule import CpuRead
from dmax.models.layers import Linear
from dmax.models.llada2 import LLaDA2
from dmax.models.packing import usable
from dmax.models.stack import is_plain


class Read(NamedTuple):
    """What follows the layers, decided."""

    result: StepResult
    embeds_BLD: Tensor
    """What the next pass reads."""
    for_host_BW: Tensor | None = None
    """``(B, 2 L + 1)`` int64: tokens, which of them were revised, whether the block has converged; None where nobody
    has put them together yet."""


class Readout(Protocol):
    """Head, rule and next embeddings at once, for the blocks of one decoder."""

    def __call__(self, hidden_BLD: Tensor, state: BlockState) -> Read | None:
        """Decide a pass.

        Args:
            hidden_BLD: of the model, after the final norm.
            state: the blocks before the pass.

        Returns:
            None where the model's head and the decoder have to be called.
        """
        ...


def read_at_once(decoder: Decoder) -> TypeGuard[SoftParallelDecoder]:
    """Whether a decoder is `soft-parallel` without options that change the rule, which is what readouts compute."""
    return type(decoder) is SoftParallelDecoder and decoder.is_common and decoder.renormalize


class CpuReadout:
    """Head and rule by the kernel that is compiled for a model on a CPU (:class:`dmax.kernels.cpu.rule.CpuRead`).

    Args:
        model: in eval mode.
        decoder: for which :func:`read_at_once` is true.
        run: the kernel.
    """

    def __init__(self, model: LLaDA2, decoder: SoftParallelDecoder, run: CpuRead) -> None:
        self._model = model
        self._decoder = decoder
        self._run = run

    @classmethod
    def of(cls, model: LLaDA2, decoder: Decoder) -> CpuReadout | None:
        """None for decoders of another rule, and where nothing is compiled."""
        if not read_at_once(decoder):
            return None
        run = compiled.load_readout(model)
        return None if run is None else cls(model, decoder, run)

    def __call__(self, hidden_BLD: Tensor, state: BlockState) -> Read | None:
        """Decide a pass; see :class:`Readout`."""
        head = self._head(hidden_BLD)
        if head is None:
            return None
        table_VD = self._model.model.word_embeddings.weight
        found, embeds_BLD = self._run(hidden_BLD.contiguous(), head, table_VD, self._decoder.arguments(state))
        return Read(self._decoder.after(found, state), embeds_BLD)

    def _head(self, x: Tensor) -> Tensor | None:
        """The head's weight as the kernel reads it, copied when first asked for, and again when it has changed."""
        model = self._model
        head = model.lm_head
        if type(model) is not LLaDA2 or "head" in vars(model) or type(head) is not Linear or not is_plain(head):
            return None
        if not model.packed.on or not usable(x, head.weight) or model.model.word_embeddings.weight.dtype != x.dtype:
            return None
        return model.packed.copy(x.dtype, (head.weight,), lambda _: in_panels(head.weight.detach()[None]))
