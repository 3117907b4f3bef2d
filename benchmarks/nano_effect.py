"""The DMax effect on the embedded models: accuracy against tokens per forward, on problems that no training has seen.

Answers the same problems with the base model (`threshold` decoding at 0.95) and with the model that OPUT made of it
(`soft-parallel`, at its default and at 0.5), then lowers the base model's threshold until it is as fast as the other at
its default. Accuracy is the share of problems whose final number is right, with a 95 % bootstrap interval; TPF is
tokens before EOS per forward, mean over problems, the prefill counted as one forward. Prints README's table. Curves,
and the search for that threshold, take the first of the problems alone.

The sets: the questions of `benchmarks/data/everyday_questions.jsonl`, which were written apart from the scenarios that
the models learn from; `everyday` and `gsm-symbolic`, drawn from the test split; and GSM8K's test set, where its file is
given.

    python benchmarks/nano_effect.py [--problems N] [--curve-problems N] [--gsm8k FILE] [--seed N] [--json FILE]
        [--plot FILE.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from answered import EVERYDAY_QUESTIONS, GEN_LENGTH, Problems
from run_record import describe_model, describe_run, parse_arguments, report

from dmax import LLM, GenerationParams

BASE_THRESHOLDS = (0.95, 0.8, 0.65, 0.5, 0.4, 0.3)
NANO_THRESHOLDS = (0.95, 0.8, 0.65, 0.5, 0.0)
SEARCH_STEPS = 5
CURVES = ("everyday", "gsm-symbolic")


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


def plot(curves: dict[str, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(curves), figsize=(9.6, 4.0), sharey=True, layout="constrained")
    for axes, (title, points) in zip(panels, curves.items(), strict=True):
        for (label, unordered), style in zip(points.items(), ("o-", "s-"), strict=True):
            curve = sorted(unordered, key=lambda p: p["threshold"])
            x, y = [p["tpf"] for p in curve], [100 * p["accuracy"] for p in curve]
            axes.plot(x, y, style, label=label)
            axes.fill_between(x, *zip(*[[100 * v for v in p["accuracy_95"]] for p in curve], strict=True), alpha=0.15)
        axes.set(xlabel="tokens per forward (TPF)", title=title, ylim=(0, 100))
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="accuracy (%)")
    panels[0].legend()
    figure.savefig(path, dpi=160)


COLUMNS = {
    "base": "`nano-base`, `threshold` {:g}",
    "nano": "**`nano`, `soft-parallel` {:g}**",
    "nano_at_half": "`nano` at {:g}",
    "base_pushed": "`nano-base` lowered to `nano`'s TPF",
}


def to_markdown(sets: dict[str, dict[str, Any]]) -> str:
    """Write the table as README shows it."""
    first = next(iter(sets.values()))
    titles = [title.format(first[name]["threshold"]) for name, title in COLUMNS.items()]
    lines = [f"| accuracy [95 %], TPF | problems | {' | '.join(titles)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for title, points in sets.items():
        cells = []
        for name in COLUMNS:
            point = points[name]
            low, high = (100 * bound for bound in point["accuracy_95"])
            cells.append(f"{100 * point['accuracy']:.1f} % [{low:.0f}, {high:.0f}], {point['tpf']:.2f}")
        lines.append(f"| {title} | {points['base']['problems']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def effect(problems: Problems, fewer: Problems, base: LLM, nano: LLM, curves: dict[str, Any] | None) -> dict[str, Any]:
    """Measure one set; with ``curves``, over all thresholds, too."""
    cautious = problems.point("nano-base", base, by_threshold(BASE_THRESHOLDS[0], "threshold"))
    default = problems.point("nano", nano, by_threshold(None, "soft-parallel"))
    tried = [cautious] if len(fewer.rows) == len(problems.rows) else []
    thresholds = BASE_THRESHOLDS if curves is not None else (BASE_THRESHOLDS[0], BASE_THRESHOLDS[-1])
    tried += [fewer.point("nano-base", base, by_threshold(t, "threshold")) for t in thresholds[len(tried) :]]
    if curves is not None:
        nano_curve = [fewer.point("nano", nano, by_threshold(t, "soft-parallel")) for t in NANO_THRESHOLDS]
        curves |= {"nano-base, threshold": tried, "nano, soft-parallel": nano_curve}
    pushed = base_as_fast_as(default["tpf"], fewer, base, tried)
    return {
        "base": cautious,
        "nano": default,
        "nano_at_half": problems.point("nano", nano, by_threshold(0.5, "soft-parallel")),
        "base_pushed": problems.point("nano-base", base, by_threshold(pushed["threshold"], "threshold")),
        "base_soft_parallel": fewer.point("nano-base", base, by_threshold(None, "soft-parallel")),
        "tpf_ratio": default["tpf"] / cautious["tpf"],
        "accuracy_difference_points": 100 * (default["accuracy"] - cautious["accuracy"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1500, help="of a set, at most")
    parser.add_argument("--curve-problems", type=int, default=500, help="the first of them, for the curves")
    parser.add_argument("--gsm8k", type=Path, help="file of GSM8K's test set, as `dmax eval --data` reads it")
    parser.add_argument("--base", default="nano-base", help="model decoded with `threshold`")
    parser.add_argument("--nano", default="nano", help="model decoded with `soft-parallel`")
    parser.add_argument("--plot", type=Path, help="write the curves to this picture")
    arguments = parse_arguments(parser)
    count, seed = arguments.problems, arguments.seed
    sets = {
        "everyday questions": Problems(count, seed, "everyday", EVERYDAY_QUESTIONS),
        "everyday": Problems(count, seed, "everyday"),
        "gsm-symbolic": Problems(count, seed),
    }
    if arguments.gsm8k is not None:
        sets["GSM8K, test"] = Problems(count, seed, "gsm8k", arguments.gsm8k)
    base, nano = LLM(arguments.base), LLM(arguments.nano)
    curves: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in CURVES}
    found = {
        name: effect(problems, problems.first(arguments.curve_problems), base, nano, curves.get(name))
        for name, problems in sets.items()
    }
    result = {
        "sets": found, "curves": curves, **describe_run(),
        "models": {
            "base": describe_model(arguments.base, base.model), "nano": describe_model(arguments.nano, nano.model)
        },
        "seed": seed, "split": "test", "problems": count,
    }  # fmt: skip
    print(to_markdown(found))
    if arguments.plot:
        plot(curves, arguments.plot)
    report(result, arguments.json)


if __name__ == "__main__":
    main()
