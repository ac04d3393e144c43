"""Every notebook runs from top to bottom, and prints and draws what is stored in it."""

import re
import shutil
from pathlib import Path

import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST_BYTES = 400_000


def printed(cell):
    """What a cell printed, and how many figures it drew, whatever its file looks like."""
    texts = [output["text"] for output in cell.outputs if output.output_type == "stream"]
    shown = [output.data for output in cell.outputs if output.output_type in ("display_data", "execute_result")]
    return "".join(texts), sum("image/png" in data for data in shown)


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_the_notebook_runs_and_shows_what_is_stored(notebook, tmp_path):
    copy = shutil.copy(notebook, tmp_path)
    stored, fresh = nbformat.read(notebook, 4), nbformat.read(copy, 4)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(
        fresh, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    pairs = [pair for pair in zip(stored.cells, fresh.cells, strict=True) if pair[0].cell_type == "code"]
    for before, after in pairs:
        assert printed(after) == printed(before), f"run {notebook.name} again and store it: {before.source[:200]}"
    assert sum(printed(after)[1] for _, after in pairs) > 0, "a notebook here explains with figures"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_the_notebook_is_small_and_its_links_lead_somewhere(notebook):
    assert notebook.stat().st_size < LARGEST_BYTES
    for cell in nbformat.read(notebook, 4).cells:
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", cell.source if cell.cell_type == "markdown" else ""):
            assert (notebook.parent / link).exists(), link
