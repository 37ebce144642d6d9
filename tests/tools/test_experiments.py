"""tools.experiments --compare: runs side by side."""

import json
import shutil

import pytest
from PIL import Image

import train
from models import runs
from tools import experiments


def test_compare_prints_where_runs_differ_and_their_best_epochs_and_plots_all(tiny_run, tmp_path, capsys):
    other, picture = tmp_path / "other", tmp_path / "compare.png"
    assert train.main(tiny_run.flags(other, "--epochs", "2", "--hidden", "16", "--seed", "1")) == 0
    capsys.readouterr()
    assert experiments.main(["--compare", str(tiny_run.folder), str(other), "--out", str(picture)]) == 0
    head, line, *lines = capsys.readouterr().out.splitlines()
    assert head == f"| | {tiny_run.folder} | {other} |" and line == "|---|---|---|"
    cells = [row.strip("| ").split(" | ") for row in lines if row.startswith("|")]
    table = {name: values for name, *values in cells}
    assert table["hidden"] == ["1024", "16"] and table["epochs"] == ["12", "2"]
    assert not {"loss", "dropout", "vision tower"} & table.keys()  # the same in both
    for number, folder in enumerate((tiny_run.folder, other)):
        log = [json.loads(row) for row in (folder / runs.LOG).read_text().splitlines()]
        best = log[runs.load_model(folder)[2]["epoch"] - 1]
        assert table["val_loss"][number] == f"{best['val_loss']:.4g}"
        assert table["epoch"][number] == str(best["epoch"])
    assert lines[-2].startswith("note: they hold out different images")
    assert Image.open(picture).width == 1440


@pytest.mark.parametrize("name", [runs.LOG, runs.CONFIG])
def test_compare_names_what_a_folder_lacks(tiny_run, tmp_path, capsys, name):
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    assert experiments.main(["--compare", str(tmp_path / "run"), "--out", str(tmp_path / "x.png")]) == 1
    assert str(tmp_path / "run") in capsys.readouterr().err and not (tmp_path / "x.png").exists()
