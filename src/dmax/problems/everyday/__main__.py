"""Check the scenarios of themes by drawing from each, and show one problem of each."""

from __future__ import annotations

import sys
from importlib.resources import files
from random import Random

from dmax.problems.everyday import ScenarioError, draw, parse, themes

DRAWS = 30


def main(chosen: list[str]) -> int:
    """Check every scenario of the themes that are named, or of all; returns the number of faults found."""
    faults = 0
    for theme in chosen or themes():
        text = files("dmax.problems.everyday").joinpath(f"scenarios/{theme}.toml").read_text(encoding="utf-8")
        try:
            found = parse(text, theme)
        except ScenarioError as error:
            print(error)
            faults += 1
            continue
        for scenario in found:
            try:
                problems = [draw(scenario, Random(i), phrasing=i % len(scenario.ask)) for i in range(DRAWS)]
            except ScenarioError as error:
                print(error)
                faults += 1
                continue
            print(f"{theme}/{scenario.name}: {problems[0].question}\n{problems[0].solution}\n")
        print(f"{theme}: {len(found)} scenarios, {sum(len(s.ask) for s in found)} phrasings")
    return faults


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
