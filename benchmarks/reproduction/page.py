"""``docs/results/reproduction.md`` and its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.reproduction.claims import CLAIMS, CLEAR, SAME, Finding
from benchmarks.reproduction.results import Point, Results
from benchmarks.reproduction.study import (
    ABLATIONS,
    CAUTIOUS,
    DEFAULT,
    DMAX,
    EMBEDDED,
    GROUP_ABLATIONS,
    MULTI_TF,
    PICTURES,
    TABLE,
    TRAINED,
    Method,
)

from dmax.evaluation.plots import Curve, Spot, draw_tradeoff
from dmax.evaluation.report import CONVENTIONS, Table
from dmax.evaluation.tradeoff import AUP_NOTE

_PICTURE = "assets/reproduction"
"""Without its ending, as seen from the page's folder."""


def write_page(results: Results, page: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write the page, and ``assets/reproduction.png`` and ``.svg`` beside it.

    Args:
        results: of the whole study.
        page: the Markdown file.
        notes: why we think a claim holds or not, by the claim's key; written by hand.
    """
    picture = page.parent / _PICTURE
    picture.parent.mkdir(parents=True, exist_ok=True)
    panels = {
        title: [Curve(method.name, tuple(map(_spot, results.curve(method.name)))) for method in methods]
        for title, methods in PICTURES.items()
    }
    draw_tradeoff(panels, picture, "tokens per forward (TPF), mean over problems")
    page.write_text(to_markdown(results, notes or {}), encoding="utf-8")


def to_markdown(results: Results, notes: Mapping[str, str]) -> str:
    """Write the whole page as Markdown."""
    record = results.record
    scale, hardware = record["scale"], record["hardware"]
    hours = sum(cost["hours"] for cost in record["trainings"].values())
    answering = sum(point["metrics"]["wall_seconds"] for point in record["points"]) / 3600
    parts = [
        "# The paper, reproduced at nano scale",
        f"Written by `{' '.join(record['command'])}` on {hardware['processor']} ({hardware['cores']} "
        f"cores), torch {record['versions']['torch']}: {len(record['trainings'])} trainings from "
        f"`{record['base']['name']}` on {record['distilled']['kept']:,} of its own right answers ({hours:.1f} hours), "
        f"{len(record['points'])} settings on the same {scale['problems']:,} fresh problems ({answering:.1f} hours), "
        f"{record['jobs']} at a time. Training seeds: {', '.join(map(str, scale['seeds']))}; ablations have the first "
        "alone.",
        "## The paper's claims",
        _claims(results, notes).to_markdown(),
        f"A loss of up to {SAME:g} accuracy point counts as none, one above {CLEAR:g} as clear. "
        f"`{EMBEDDED.one_block.name}` is the package's embedded model, of the same base and the same objective.",
        "## The table",
        _methods(results).to_markdown(),
        f"Each method at the threshold that the paper gives it ({CAUTIOUS:g}; soft-parallel {DEFAULT:g}); intervals "
        "are 95 % bootstrap over problems, every problem's result being the mean over training seeds. Answers were "
        f"computed in {record['dtype'] or 'float32'}. `joint-threshold` replaces tokens that the model doubts: the "
        "base was never trained on its own mistakes and replaces right ones, too.",
        f"![Accuracy against tokens per forward]({_PICTURE}.png)",
        "## Ablations",
        _ablations(results, (DMAX, *ABLATIONS)).to_markdown(),
        "Of the training for blocks in flight:",
        _ablations(results, (MULTI_TF, *GROUP_ABLATIONS)).to_markdown(),
        f"Of `{EMBEDDED.one_block.name}`:",
        _ablations(results, (EMBEDDED.one_block, EMBEDDED.hard)).to_markdown(),
        "## All settings",
        _points(results).to_markdown(),
        *_gsm8k(results),
        "---",
        *CONVENTIONS,
        AUP_NOTE,
    ]
    return "\n\n".join(parts) + "\n"


def _claims(results: Results, notes: Mapping[str, str]) -> Table:
    rows = []
    for claim in CLAIMS:
        longer = _verdict(claim.decide(results, EMBEDDED)) if claim.of_any_model else ""
        ours = _verdict(claim.decide(results, TRAINED))
        rows.append((claim.text, claim.paper, ours, longer, notes.get(claim.key, "")))
    header = ("Claim", "Paper", "Trained here", f"{EMBEDDED.one_block.name}, trained longer", "Why, we think")
    return Table(header, rows, numbers=False)


def _verdict(finding: Finding) -> str:
    return f"{'✓ holds' if finding.holds else '✗ does not hold'}: {finding.measured}"


def _threshold(method: Method) -> float:
    return DEFAULT if method.decoder == "soft-parallel" else CAUTIOUS


def _methods(results: Results) -> Table:
    rows = []
    for method in TABLE:
        point = results.point(method.name, _threshold(method))
        area = results.areas[method.name]
        aup = f"{area.value:.0f} [{area.low:.0f}, {area.high:.0f}]"
        rows.append((method.name, *_cells(point), aup))
    return Table(("Method", "TPF [95 %]", "TPS, batch 32", "Accuracy, % [95 %]", "Seeds", "AUP [95 %]"), rows)


def _ablations(results: Results, methods: Sequence[Method]) -> Table:
    rows = []
    for method in methods:
        cells = []
        for threshold in ABLATIONS[0].thresholds:
            point = results.point(method.name, threshold)
            low, high = point.intervals[0]
            cells += [f"{point.tpf:.2f}", f"{point.accuracy:.1f} [{low:.1f}, {high:.1f}]"]
        rows.append((method.name, *cells))
    headers = [f"{what}, threshold {t:g}" for t in ABLATIONS[0].thresholds for what in ("TPF", "accuracy, %")]
    return Table(("Changed", *headers), rows)


def _points(results: Results) -> Table:
    rows = [
        (method.name, f"{point.threshold:g}", *_cells(point))
        for method in TABLE
        for point in results.methods.get(method.name, [])
    ]
    return Table(("Method", "Threshold", "TPF [95 %]", "TPS, batch 32", "Accuracy, % [95 %]", "Seeds"), rows)


def _gsm8k(results: Results) -> Sequence[str]:
    if not results.gsm8k:
        return ()
    rows = [(name, f"{p.threshold:g}", *_cells(p)) for name, points in results.gsm8k.items() for p in points]
    table = Table(("Method", "Threshold", "TPF [95 %]", "TPS, batch 32", "Accuracy, % [95 %]", "Seeds"), rows)
    return (
        "## Real GSM8K",
        "Models of this size know the templates that they were trained on and no other language.",
        table.to_markdown(),
    )


def _cells(point: Point) -> tuple[str, str, str, str]:
    (low, high), (slow, fast) = point.intervals
    seeds = " / ".join(f"{accuracy:.1f}" for accuracy in point.of_seeds)
    return (
        f"{point.tpf:.2f} [{slow:.2f}, {fast:.2f}]",
        f"{point.tps:,.0f}",
        f"{point.accuracy:.1f} [{low:.1f}, {high:.1f}]",
        seeds,
    )


def _spot(point: Point) -> Spot:
    low, high = point.intervals[0]
    return Spot(point.tpf, point.accuracy, low, high, f"{point.threshold:g}")
