"""Execute the notebook of docs/, and keep what it shows: nox -s notebook."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).parent.parent / "docs" / "comparison.ipynb"


def executed(*more: str) -> NotebookNode:
    """The notebook after every cell, and cells of `more` code behind them, ran in a fresh kernel.

    Raises:
        CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in more]
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    return NotebookClient(notebook, timeout=600, resources=where, record_timing=False).execute()


if __name__ == "__main__":
    nbformat.write(executed(), NOTEBOOK)
