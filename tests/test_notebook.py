"""The guided tour, test.ipynb: it runs from top to bottom, and what is committed is what it shows."""

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "test.ipynb"
MAX_BYTES = 1_500_000


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def shown_text(notebook):
    """All that the outputs say in words, without the base64 of pictures (which can hold any letters)."""
    texts = [output.text if output.output_type == "stream" else "" for output in outputs(notebook)]
    for output in outputs(notebook):
        texts += [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(texts)


def held_out_r1(notebook):
    """{'chance': {'image_retrieval_recall@1': ...}, 'cosine': ..., 'info_nce': ...} from the cell tagged for it."""
    cell = next(cell for cell in code_cells(notebook) if "held-out-r1" in cell.metadata.get("tags", ()))
    return json.loads(cell.outputs[0].text)


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


class Executed:
    def __init__(self, folder):
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        folders = {name: str(folder / name) for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR")}
        env = (
            os.environ
            | folders
            | dict(TMPDIR=str(self.temporary), HF_HUB_OFFLINE="1", PYTHONDONTWRITEBYTECODE="1")
        )
        # No folder of kernel specs: 'python3' is then this interpreter, whatever kernel of that name the user has installed.
        manager = AsyncKernelManager(
            kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[])
        )
        self.notebook = nbformat.read(NOTEBOOK, as_version=4)
        for cell in code_cells(self.notebook):
            cell.outputs, cell.execution_count = [], None
        before = {path.name for path in ROOT.iterdir()}
        client = NotebookClient(
            self.notebook,
            km=manager,
            timeout=900,
            coalesce_streams=True,
            resources={"metadata": {"path": str(ROOT)}},
        )
        client.execute(
            env=env, cleanup_kc=True
        )  # raises CellExecutionError with the traceback; ends the kernel
        self.new_in_root = {path.name for path in ROOT.iterdir()} - before - {".cache"}
        self.left_in_temporary = {
            path.name for path in self.temporary.iterdir() if path.name.startswith("vl-jepa")
        }


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook run in a kernel of this interpreter, started in the repository's folder, without a model hub."""
    return Executed(tmp_path_factory.mktemp("notebook"))


def test_notebook_runs_from_top_to_bottom(executed):
    """A renamed function, a changed argument, a cell that needs a variable of a later cell, or a run that starts to warn."""
    assert all(cell.execution_count for cell in code_cells(executed.notebook))
    assert not [
        o for o in outputs(executed.notebook) if o.output_type == "error" or o.get("name") == "stderr"
    ]


def test_notebook_draws_as_many_pictures_as_it_was_committed_with(executed, committed):
    """A cell that switches matplotlib to a backend that only writes files: every later figure is then silently missing."""

    def pictures(notebook):
        return sum("image/png" in output.get("data", {}) for output in outputs(notebook))

    assert pictures(executed.notebook) == pictures(committed) > 5


def test_notebook_predictor_beats_chance_on_held_out_images(executed):
    """Captions paired with the wrong images, a loss of the wrong sign, or rows of the split mixed up: all run without an error."""
    found = held_out_r1(executed.notebook)
    for loss in ("cosine", "info_nce"):
        for key, chance in found["chance"].items():
            assert found[loss][key] > 5 * chance, (loss, key, found)


def test_notebook_leaves_nothing_behind(executed):
    """Runs written into the repository instead of the temporary folder, or a temporary folder that nobody deletes."""
    assert executed.new_in_root == set()
    assert executed.left_in_temporary == set()


def test_notebook_is_committed_with_its_outputs(committed):
    """Outputs cleared before a commit, cells run out of order or twice, a traceback or a warning left in."""
    nbformat.validate(committed)
    assert [cell.execution_count for cell in code_cells(committed)] == list(
        range(1, len(code_cells(committed)) + 1)
    )
    assert [cell.source for cell in code_cells(committed) if not cell.outputs] == []
    assert not [
        output
        for output in outputs(committed)
        if output.output_type == "error" or output.get("name") == "stderr"
    ]
    found = held_out_r1(committed)
    assert found["info_nce"]["text_retrieval_recall@1"] > 5 * found["chance"]["text_retrieval_recall@1"]


def test_notebook_is_small_and_names_no_folder_of_one_machine(committed):
    """Figures at print resolution, which make every commit of the notebook megabytes; paths that only its author has."""
    assert NOTEBOOK.stat().st_size < MAX_BYTES
    sources = "\n".join(cell.source for cell in committed.cells)
    text = shown_text(committed) + sources
    assert re.findall(r"(?:/home|/root|/Users|/work|/tmp|/var)/\S+|\b[A-Z]:\\\S+", text) == []
