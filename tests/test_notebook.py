"""test.ipynb runs from top to bottom, and its committed outputs are what it shows."""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "test.ipynb"
MAX_BYTES = 1_500_000


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def problems(notebook):
    """Outputs that are errors or went to stderr."""
    return [o for o in outputs(notebook) if o.output_type == "error" or o.get("name") == "stderr"]


def figures(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def beats_chance(notebook):
    """Whether both losses reach five times the R@1 of chance, from the cell tagged held-out-r1."""
    (cell,) = (cell for cell in code_cells(notebook) if "held-out-r1" in cell.metadata.get("tags", ()))
    found = json.loads(cell.outputs[0].text)
    both = [found["cosine"], found["info_nce"]]
    return all(scores[key] > 5 * chance for scores in both for key, chance in found["chance"].items())


class Executed(NamedTuple):
    notebook: nbformat.NotebookNode
    new_in_root: set
    left_in_temporary: list


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook run in a kernel of this interpreter, in the repository's folder, without a model hub."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient

    folder = tmp_path_factory.mktemp("notebook")
    names = ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR", "TMPDIR")
    env = os.environ | {name: str(folder / name) for name in names}
    (folder / "TMPDIR").mkdir()
    # Without folders of kernel specs, 'python3' is this interpreter and not a kernel the user has installed.
    specs = KernelSpecManager(kernel_dirs=[])
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
    notebook, before = read(), set(ROOT.iterdir())
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    place = {"metadata": {"path": str(ROOT)}}
    client = NotebookClient(notebook, km=manager, timeout=900, coalesce_streams=True, resources=place)
    client.execute(env=env | dict(HF_HUB_OFFLINE="1", PYTHONDONTWRITEBYTECODE="1"), cleanup_kc=True)
    new = {path.name for path in set(ROOT.iterdir()) - before} - {".cache"}
    return Executed(notebook, new, list((folder / "TMPDIR").glob("vl-jepa*")))


def test_notebook_runs_from_top_to_bottom(executed):
    assert all(cell.execution_count for cell in code_cells(executed.notebook))
    assert problems(executed.notebook) == []
    assert figures(executed.notebook) == figures(read()) > 5
    assert beats_chance(executed.notebook)


def test_notebook_leaves_nothing_behind(executed):
    assert executed.new_in_root == set() and executed.left_in_temporary == []


def test_notebook_is_committed_with_its_outputs():
    notebook = read()
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [cell.source for cell in cells if not cell.outputs] == []
    assert problems(notebook) == [] and beats_chance(notebook)


def test_notebook_is_small_and_has_no_local_paths():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < MAX_BYTES
    text = re.sub(r'"image/png": "[^"]*"', "", text)  # base64 can hold any letters
    assert re.findall(r"(?:/home|/root|/Users|/work|/tmp|/var)/\S+|\b[A-Z]:\\\S+", text) == []
