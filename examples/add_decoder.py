"""Write a decoder: the rule in one class, tried on hand-made logits and then on a model.

    python examples/add_decoder.py

In a package of yours, two lines of pyproject.toml make it known to `--decoder`, the API and `GenerationParams`:

    [project.entry-points."dmax.decoders"]
    left-to-right = "my_package:LeftToRight"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dmax import LLM, BlockDiffusionLM
from dmax.decoding import BlockState, DecoderError, StepResult, commit_masks, decode, predict


@dataclass(frozen=True, kw_only=True)
class LeftToRight:
    """Commits the leftmost ``width`` masks in every pass."""

    name: ClassVar[str] = "left-to-right"
    width: int = 1
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1:
            raise DecoderError(f"width is {self.width}; it must be at least 1.")

    def step(self, logits: Tensor, state: BlockState, noise: Tensor | None = None) -> StepResult:
        prediction = predict(logits, state.mask_token_id, temperature=self.temperature, noise=noise)
        return commit_masks(state, prediction, state.masked & (state.masked.cumsum(-1) <= self.width))


def on_hand_made_logits() -> None:
    """Show one pass over a block of four: a decoder is a pure function, so no model is needed to test it."""
    mask = 1
    state = BlockState.start(torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool), mask)
    logits_BLV = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    result = LeftToRight(width=2).step(logits_BLV, state)
    print("promoted:", result.promoted[0].tolist(), "tokens:", result.state.tokens[0].tolist())


def on_a_model(question: str) -> None:
    """Decode with the reference loop, which takes a decoder as it is."""
    llm = LLM("nano-base")
    assert llm.tokenizer is not None

    def logits_from(embeds: Tensor, mask: Tensor, start: int) -> Tensor:
        model: BlockDiffusionLM = llm.model
        positions = torch.arange(embeds.shape[1])[None]
        return model.head(model(embeds, positions, mask)[:, start:])

    for width in (1, 2, 4):
        passes = list(
            decode(
                logits_from,
                llm.model.model.word_embeddings.weight,
                LeftToRight(width=width),
                llm.tokenizer.apply_chat_template(llm.chat_prompt(question)),
                mask_token_id=llm.model.config.mask_token_id,
                eos_token_ids=llm.model.config.eos_token_ids,
                gen_length=64,
            )
        )
        print(f"width {width}, {len(passes)} passes: {llm.tokenizer.decode(passes[-1].answer)!r}")


if __name__ == "__main__":
    on_hand_made_logits()
    on_a_model(
        "A cup of tea is 7 ounces of tea. Liam drinks 6 cups of tea. If tea has 3 calories per ounce how many calories "
        "did he consume?"
    )
