"""What an engine asks of whatever computes its passes.

A pass is computed in two calls: :meth:`Backend.forward` runs the layers over all positions of the pass, and
:meth:`Backend.decide`, for each decoder, goes on to the next state of its blocks and to what the next pass reads.
:class:`~dmax.engine.backends.torch.TorchBackend` says what each of them computes; the others compute the same by other
means, and fall back to it for what they have no means for. An engine chooses one when it is made, and nothing below it
asks again.

Shape suffixes: B blocks, L block positions, V vocabulary, D hidden, W numbers for the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from torch import Tensor

from dmax.decoding import BlockState, Decoder, StepResult
from dmax.engine.span import Span
from dmax.models.transformer import BlockDiffusionLM

Noise = Callable[[Tensor], Tensor]
"""From logits ``(B, L, V)`` to standard Gumbel noise of that shape, float32."""


@dataclass(frozen=True)
class PassInput:
    """The blocks in flight of one decoder, as a pass finds them."""

    state: BlockState
    embeds_BLD: Tensor | None = None
    """What the pass reads at them; None where :meth:`Backend.embed` has to tell."""
    kept: object = None
    """What the backend that decided the pass before keeps of it; only the same backend reads it."""

    def with_fallback(self, fallback: Tensor | None) -> PassInput:
        """Return the same blocks, some of which promote only what is confident; see :attr:`BlockState.fallback`."""
        if self.state.fallback is fallback:
            return self
        return PassInput(replace(self.state, fallback=fallback), self.embeds_BLD)


class Decided(NamedTuple):
    """What follows the forward of some blocks."""

    result: StepResult
    after: PassInput
    """The blocks as the next pass finds them if all of them go on."""
    for_host_BW: Tensor | None = None
    """``(B, 2 L + 2)`` int64: tokens, which of them were revised, whether the block has converged, and the bits of the
    sum of its confidences, which is NaN where logits were; None where the backend has not put them together."""


class Backend(Protocol):
    """Computes the passes of a model, over a KV cache of its own."""

    @property
    def name(self) -> str:
        """What it is called in results, metrics and ``dmax info``."""
        ...

    @property
    def modules(self) -> BlockDiffusionLM:
        """The model whose modules are called, where they are."""
        ...

    def open(self, pages: int, page_length: int, slots: int) -> None:
        """Provide a KV cache for an engine that begins; what an earlier one stored is not kept.

        Args:
            pages: that sequences may hold.
            page_length: positions of a page.
            slots: most sequences that hold pages at a time.
        """
        ...

    def close(self) -> None:
        """Give back what the next engine could not use, now that no engine runs."""
        ...

    def embed(self, state: BlockState) -> Tensor:
        """Compute what a pass reads at blocks in this state: ``(B, L, D)``."""
        ...

    def forward(self, spans: list[Span], inputs: list[Tensor]) -> Tensor:
        """Run the layers, and store keys and values of all positions.

        Args:
            spans: at most one a sequence; those with blocks in flight come in the order of ``inputs``.
            inputs: input embeddings of all blocks in flight, ``(B, L, D)`` for each block length and decoder.

        Returns:
            ``(sum of B * L, D)`` hidden states after the final norm, from which the tokens of the blocks in flight are
            read: those of their own positions, or of the positions before where the model's logits are shifted. They
            hold until the next forward.
        """
        ...

    def decide(self, decoder: Decoder, hidden_BLD: Tensor, blocks: PassInput, noise: Noise | None = None) -> Decided:
        """Apply head and decoder to hidden states, and prepare what the next pass reads.

        Args:
            decoder: the rule.
            hidden_BLD: of :meth:`forward`.
            blocks: as the pass found them.
            noise: draws for every logit; needed where the decoder's temperature is above 0.

        Raises:
            ContractError: the decoder gave no result of a pass; a third-party one may raise anything, too.
        """
        ...

    def warm_up(self, block_length: int) -> None:
        """Do now what passes over blocks of this length would otherwise do when they first come up."""
        ...
