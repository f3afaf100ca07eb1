"""The notebook runs as it stands, and shows what it stores."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "notebooks" / "first_steps.ipynb"
ROW = re.compile(r"^\| (\w+) .*\| +([\d.]+) \|$", re.MULTILINE)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(cell: Any) -> str:
    # commands write to a terminal, with its line ends
    return "".join(output.get("text", "") for output in cell.outputs).replace("\r", "")


def shows_picture(cell: Any) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def table(notebook: Any) -> dict[str, float]:
    (cell,) = (cell for cell in code_cells(notebook) if "| trainer " in text_of(cell))
    return {name: float(value) for name, value in ROW.findall(text_of(cell))}


def test_the_notebook_runs_and_shows_what_it_stores(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat: setup.sh dev")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient: setup.sh dev")
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    # results go elsewhere, and a run of the user's own is not taken for the notebook's
    monkeypatch.setenv("OUTPUT", str(tmp_path / "output"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    for name in ("DATA", "SHOTS", "CFG", "TAG", "DRY_RUN"):
        monkeypatch.delenv(name, raising=False)
    run = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(run, timeout=300, kernel_name="python3", resources=where).execute()

    assert table(run).keys() == table(stored).keys() == {"CoOp", "MMLoP", "ZeroshotCLIP"}
    for method, accuracy in table(run).items():
        assert accuracy == pytest.approx(table(stored)[method], abs=1)  # rounding of other machines
    for now, before in zip(code_cells(run), code_cells(stored), strict=True):
        assert shows_picture(now) == shows_picture(before)
        assert bool(text_of(now)) == bool(text_of(before))
    assert [shows_picture(cell) for cell in code_cells(stored)].count(True) == 2


def test_the_notebook_names_no_place_of_a_machine():
    text = NOTEBOOK.read_text("utf-8")
    assert not [
        part for part in ("/tmp", "/home", "/root", os.getcwd(), str(Path.home())) if part in text
    ]
