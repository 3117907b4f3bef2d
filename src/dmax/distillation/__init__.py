"""Self-distillation: prompts in, a model's own finished answers out, for training (algorithm.md#published-training)."""

from dmax.distillation.job import Job, Shard, Workers
from dmax.distillation.prompts import Prompts, load_prompts
from dmax.distillation.run import DistillationError, DistillationSettings, distill
from dmax.distillation.sources import GradedSource, PromptSource, find_source
from dmax.distillation.workers import InProcess, RayActors

__all__ = [
    "DistillationError",
    "DistillationSettings",
    "GradedSource",
    "InProcess",
    "Job",
    "PromptSource",
    "Prompts",
    "RayActors",
    "Shard",
    "Workers",
    "distill",
    "find_source",
    "load_prompts",
]
