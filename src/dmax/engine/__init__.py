"""Generation: prompts in, answers with their cost out."""

from dmax.engine.outputs import GenerationOutput, PassRecord
from dmax.engine.params import GenerationError, GenerationParams

__all__ = ["GenerationError", "GenerationOutput", "GenerationParams", "PassRecord"]
