"""The DMax effect on the embedded models: accuracy against tokens per forward, on fresh word problems.

Answers the same unseen problems with the base model (`threshold` decoding, from its default down) and with the model
that OPUT made of it (`soft-parallel`, over its thresholds), then lowers the base model's threshold until it is as fast
as the other at its default. Accuracy is the share of problems whose final number is right, with a 95 % bootstrap
interval; TPF is tokens before EOS per forward, the prefill counted as one forward. Prints README's table. Curves, and
the search for that threshold, take the first of the problems alone.

    python benchmarks/nano_effect.py [--problems N] [--curve-problems N] [--seed N] [--json FILE] [--plot FILE.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from answered import GEN_LENGTH, Problems
from run_record import describe_model, describe_run, parse_arguments, report

from dmax import LLM, GenerationParams

BASE_THRESHOLDS = (0.95, 0.8, 0.65, 0.5, 0.4, 0.3)
NANO_THRESHOLDS = (0.95, 0.8, 0.65, 0.5, 0.0)
SEARCH_STEPS = 5


def by_threshold(value: float | None, decoder: str) -> GenerationParams:
    return GenerationParams(decoder=decoder, threshold=value, gen_length=GEN_LENGTH)


def base_as_fast_as(tpf: float, problems: Problems, llm: LLM, tried: list[dict[str, Any]]) -> dict[str, Any]:
    """Lower the base model's threshold, by bisection, until its TPF is that of the other."""
    low, high = 0.0, 0.95
    closest = min(tried, key=lambda p: abs(p["tpf"] - tpf))
    for _ in range(SEARCH_STEPS):
        below = [p["threshold"] for p in tried if p["tpf"] >= tpf]
        above = [p["threshold"] for p in tried if p["tpf"] < tpf]
        low, high = max([low, *below]), min([high, *above])
        params = by_threshold(round((low + high) / 2, 4), "threshold")
        tried.append(problems.point("nano-base", llm, params))
        closest = min(tried, key=lambda p: abs(p["tpf"] - tpf))
        if abs(closest["tpf"] / tpf - 1) < 0.03:
            break
    return closest


def plot(points: dict[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    for label, style in (("nano-base, threshold", "o-"), ("nano, soft-parallel", "s-")):
        curve = sorted(points[label], key=lambda p: p["threshold"])
        x, y = [p["tpf"] for p in curve], [100 * p["accuracy"] for p in curve]
        axes.plot(x, y, style, label=label)
        axes.fill_between(x, *zip(*[[100 * v for v in p["accuracy_95"]] for p in curve], strict=True), alpha=0.15)
    axes.set(xlabel="tokens per forward (TPF)", ylabel="accuracy (%)", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=160)


ROWS = {
    "base": "`nano-base`, `threshold`",
    "nano": "**`nano`, `soft-parallel`**",
    "base_pushed_to_nanos_tpf": "`nano-base`, `threshold` lowered to that speed",
    "base_soft_parallel": "`nano-base`, `soft-parallel` (no OPUT)",
}


def to_markdown(table: dict[str, Any]) -> str:
    """Write the table as README shows it."""
    lines = ["| | threshold | problems | accuracy [95 %] | TPF, mean over problems | TPF, all tokens by all forwards |"]
    lines.append("|---|---|---|---|---|---|")
    for name, title in ROWS.items():
        point = table[name]
        low, high = (100 * bound for bound in point["accuracy_95"])
        accuracy = f"{100 * point['accuracy']:.1f} % [{low:.1f}, {high:.1f}]"
        cells = (title, f"{point['threshold']:g}", point["problems"], accuracy)
        lines.append(f"| {' | '.join(map(str, cells))} | {point['tpf']:.2f} | {point['tpf_pooled']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1500, help="of the table")
    parser.add_argument("--curve-problems", type=int, default=500, help="the first of them, for the curves")
    parser.add_argument("--base", default="nano-base", help="model decoded with `threshold`")
    parser.add_argument("--nano", default="nano", help="model decoded with `soft-parallel`")
    parser.add_argument("--plot", type=Path, help="write the two curves to this picture")
    arguments = parse_arguments(parser)
    problems = Problems(arguments.problems, arguments.seed)
    fewer = Problems(arguments.curve_problems, arguments.seed)
    base, nano = LLM(arguments.base), LLM(arguments.nano)
    cautious = problems.point("nano-base", base, by_threshold(BASE_THRESHOLDS[0], "threshold"))
    default = problems.point("nano", nano, by_threshold(None, "soft-parallel"))
    base_curve = [fewer.point("nano-base", base, by_threshold(t, "threshold")) for t in BASE_THRESHOLDS]
    nano_curve = [fewer.point("nano", nano, by_threshold(t, "soft-parallel")) for t in NANO_THRESHOLDS]
    pushed = base_as_fast_as(default["tpf"], fewer, base, base_curve)
    table = {
        "base": cautious,
        "nano": default,
        "base_pushed_to_nanos_tpf": problems.point("nano-base", base, by_threshold(pushed["threshold"], "threshold")),
        "base_soft_parallel": fewer.point("nano-base", base, by_threshold(None, "soft-parallel")),
        "tpf_ratio": default["tpf"] / cautious["tpf"],
        "accuracy_difference_points": 100 * (default["accuracy"] - cautious["accuracy"]),
    }
    curves = {"nano-base, threshold": base_curve, "nano, soft-parallel": nano_curve}
    result = {
        **table, "curves": curves, **describe_run(),
        "models": {
            "base": describe_model(arguments.base, base.model), "nano": describe_model(arguments.nano, nano.model)
        },
        "seed": arguments.seed, "split": "test", "problems": arguments.problems,
    }  # fmt: skip
    print(to_markdown(table))
    if arguments.plot:
        plot(curves, arguments.plot)
    report(result, arguments.json)


if __name__ == "__main__":
    main()
