"""Pictures of made-up curves: that they are drawn, of what, and that labels keep clear of the drawing."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from matplotlib.image import imread

from dmax.evaluation.metrics import ResultsError
from dmax.evaluation.plots import _COLOURS, Curve, Spot, _hidden, _look, draw_tradeoff, require_matplotlib


def curve(name: str, *points: tuple[float, float, str]) -> Curve:
    return Curve(name, tuple(Spot(x, y, max(0, y - 4), min(100, y + 4), label) for x, y, label in points))


BASE = curve("base, threshold", (2.0, 92.6, "0.95"), (3.7, 81.2, "0.7"), (5.8, 42.1, "0.3"))
NANO = curve("nano, soft-parallel", (3.3, 92.9, "0.9"), (5.5, 92.1, "0.5"), (6.3, 88.9, "0"))


def texts(svg: Path) -> list[str]:
    """Words of a picture: matplotlib writes each as a comment beside its outlines."""
    return re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"))


def test_a_picture_names_everything_in_it(tmp_path: Path) -> None:
    png, svg = draw_tradeoff({"gsm8k": [BASE, NANO]}, tmp_path / "accuracy-tpf", "tokens per forward (TPF)")
    assert (png, svg) == (tmp_path / "accuracy-tpf.png", tmp_path / "accuracy-tpf.svg")
    words = texts(svg)
    for word in ("gsm8k", "tokens per forward (TPF)", BASE.name, NANO.name, "threshold", *(["0.95", "0.7", "0.5"])):
        assert word in words
    assert any("Pareto" in word for word in words)
    height, width = imread(png).shape[:2]
    assert (width, height) == (1320, 840)
    assert imread(png).min() < 0.3  # something is on it


def test_the_same_points_give_the_same_files(tmp_path: Path) -> None:
    first = draw_tradeoff({"gsm8k": [BASE]}, tmp_path / "a", "TPF")
    second = draw_tradeoff({"gsm8k": [BASE]}, tmp_path / "b", "TPF")
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_a_panel_for_every_task(tmp_path: Path) -> None:
    alone = Curve("alone", (Spot(3.0, 50.0, 40.0, 60.0, ""),))
    png, svg = draw_tradeoff({"gsm8k": [BASE, NANO], "asdiv": [NANO], "mbpp": [alone]}, tmp_path / "x", "TPF")
    words = texts(svg)
    assert [words.count(task) for task in ("gsm8k", "asdiv", "mbpp")] == [1, 1, 1]
    assert words.count(NANO.name) == 1  # one legend for all panels
    height, width = imread(png).shape[:2]
    assert (width, height) == (1760, 1360)  # two by two


def test_curves_without_thresholds_have_no_key_for_them(tmp_path: Path) -> None:
    _, svg = draw_tradeoff({"gsm8k": [Curve("a", (Spot(3, 50, 40, 60, ""),))]}, tmp_path / "x", "TPF")
    assert "threshold" not in texts(svg)


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no point to draw in x"):
        draw_tradeoff({"gsm8k": [Curve("a", ())]}, tmp_path / "x", "TPF")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ResultsError, match=r"pip install 'dmax-llm\[eval\]'"):
        require_matplotlib()


def test_many_methods_never_look_alike() -> None:
    assert len({_look(index) for index in range(30)}) == 30
    assert [_look(index)[0] for index in range(len(_COLOURS))] == list(_COLOURS)


def test_a_label_hides_what_it_covers_and_must_stay_inside() -> None:
    frame = (0.0, 0.0, 100.0, 100.0)
    assert _hidden((10, 10, 20, 15), [], frame) == 0
    assert _hidden((10, 10, 20, 15), [(15, 10, 30, 12), (50, 50, 60, 60)], frame) == 10
    assert _hidden((95, 10, 105, 15), [], frame) == 4 * 25
