"""The claims of the paper and of MultiBD (algorithm.md#blocks-in-flight), each with the measurement that decides it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.reproduction.results import Point, Results
from benchmarks.reproduction.study import (
    ANYWHERE,
    BASE,
    CAUTIOUS,
    DEFAULT,
    DMAX,
    DPARALLEL,
    EAGER,
    HIERARCHICAL,
    MULTI_TF,
    OPUT_ALONE,
    SPD_ALONE,
    TWO_BLOCKS,
    UNIFORM,
    Repaired,
)

SAME = 1.0
"""Accuracy points that count as no loss, as the paper's own table has it."""
CLEAR = 5.0
"""Accuracy points that count as a clear difference."""


@dataclass(frozen=True)
class Finding:
    """What a measurement says about a claim."""

    measured: str
    holds: bool


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper."""

    key: str
    """Under which a note on it may be given."""
    text: str
    paper: str
    """The paper's figures, GSM8K where not said otherwise (algorithm.md#published-results)."""
    decide: Callable[[Results, Repaired], Finding]
    of_any_model: bool = False
    """Whether it is about decoding alone, so that a model which was not trained here can decide it too."""


def _faster_and_as_good(results: Results, model: Repaired) -> Finding:
    base, dmax = results.point(BASE.name, CAUTIOUS), results.point(model.one_block.name, DEFAULT)
    ratio, change = dmax.tpf / base.tpf, dmax.accuracy - base.accuracy
    return Finding(f"{ratio:.2f} times the TPF at {change:+.1f} points", ratio >= 2 and change >= -SAME)


def _area_rises(results: Results, model: Repaired) -> Finding:
    base, dmax = results.areas[BASE.name], results.areas[model.one_block.name]
    return Finding(f"AUP {base.value:.0f} → {dmax.value:.0f}", dmax.low > base.high)


def _base_collapses(results: Results, model: Repaired) -> Finding:
    dmax = results.point(model.one_block.name, DEFAULT)
    pushed = results.accuracy_at(BASE.name, dmax.tpf)
    if pushed is None:
        fastest = max(results.curve(BASE.name), key=lambda point: point.tpf)
        return Finding(
            f"the base never gets to TPF {dmax.tpf:.2f}; at {fastest.tpf:.2f} it has {fastest.accuracy:.1f} % against "
            f"{dmax.accuracy:.1f} %",
            dmax.accuracy - fastest.accuracy > CLEAR,
        )
    return Finding(
        f"at TPF {dmax.tpf:.2f} the base has {pushed:.1f} %, DMax {dmax.accuracy:.1f} %",
        dmax.accuracy - pushed > CLEAR,
    )


def _stays_flat(results: Results, model: Repaired) -> Finding:
    name = model.one_block.name
    slow, fast = results.point(name, CAUTIOUS), results.point(name, EAGER)
    return Finding(
        f"{slow.accuracy:.1f} % at TPF {slow.tpf:.2f}, {fast.accuracy:.1f} % at {fast.tpf:.2f}",
        slow.accuracy - fast.accuracy <= CLEAR,
    )


def _oput_alone(results: Results, model: Repaired) -> Finding:
    before, after = results.point(BASE.name, DEFAULT), results.point(OPUT_ALONE.name, DEFAULT)
    return Finding(
        f"{_say(before)} → {_say(after)}", after.accuracy - before.accuracy > SAME and after.tpf >= before.tpf
    )


def _soft_beats_hard(results: Results, model: Repaired) -> Finding:
    hard, soft = results.point(model.hard.name, EAGER), results.point(model.one_block.name, EAGER)
    return Finding(f"{_say(hard)} → {_say(soft)}", soft.accuracy - hard.accuracy > SAME)


def _soft_alone_collapses(results: Results, model: Repaired) -> Finding:
    base, alone = results.point(BASE.name, CAUTIOUS), results.point(SPD_ALONE.name, DEFAULT)
    return Finding(f"{base.accuracy:.1f} % → {alone.accuracy:.1f} %", base.accuracy - alone.accuracy > CLEAR)


def _prefix_helps(results: Results, model: Repaired) -> Finding:
    without, prefix = results.point(ANYWHERE.name, DEFAULT), results.point(DMAX.name, DEFAULT)
    return Finding(f"{_say(without)} → {_say(prefix)}", prefix.accuracy - without.accuracy > 0)


def _uniform_loses(results: Results, model: Repaired) -> Finding:
    base, uniform = results.point(BASE.name, CAUTIOUS), results.point(UNIFORM.name, DEFAULT)
    return Finding(f"{_say(base)} → {_say(uniform)}", base.accuracy - uniform.accuracy > CLEAR)


def _dparallel_helps(results: Results, model: Repaired) -> Finding:
    base, tuned = results.point(BASE.name, CAUTIOUS), results.point(DPARALLEL.name, CAUTIOUS)
    dmax = results.point(DMAX.name, DEFAULT)
    return Finding(
        f"TPF {base.tpf:.2f} → {tuned.tpf:.2f} at {tuned.accuracy - base.accuracy:+.1f} points; DMax {dmax.tpf:.2f}",
        base.tpf < tuned.tpf < dmax.tpf,
    )


def _hierarchical_helps(results: Results, model: Repaired) -> Finding:
    base, other = results.point(BASE.name, CAUTIOUS), results.point(HIERARCHICAL.name, CAUTIOUS)
    return Finding(f"{_say(base)} → {_say(other)}", other.tpf > base.tpf)


def _two_blocks_help(results: Results, model: Repaired) -> Finding:
    one, two = results.point(model.one_block.name, DEFAULT), results.point(model.two_blocks.name, DEFAULT)
    return Finding(f"{_say(one)} → {_say(two)}", two.tpf > one.tpf and one.accuracy - two.accuracy <= CLEAR)


def _training_for_it_helps(results: Results, model: Repaired) -> Finding:
    without, trained = results.point(TWO_BLOCKS.name, DEFAULT), results.point(MULTI_TF.name, DEFAULT)
    return Finding(f"{_say(without)} → {_say(trained)}", trained.accuracy > without.accuracy)


def _say(point: Point) -> str:
    return f"{point.accuracy:.1f} % at TPF {point.tpf:.2f}"


CLAIMS = (
    Claim("speed", "DMax decodes more than twice the tokens a forward, as accurately", "2.04 → 5.48 (2.69 times) at "
          "-0.5 points", _faster_and_as_good, of_any_model=True),
    Claim("aup", "It has the greater area under accuracy and parallelism", "AUP 340 → 557",
          _area_rises, of_any_model=True),
    Claim("collapse", "The base model collapses when its threshold is lowered to that speed", "92.6 → 42.1 % from TPF "
          "2.0 to 5.8", _base_collapses, of_any_model=True),
    Claim("flat", "DMax stays flat over its thresholds", "flat", _stays_flat, of_any_model=True),
    Claim("oput-alone", "OPUT alone makes decoding at threshold 0.5 more accurate and faster", "78 → 90 %",
          _oput_alone),
    Claim("soft", "On the OPUT model soft states beat hard ones at threshold 0", "68 → 90 %",
          _soft_beats_hard, of_any_model=True),
    Claim("soft-alone", "Soft states without OPUT collapse", "collapse", _soft_alone_collapses),
    Claim("prefix", "Keeping the decoded part a contiguous prefix helps", "helps", _prefix_helps),
    Claim("uniform", "Uniform diffusion training costs accuracy", "92.6 % at TPF 2.04 → 68.7 % at 2.26",
          _uniform_loses),
    Claim("dparallel", "dParallel is faster than the base, and slower than DMax", "TPF 2.04 → 2.79 at -0.3 points; "
          "DMax 5.48", _dparallel_helps),
    Claim("hierarchical", "Hierarchical decoding is a little faster than threshold decoding", "92.6 % at TPF 2.04 → "
          "91.6 % at 2.44", _hierarchical_helps),
    Claim("two-blocks", "Two blocks in flight decode more tokens a forward, at little loss", "91.9 % at TPF 5.70 → "
          "89.8 % at 8.76", _two_blocks_help, of_any_model=True),
    Claim("multi-tf", "Training on groups of noisy blocks wins that loss back", "89.8 % at TPF 8.76 → 91.7 % at 8.95",
          _training_for_it_helps),
)  # fmt: skip
