"""Where shards are answered: in this process, or by actors of Ray Data on one machine or many."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from dmax.distillation.job import AnsweredShard, Job, Shard, answer_shard
from dmax.evaluation.answerers import Answerer


class WorkersError(ValueError):
    """Workers that cannot work."""


@dataclass(frozen=True)
class InProcess:
    """One shard after another, here."""

    make: Callable[[], Answerer]
    """Loads the model; called when the first shard is to be answered."""

    def answer(self, job: Job, shards: Iterable[Shard]) -> Iterator[AnsweredShard]:
        answerer = None
        for shard in shards:
            answerer = answerer or self.make()
            yield answer_shard(job, answerer, shard)


@dataclass(frozen=True)
class RayActors:
    """Actors of Ray Data, each of which holds the model; needs the ``ray`` extra.

    They run on the cluster that ``RAY_ADDRESS`` names, else on this machine. An actor that dies is started again, and
    its shard with it.
    """

    make: Callable[[], Answerer]
    """Loads the model, in the actor."""
    count: int
    """Actors at a time."""
    gpus: float | None = None
    """GPUs of an actor; by default 1 where the cluster has any."""

    def answer(self, job: Job, shards: Iterable[Shard]) -> Iterator[AnsweredShard]:
        ray: Any = import_module("ray")
        ray_data: Any = import_module("ray.data")
        by_number = {shard.number: shard for shard in shards}
        if not by_number:
            return
        ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
        ray_data.DataContext.get_current().enable_progress_bars = False
        gpus = self.gpus if self.gpus is not None else float("GPU" in ray.cluster_resources())
        rows = [{"shard": number} for number in by_number]
        answered = ray_data.from_items(rows, override_num_blocks=len(rows)).map(
            _Actor,
            fn_constructor_args=(self.make, job, by_number),
            compute=ray_data.ActorPoolStrategy(size=min(self.count, len(rows))),
            num_gpus=gpus,
        )
        try:
            for row in answered.iter_rows():
                yield AnsweredShard(**json.loads(row["answered"]))
        except ray.exceptions.RayError as error:
            raise WorkersError(
                f"a Ray actor failed ({_first_cause(str(error))}); the shards that were answered are kept."
            ) from error


def _first_cause(tracebacks: str) -> str:
    """Find the last line of the first traceback: Ray puts its own errors behind the one that an actor raised."""
    first = tracebacks.partition("\n\nThe above exception was")[0]
    return first.strip().rpartition("\n")[2].rstrip(".")


class _Actor:
    """Holds one model and the prompts; is asked by number, and answers as JSON."""

    def __init__(self, make: Callable[[], Answerer], job: Job, shards: Mapping[int, Shard]) -> None:
        self._answerer = make()
        self._job = job
        self._shards = shards

    def __call__(self, row: dict[str, int]) -> dict[str, str]:
        answered = answer_shard(self._job, self._answerer, self._shards[row["shard"]])
        return {"answered": json.dumps(asdict(answered))}
