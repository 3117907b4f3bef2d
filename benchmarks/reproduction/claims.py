"""The claims of the paper and of MultiBD (algorithm.md#blocks-in-flight), and our own, each with what decides it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.reproduction.results import NotMeasured, Point, Results
from benchmarks.reproduction.study import (
    ANYWHERE,
    BASE,
    CALIBRATED,
    CAUTIOUS,
    CONSISTENCY,
    DEFAULT,
    DMAX,
    DPARALLEL,
    EAGER,
    ENTROPY,
    HARD,
    HIERARCHICAL,
    MULTI_TF,
    OPUT_ALONE,
    SOFT,
    SPD_ALONE,
    TWO_BLOCKS,
    UNIFORM,
    Method,
)

SAME = 1.0
"""Accuracy points that count as no loss, as the paper's own table has it."""
NEAR = 2.0
"""Accuracy points that our own aim allows."""
CLEAR = 5.0
"""Accuracy points that count as a clear difference."""
FASTER = 5.0
"""Times the base model's TPF that our own aim asks for."""


@dataclass(frozen=True)
class Finding:
    """What a measurement says about a claim."""

    measured: str
    holds: bool


@dataclass(frozen=True)
class Claim:
    """One sentence."""

    key: str
    """Under which a note on it may be given."""
    text: str
    paper: str
    """The paper's figures, GSM8K where not said otherwise (algorithm.md#published-results); empty for our claims."""
    decide: Callable[[Results], Finding]
    """Raises ``NotMeasured`` where something is missing."""
    follows: bool = False
    """Whether it is about a training whose course is measured, so that one can say when it begins to hold."""

    def finding(self, results: Results) -> Finding | None:
        """Decide it; None where something is not measured yet."""
        try:
            return self.decide(results)
        except NotMeasured:
            return None


def begins_to_hold(claim: Claim, by_share: Mapping[float, Results]) -> float | None:
    """Return the share of training from which on a claim holds; None where it does not at the end.

    Args:
        claim: to decide.
        by_share: the results at all shares of training, rising.
    """
    begin = None
    for share, results in reversed(list(by_share.items())):
        finding = claim.finding(results)
        if finding is None or not finding.holds:
            break
        begin = share
    return begin


def _faster_and_as_good(results: Results, method: Method, times: float, loss: float) -> Finding:
    base, tuned = results.point(BASE, CAUTIOUS), results.point(method, DEFAULT)
    ratio, change = tuned.tpf / base.tpf, tuned.accuracy - base.accuracy
    return Finding(f"{ratio:.2f} times the TPF at {change:+.1f} points", ratio >= times and change >= -loss)


def _area_rises(results: Results, before: Method, after: Method) -> Finding:
    first, second = results.area(before), results.area(after)
    return Finding(f"AUP {first.value:.0f} → {second.value:.0f}", second.low > first.high)


def _base_collapses(results: Results) -> Finding:
    dmax = results.point(DMAX, DEFAULT)
    pushed = results.accuracy_at(BASE, dmax.tpf)
    if pushed is None:
        fastest = max(results.curve(BASE), key=lambda point: point.tpf)
        return Finding(
            f"the base never gets to TPF {dmax.tpf:.2f}; at {fastest.tpf:.2f} it has {fastest.accuracy:.1f} % against "
            f"{dmax.accuracy:.1f} %",
            dmax.accuracy - fastest.accuracy > CLEAR,
        )
    return Finding(
        f"at TPF {dmax.tpf:.2f} the base has {pushed:.1f} %, DMax {dmax.accuracy:.1f} %",
        dmax.accuracy - pushed > CLEAR,
    )


def _stays_flat(results: Results, method: Method, down_to: float, loss: float) -> Finding:
    """Tell whether little is lost at a lower threshold, where there is something to lose: at the base's accuracy."""
    base, slow, fast = results.point(BASE, CAUTIOUS), results.point(method, CAUTIOUS), results.point(method, down_to)
    flat, as_good = slow.accuracy - fast.accuracy <= loss, base.accuracy - slow.accuracy <= CLEAR
    return Finding(
        f"{_change(slow, fast)}{'' if as_good else f'; the base has {base.accuracy:.1f} %'}", flat and as_good
    )


def _is_flatter(results: Results) -> Finding:
    (oput, before), (soft, after) = (
        (results.point(method, CAUTIOUS).accuracy, results.point(method, DEFAULT).accuracy) for method in (DMAX, SOFT)
    )
    return Finding(f"from {CAUTIOUS:g} to {DEFAULT:g}: {before - oput:+.1f} and {after - soft:+.1f} points",
                   after - soft > before - oput + SAME)  # fmt: skip


def _faster_at_equal_accuracy(results: Results) -> Finding:
    level = results.point(BASE, CAUTIOUS).accuracy - NEAR
    oput, soft = results.tpf_at(DMAX, level), results.tpf_at(SOFT, level)
    said = ["never" if tpf is None else f"up to TPF {tpf:.2f}" for tpf in (oput, soft)]
    return Finding(f"{level:.1f} %: {said[0]} → {said[1]}", (soft or 0) > (oput or 0))


def _improves(results: Results, before: tuple[Method, float], after: tuple[Method, float]) -> Finding:
    """Tell whether accuracy rises beyond chance, and speed does not fall."""
    first, second = results.point(*before), results.point(*after)
    return Finding(_change(first, second), second.accuracy - first.accuracy > SAME and second.tpf >= first.tpf)


def _is_more_accurate(results: Results, before: Method, after: Method, threshold: float, by: float) -> Finding:
    first, second = results.point(before, threshold), results.point(after, threshold)
    return Finding(_change(first, second), second.accuracy - first.accuracy > by)


def _loses_clearly(results: Results, method: Method) -> Finding:
    base, other = results.point(BASE, CAUTIOUS), results.point(method, DEFAULT)
    return Finding(_change(base, other), base.accuracy - other.accuracy > CLEAR)


def _dparallel_helps(results: Results) -> Finding:
    base, tuned, dmax = results.point(BASE, CAUTIOUS), results.point(DPARALLEL, CAUTIOUS), results.point(DMAX, DEFAULT)
    change = tuned.accuracy - base.accuracy
    return Finding(
        f"TPF {base.tpf:.2f} → {tuned.tpf:.2f} at {change:+.1f} points; DMax {dmax.tpf:.2f}",
        base.tpf < tuned.tpf < dmax.tpf and change >= -CLEAR,
    )


def _hierarchical_helps(results: Results) -> Finding:
    base, other = results.point(BASE, CAUTIOUS), results.point(HIERARCHICAL, CAUTIOUS)
    return Finding(_change(base, other), other.tpf > base.tpf)


def _two_blocks_help(results: Results) -> Finding:
    one, two = results.point(DMAX, DEFAULT), results.point(TWO_BLOCKS, DEFAULT)
    return Finding(_change(one, two), two.tpf > one.tpf and one.accuracy - two.accuracy <= CLEAR)


def _say(point: Point) -> str:
    return f"{point.accuracy:.1f} % at TPF {point.tpf:.2f}"


def _change(before: Point, after: Point) -> str:
    return f"{_say(before)} → {_say(after)}"


_AT_HALF = partial(_improves, before=(DMAX, DEFAULT))
PAPER: Sequence[Claim] = (
    Claim("speed", "DMax decodes more than twice the tokens a forward, as accurately", "2.04 → 5.48 (2.69 times) at "
          "-0.5 points", partial(_faster_and_as_good, method=DMAX, times=2, loss=SAME), follows=True),
    Claim("aup", "It has the greater area under accuracy and parallelism", "AUP 340 → 557",
          partial(_area_rises, before=BASE, after=DMAX)),
    Claim("collapse", "The base model collapses when its threshold is lowered to that speed", "92.6 → 42.1 % from TPF "
          "2.0 to 5.8", _base_collapses, follows=True),
    Claim("flat", "DMax stays flat over its thresholds, down to 0", "flat",
          partial(_stays_flat, method=DMAX, down_to=EAGER, loss=CLEAR)),
    Claim("oput-alone", "OPUT alone makes decoding at threshold 0.5 more accurate and faster", "78 → 90 %",
          partial(_improves, before=(BASE, DEFAULT), after=(OPUT_ALONE, DEFAULT)), follows=True),
    Claim("soft", "On the OPUT model soft states beat hard ones at threshold 0", "68 → 90 %",
          partial(_is_more_accurate, before=HARD, after=DMAX, threshold=EAGER, by=SAME)),
    Claim("soft-alone", "Soft states without OPUT collapse", "collapse", partial(_loses_clearly, method=SPD_ALONE)),
    Claim("prefix", "Keeping the decoded part a contiguous prefix helps", "helps",
          partial(_is_more_accurate, before=ANYWHERE, after=DMAX, threshold=DEFAULT, by=0)),
    Claim("uniform", "Uniform diffusion training costs accuracy", "92.6 % at TPF 2.04 → 68.7 % at 2.26",
          partial(_loses_clearly, method=UNIFORM), follows=True),
    Claim("dparallel", "dParallel is faster than the base at little loss, and slower than DMax", "TPF 2.04 → 2.79 at "
          "-0.3 points; DMax 5.48", _dparallel_helps, follows=True),
    Claim("hierarchical", "Hierarchical decoding is a little faster than threshold decoding", "92.6 % at TPF 2.04 → "
          "91.6 % at 2.44", _hierarchical_helps),
    Claim("two-blocks", "Two blocks in flight decode more tokens a forward, at little loss", "91.9 % at TPF 5.70 → "
          "89.8 % at 8.76", _two_blocks_help, follows=True),
    Claim("multi-tf", "Training on groups of noisy blocks wins that loss back", "89.8 % at TPF 8.76 → 91.7 % at 8.95",
          partial(_is_more_accurate, before=TWO_BLOCKS, after=MULTI_TF, threshold=DEFAULT, by=0)),
)  # fmt: skip
OURS: Sequence[Claim] = (
    Claim("oput-half", "DMax loses at most 2 points from threshold 0.95 to 0.5", "",
          partial(_stays_flat, method=DMAX, down_to=DEFAULT, loss=NEAR), follows=True),
    Claim("oput-aim", "At threshold 0.5 DMax is within 2 points of the base, at 5 times its TPF", "",
          partial(_faster_and_as_good, method=DMAX, times=FASTER, loss=NEAR), follows=True),
    Claim("soft-flat", "Soft rollouts stay flat over thresholds, down to 0", "",
          partial(_stays_flat, method=SOFT, down_to=EAGER, loss=CLEAR)),
    Claim("soft-half", "Soft rollouts lose at most 2 points from threshold 0.95 to 0.5", "",
          partial(_stays_flat, method=SOFT, down_to=DEFAULT, loss=NEAR), follows=True),
    Claim("soft-flatter", "Soft rollouts are flatter than OPUT of the same compute", "", _is_flatter, follows=True),
    Claim("soft-equal", "Soft rollouts decode more tokens a forward than OPUT at one accuracy, 2 points below the base",
          "", _faster_at_equal_accuracy),
    Claim("soft-aup", "Soft rollouts have a greater AUP than OPUT", "", partial(_area_rises, before=DMAX, after=SOFT)),
    Claim("soft-aim", "At threshold 0.5 soft rollouts are within 2 points of the base, at 5 times its TPF", "",
          partial(_faster_and_as_good, method=SOFT, times=FASTER, loss=NEAR), follows=True),
    Claim("consistency", "Consistency between passes makes threshold 0.5 more accurate, and no slower", "",
          partial(_AT_HALF, after=(CONSISTENCY, DEFAULT)), follows=True),
    Claim("calibrated", "Calibrated confidence makes threshold 0.5 more accurate, and no slower", "",
          partial(_AT_HALF, after=(CALIBRATED, DEFAULT)), follows=True),
    Claim("entropy-weighted", "Entropy weights make threshold 0.5 more accurate, and no slower", "",
          partial(_AT_HALF, after=(ENTROPY, DEFAULT)), follows=True),
)  # fmt: skip
CLAIMS = (*PAPER, *OURS)
