"""The course of training as one picture: accuracy and speed after shares of the steps, and which claims hold then."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.reproduction.claims import CLAIMS, Finding
from benchmarks.reproduction.gather import Study
from benchmarks.reproduction.questions import SETS
from benchmarks.reproduction.results import END, NotMeasured, Point
from benchmarks.reproduction.study import BASE, CAUTIOUS, CURVE_THRESHOLDS, CURVES, SHARES, Method

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = (*SHARES, END)
_MARKERS = "os^vDPX*<>h"


def course(study: Study, name: str, method: Method, threshold: float) -> list[tuple[float, Point]]:
    """List what is known of a method at a threshold on a set of problems, by share of its training."""
    found = []
    for share, results in study.course(name).items():
        try:
            found.append((share, results.point(method, threshold)))
        except NotMeasured:
            continue
    return found


def verdicts(study: Study, name: str) -> dict[str, list[Finding | None]]:
    """Decide every claim about training at every share of it, by the claim's text; None where it is not decided."""
    return {claim.text: [claim.finding(study.on(name, share)) for share in STEPS] for claim in CLAIMS if claim.follows}


def draw_curves(study: Study, stem: Path) -> None:
    """Write ``stem``.png and ``stem``.svg: for each set of problems, accuracy and TPF at two thresholds, and claims."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 8, "svg.hashsalt": "dmax", "axes.spines.right": False, "axes.spines.top": False}):
        figure = Figure(figsize=(13, 7.5 * len(SETS)), layout="constrained")
        parts = figure.subfigures(len(SETS), 1, squeeze=False)[:, 0]
        for part, name in zip(parts, SETS, strict=True):
            part.suptitle(name)
            axes = part.subplot_mosaic([["a0", "a1", "claims"], ["t0", "t1", "claims"]], width_ratios=[1, 1, 1.15])
            for place, threshold in enumerate(CURVE_THRESHOLDS):
                _draw_courses(study, name, threshold, axes[f"a{place}"], axes[f"t{place}"])
            _draw_claims(study, name, axes["claims"])
            handles, labels = axes["a0"].get_legend_handles_labels()
            if handles:
                part.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
        figure.savefig(stem.with_suffix(".png"), dpi=140)
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})  # the same points give the same file


def _draw_courses(study: Study, name: str, threshold: float, accuracy: Axes, speed: Axes) -> None:
    from matplotlib import colormaps

    for place, method in enumerate(CURVES):
        points = course(study, name, method, threshold)
        if points:
            shares, found = [100 * share for share, _ in points], [point for _, point in points]
            colour = colormaps["tab20"](place)
            look: dict[str, Any] = {"marker": _MARKERS[place % len(_MARKERS)], "color": colour, "markersize": 4}
            low, high = zip(*(point.intervals[0] for point in found), strict=True)
            accuracy.plot(shares, [point.accuracy for point in found], label=method.name, **look)
            accuracy.fill_between(shares, low, high, color=colour, alpha=0.08)
            speed.plot(shares, [point.tpf for point in found], **look)
    try:
        base = study.on(name).point(BASE, CAUTIOUS)
        accuracy.axhline(base.accuracy, color="#667079", linestyle=":", label=f"base at {CAUTIOUS:g}")
        speed.axhline(base.tpf, color="#667079", linestyle=":")
    except NotMeasured:
        pass
    accuracy.set(title=f"threshold {threshold:g}", ylabel="accuracy (%), bands: 95 % interval", ylim=(0, 100))
    speed.set(ylabel="tokens per forward (TPF)", xlabel="share of the steps (%)")
    for axes in (accuracy, speed):
        axes.grid(alpha=0.3)


def _draw_claims(study: Study, name: str, axes: Axes) -> None:
    """Draw a row of marks for every claim: full where it holds, hollow where it does not, none where undecided."""
    decided = verdicts(study, name)
    for row, findings in enumerate(decided.values()):
        for column, finding in enumerate(findings):
            if finding is not None:
                face = "#009e73" if finding.holds else "none"
                axes.plot(column, -row, "o", markersize=8, markerfacecolor=face, markeredgecolor="#1d2329")
    axes.set_xticks(range(len(STEPS)), [f"{100 * share:g}" for share in STEPS])
    axes.set_yticks([-row for row in range(len(decided))], [_wrapped(text) for text in decided])
    axes.set(title="claims: full where they hold", xlabel="share of the steps (%)")
    axes.set(xlim=(-0.5, len(STEPS) - 0.5), ylim=(-len(decided) + 0.5, 0.5))
    axes.tick_params(length=0)


def _wrapped(text: str, width: int = 38) -> str:
    from textwrap import fill

    return fill(text, width)
