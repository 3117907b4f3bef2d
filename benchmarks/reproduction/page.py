"""``docs/results/reproduction.md`` and its pictures, from whatever is measured by now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.reproduction.claims import CLEAR, FASTER, NEAR, OURS, PAPER, SAME, Claim, Finding, begins_to_hold
from benchmarks.reproduction.curves import draw_curves
from benchmarks.reproduction.gather import Study
from benchmarks.reproduction.questions import SETS, TASKS
from benchmarks.reproduction.results import NotMeasured, Point, Results
from benchmarks.reproduction.study import (
    BRANCH,
    BRANCHES,
    CAUTIOUS,
    DECODING_ABLATIONS,
    DEFAULT,
    DMAX,
    FLATNESS,
    GSM8K_SETTINGS,
    HALF,
    METHODS,
    PICTURES,
    TABLE,
    Method,
)

from dmax.evaluation.plots import Curve, Spot, draw_tradeoff
from dmax.evaluation.report import CONVENTIONS, Table
from dmax.evaluation.tradeoff import AUP_NOTE

_PICTURE, _CURVES = "assets/reproduction", "assets/reproduction-training"
"""Without their endings, as seen from the page's folder."""
_OPEN = "not measured yet"


def write_page(study: Study, page: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write the page, and its two pictures as PNG and SVG in ``assets/`` beside it.

    Args:
        study: as far as it has come.
        page: the Markdown file.
        notes: why we think a claim holds or not, by the claim's key; written by hand.
    """
    (page.parent / _PICTURE).parent.mkdir(parents=True, exist_ok=True)
    panels = {
        f"{name}, {title}": [curve for method in methods if (curve := _curve(study.on(name), method)).spots]
        for title, methods in PICTURES.items()
        for name in SETS
    }
    shown = {title: curves for title, curves in panels.items() if curves}
    if shown:
        draw_tradeoff(shown, page.parent / _PICTURE, "tokens per forward (TPF), mean over problems")
    draw_curves(study, page.parent / _CURVES)
    page.write_text(to_markdown(study, notes or {}), encoding="utf-8")


def to_markdown(study: Study, notes: Mapping[str, str]) -> str:
    """Write the whole page as Markdown."""
    record = study.record
    scale, hardware, trainings = record["scale"], record["hardware"], record["trainings"]
    hours = sum(cost["hours"] for cost in trainings.values())
    answering = sum(metrics["wall_seconds"] for point in record["points"] for metrics in point["metrics"].values())
    parts = [
        "# The paper, reproduced at nano scale",
        f"Written by `{' '.join(record['command'])}` on {hardware['processor']} ({hardware['cores']} cores), torch "
        f"{record['versions']['torch']}: {len(trainings)} trainings ({hours:.1f} hours) and {len(record['points'])} "
        f"settings ({answering / 3600:.1f} hours), each on {scale['problems']:,} everyday problems, of which the first "
        "are the development questions, and as many of gsm-symbolic. All trainings start from the base of the "
        f"embedded `nano` (`{record['base'][:15]}`), with data, batches, optimiser and steps of "
        f"`{record['recipe']['name']}`; "
        "where a step costs more forwards than OPUT's, there are fewer, so that both take the same compute."
        + ("" if scale["share"] == 1 else f" **Tried out with {scale['share']:.1%} of all steps and problems.**"),
        "## The paper's claims",
        _claims(study, PAPER, notes).to_markdown(),
        "## Our own",
        _claims(study, OURS, notes).to_markdown(),
        f"A loss of up to {SAME:g} accuracy point counts as none, one above {CLEAR:g} as clear; our aim is a loss of "
        f"at most {NEAR:g} at {FASTER:g} times the TPF. Flat is only what comes within {CLEAR:g} points of the base at "
        f"threshold {CAUTIOUS:g}. A claim begins to hold at the share of training from which on "
        "it does, by the first seed before the end.",
        "## The course of training",
        f"![Accuracy, tokens per forward and claims over the steps]({_CURVES}.png)",
        "## Flatness",
        *_flatness(study),
        "## The table",
        *_by_set(study, _methods),
        f"Each method at the threshold that the paper gives it ({CAUTIOUS:g}; soft-parallel {DEFAULT:g}); intervals "
        "are 95 % bootstrap over problems, every problem's result being the mean over training seeds. Answers were "
        f"computed in {record['dtype'] or 'float32'}.",
        f"![Accuracy against tokens per forward]({_PICTURE}.png)",
        "## Ablations",
        "Of decoding, with the OPUT model:",
        *_by_set(study, lambda results: _ablations(results, (DMAX, *DECODING_ABLATIONS))),
        f"Of training: each goes on from the OPUT model at {HALF:.0%} of its steps, with a new optimiser.",
        *_by_set(study, lambda results: _ablations(results, (BRANCH, *BRANCHES))),
        "## All settings",
        _points(study).to_markdown(),
        *_gsm8k(study),
        "## Trainings",
        _trainings(study).to_markdown(),
        "---",
        *CONVENTIONS,
        AUP_NOTE,
    ]
    return "\n\n".join(parts) + "\n"


def _claims(study: Study, claims: Sequence[Claim], notes: Mapping[str, str]) -> Table:
    rows = []
    for claim in claims:
        cells = [claim.text, *([claim.paper] if claims is PAPER else [])]
        cells += [_verdict(claim.finding(study.on(name))) for name in SETS]
        begins = [begins_to_hold(claim, study.course(name)) for name in SETS]
        cells.append(" / ".join("–" if b is None else f"{b:.0%}" for b in begins) if claim.follows else "")
        rows.append((*cells, notes.get(claim.key, "")))
    paper = ("Paper",) if claims is PAPER else ()
    return Table(("Claim", *paper, *SETS, "Begins to hold", "Why, we think"), rows, numbers=False)


def _verdict(finding: Finding | None) -> str:
    if finding is None:
        return _OPEN
    return f"{'✓ holds' if finding.holds else '✗ does not hold'}: {finding.measured}"


def _by_set(study: Study, table: Callable[[Results], Table]) -> Iterator[str]:
    """Yield a table for every set of problems that has one, each under its name."""
    for name in SETS:
        made = table(study.on(name))
        yield f"### On {name}" if made.rows else f"On {name}: {_OPEN}."
        if made.rows:
            yield made.to_markdown()


def _threshold(method: Method) -> float:
    return DEFAULT if method.decoder == "soft-parallel" else CAUTIOUS


def _methods(results: Results) -> Table:
    rows = []
    for method in TABLE:
        try:
            area, point = results.area(method), results.point(method, _threshold(method))
        except NotMeasured:
            continue
        rows.append((method.name, *_cells(point), f"{area.value:.0f} [{area.low:.0f}, {area.high:.0f}]"))
    return Table(("Method", "TPF [95 %]", "TPS, batch 32", "Accuracy, % [95 %]", "Seeds", "AUP [95 %]"), rows)


def _flatness(study: Study) -> Iterator[str]:
    """Yield accuracy and speed of each method over its thresholds, and what the lower ones lose."""

    def table(results: Results) -> Table:
        rows = []
        for method in FLATNESS:
            try:
                points = results.curve(method)
            except NotMeasured:
                continue
            first = points[0].accuracy
            lost = first - results.point(method, DEFAULT).accuracy, first - min(point.accuracy for point in points)
            cells = [f"{point.accuracy:.1f} ({point.tpf:.2f})" for point in points]
            rows.append((method.name, *cells, *(f"{points_lost:.1f}" for points_lost in lost)))
        thresholds = [f"{threshold:g}" for threshold in DMAX.thresholds]
        return Table(("Accuracy, % (TPF) at", *thresholds, f"lost at {DEFAULT:g}", "lost at worst"), rows)

    yield from _by_set(study, table)


def _ablations(results: Results, methods: Sequence[Method]) -> Table:
    rows = []
    thresholds = methods[-1].thresholds
    for method in methods:
        try:
            points = [results.point(method, threshold) for threshold in thresholds]
        except NotMeasured:
            continue
        cells = []
        for point in points:
            low, high = point.intervals[0]
            cells += [f"{point.tpf:.2f}", f"{point.accuracy:.1f} [{low:.1f}, {high:.1f}]"]
        rows.append((method.name, *cells))
    headers = [f"{what}, threshold {t:g}" for t in thresholds for what in ("TPF", "accuracy, %")]
    return Table(("Changed", *headers), rows)


def _points(study: Study) -> Table:
    """Make the table of every setting, its tasks apart."""
    by_task = {task: study.on_task(task) for task in TASKS}
    rows = []
    for method in METHODS:
        for threshold in method.thresholds:
            try:
                points = [results.point(method, threshold) for results in by_task.values()]
            except NotMeasured:
                continue
            cells = [cell for point in points for cell in (f"{point.tpf:.2f}", _cells(point)[2])]
            rows.append((method.name, f"{threshold:g}", *cells))
    headers = [f"{what}, {name}" for name in TASKS.values() for what in ("TPF", "accuracy, %")]
    return Table(("Method", "Threshold", *headers), rows)


def _gsm8k(study: Study) -> Sequence[str]:
    results = study.on_gsm8k()
    rows = []
    for method, threshold in GSM8K_SETTINGS:
        try:
            rows.append((method.name, f"{threshold:g}", *_cells(results.point(method, threshold))))
        except NotMeasured:
            continue
    if not rows:
        return ()
    header = ("Method", "Threshold", "TPF [95 %]", "TPS, batch 32", "Accuracy, % [95 %]", "Seeds")
    return "## Real GSM8K", Table(header, rows).to_markdown()


def _trainings(study: Study) -> Table:
    starts = {"base": "the base", "oput": "OPUT, finished", "half": f"OPUT at {HALF:.0%}"}
    rows = [
        (
            name,
            starts[cost["start"]],
            f"{cost['steps']:,}" if cost["steps"] == cost["of"] else f"{cost['steps']:,} of {cost['of']:,}",
            f"{cost['forwards']:,}",
            f"{cost['hours']:.2f}",
        )
        for name, cost in study.record["trainings"].items()
    ]
    return Table(("Training", "From", "Steps", "Forwards, a backward pass as two", "Hours"), rows)


def _cells(point: Point) -> tuple[str, str, str, str]:
    (low, high), (slow, fast) = point.intervals
    seeds = " / ".join(f"{accuracy:.1f}" for accuracy in point.of_seeds)
    return (
        f"{point.tpf:.2f} [{slow:.2f}, {fast:.2f}]",
        f"{point.tps:,.0f}",
        f"{point.accuracy:.1f} [{low:.1f}, {high:.1f}]",
        seeds,
    )


def _curve(results: Results, method: Method) -> Curve:
    spots = []
    for point in results.methods.get(method.name, []):
        low, high = point.intervals[0]
        spots.append(Spot(point.tpf, point.accuracy, low, high, f"{point.threshold:g}"))
    return Curve(method.name, tuple(spots))
