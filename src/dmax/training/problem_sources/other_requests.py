"""``other-requests``: what people type that is no word problem."""

from __future__ import annotations

from collections.abc import Sequence

from dmax.problems import Split
from dmax.problems.everyday import OTHER_ANSWER, other_request
from dmax.training.problem_sources.base import DrawnConversations, Turn


class OtherRequests(DrawnConversations):
    """What people type that is no word problem, answered by one sentence about what the model can do."""

    name = "other-requests"

    def turns(self, index: int) -> Sequence[Turn]:
        return [request_turn(self.split, index, self.seed)]


def request_turn(split: Split, index: int, seed: int) -> Turn:
    """Return a request that is no word problem, and the sentence that answers it."""
    return other_request(split, index, seed), OTHER_ANSWER
