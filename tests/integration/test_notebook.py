"""The notebook runs from its first cell to its last."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "decode_and_sweep.ipynb"


@pytest.mark.slow
def test_it_decodes_and_sweeps() -> None:
    nbclient = pytest.importorskip("nbclient", reason="pip install '.[notebook]'")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output["data"] for output in outputs if "data" in output]
    answers = [re.sub(r"<[^>]+>", "", data["text/html"]) for data in shown if "text/html" in data]
    assert len(answers) == 2
    assert "#### 126" in answers[0]
    assert sum("image/png" in data for data in shown) == 1
