"""models/runs.py: what is saved comes back, and an earlier run is never lost."""

import json
import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import save_file

from models import runs
from tests.conftest import ROOT

CONFIG = dict(
    predictor=dict(members=1),
    towers={kind: dict(name=kind, sha256="ab") for kind in ("vision", "text")},
    recipe=dict(lr=1e-3),
    data="digest",
    images=3,
    captions=5,
)


@pytest.fixture
def tensors():
    return dict(weight=torch.randn(30, 20, generator=torch.Generator().manual_seed(0)), bias=torch.zeros(30))


@pytest.fixture
def run(tmp_path, tensors):
    folder = tmp_path / "run"
    runs.begin(folder, CONFIG, [], resumed=False)
    runs.save_model(folder, tensors, dict(epoch=3, history=[dict(epoch=1, train_loss=0.5)], held_out=None))
    runs.save_last(
        folder, tensors | dict(trained_on=runs.packed(["ä.jpg"])), dict(epoch=3, recipe=dict(csv="a.csv"))
    )
    return folder


def test_model_comes_back_to_the_bit(run, tensors):
    found, config, record = runs.load_model(run)
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in found)
    assert config == dict(format=runs.FORMAT) | CONFIG
    assert record == dict(epoch=3, history=[dict(epoch=1, train_loss=0.5)], held_out=None)


def test_private_part_comes_back(run, tensors):
    found, facts = runs.load_last(run)
    assert torch.equal(found["weight"], tensors["weight"]) and facts["epoch"] == 3
    assert runs.load_private(run) == (dict(csv="a.csv"), ["ä.jpg"])
    assert runs.load_last(run.parent) is None and runs.load_private(run.parent) is None


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
def test_run_of_the_old_format_is_refused_with_the_way_out(name, tmp_path):
    (tmp_path / name).write_bytes(b"old")
    (tmp_path / runs.LOG).write_text("{}\n")
    for load in (runs.load_model, runs.load_config, runs.load_last, runs.load_private):
        with pytest.raises(ValueError, match="older version.*--run"):
            load(tmp_path)


def test_folder_without_weights_yet_says_to_train(tmp_path):
    runs.begin(tmp_path / "run", CONFIG, [], resumed=False)
    with pytest.raises(FileNotFoundError, match="model.safetensors.*train first"):
        runs.load_model(tmp_path / "run")


@pytest.mark.parametrize("cut", [0, 3, 100, -1])
@pytest.mark.parametrize("name", [runs.WEIGHTS, runs.LAST])
def test_truncated_file_is_named(run, name, cut):
    path = run / name
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=str(path)):
        runs.load_model(run) if name == runs.WEIGHTS else runs.load_last(run)


@pytest.mark.parametrize("name", [runs.WEIGHTS, runs.LAST])
def test_changed_byte_in_a_parameter_is_noticed(run, tensors, name):
    content = bytearray((run / name).read_bytes())
    content[content.find(tensors["weight"].numpy().tobytes()) + 40] ^= 1
    (run / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{run / name}.*checksum"):
        runs.load_model(run) if name == runs.WEIGHTS else runs.load_last(run)


GARBAGE = [b"hello" * 50, bytes(5000), b"PK\x03\x04" + bytes(5000), pickle.dumps(dict(weight=1)), b"\x80"]


@pytest.mark.parametrize("name", [runs.WEIGHTS, runs.CONFIG, runs.LAST])
@pytest.mark.parametrize("content", GARBAGE, ids=["text", "zeros", "zip", "pickle", "byte"])
def test_garbage_is_refused_by_name(run, name, content):
    (run / name).write_bytes(content)
    with pytest.raises(ValueError, match=str(run / name)):
        runs.load_last(run) if name == runs.LAST else runs.load_model(run)


def test_weights_and_configuration_of_another_program_are_refused(run, tensors):
    save_file(tensors, run / runs.WEIGHTS)
    with pytest.raises(ValueError, match=str(run / runs.WEIGHTS)):
        runs.load_model(run)
    for change in (dict(format="vl-jepa 99"), dict(towers=dict(vision={})), dict(predictor=[])):
        (run / runs.CONFIG).write_text(json.dumps(dict(format=runs.FORMAT) | CONFIG | change))
        with pytest.raises(ValueError, match=str(run / runs.CONFIG)):
            runs.load_config(run)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite_are_named(run, tensors, value):
    tensors["bias"][2] = value
    runs.save_model(run, tensors, {})
    with pytest.raises(ValueError, match="bias"):
        runs.load_model(run)


def test_reader_sees_the_old_file_or_the_new_one(run, tensors):
    """Saves 200 times while another thread reads."""
    seen, done = set(), threading.Event()

    def read():
        while not done.is_set():
            seen.add(float(runs.load_model(run)[0]["bias"][0]))

    reader = threading.Thread(target=read)
    reader.start()
    for value in range(200):
        runs.save_model(run, dict(bias=torch.full((30,), float(value))), {})
    done.set()
    reader.join()
    assert seen <= {float(value) for value in range(200)} and len(seen) > 1


def test_failed_save_keeps_the_old_file(run, monkeypatch, tensors):
    before = (run / runs.WEIGHTS).read_bytes()
    monkeypatch.setattr(
        os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="model.safetensors.*No space left"):
        runs.save_model(run, dict(bias=torch.ones(30)), {})
    assert (run / runs.WEIGHTS).read_bytes() == before and not list(run.glob(".*.tmp"))


def test_earlier_runs_are_numbered_and_none_is_deleted(run):
    for number in (1, 2, 3):
        (run / "mark").write_text(str(number))
        assert runs.begin(run, CONFIG, [], resumed=False) == run.with_name(f"run.{number}")
        (run / runs.LAST.parent).mkdir()
        (run / runs.LAST).write_bytes(b"x")
    assert [(run.with_name(f"run.{n}") / "mark").read_text() for n in (1, 2, 3)] == ["1", "2", "3"]


def test_run_that_saved_nothing_is_started_over(tmp_path):
    for _ in range(2):
        assert runs.begin(tmp_path / "run", CONFIG, [], resumed=False) is None


def test_resumed_run_stays_and_its_log_is_that_of_what_was_saved(run):
    (run / runs.LOG).write_text('{"epoch": 1}\n{"epoch": 2}\n{"ep')
    assert runs.begin(run, CONFIG, [dict(epoch=1)], resumed=True) is None
    assert [json.loads(line) for line in (run / runs.LOG).read_text().splitlines()] == [dict(epoch=1)]


def test_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match=f"{tmp_path}.*--run"):
        runs.begin(tmp_path, CONFIG, [], resumed=False)
    assert (tmp_path / "holiday.jpg").exists()


def test_second_process_is_named_the_first(tmp_path):
    code = f"from models import runs\nwith runs.hold({str(tmp_path / 'run')!r}): print('held')"
    with runs.hold(tmp_path / "run"):
        second = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert second.returncode and f"process {os.getpid()} is training there" in second.stderr
    with runs.hold(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_holding_clears_what_a_killed_process_left(run):
    left = [run / ".model.safetensors.123.tmp", run / "private" / ".last.safetensors.123.tmp"]
    for path in left:
        path.write_bytes(b"half")
    with runs.hold(run):
        assert not any(path.exists() for path in left)


def test_progress_keeps_the_best_epoch_by_recall_then_by_loss():
    progress = runs.Progress()
    entries = [(0.2, 1.0), (0.4, 0.9), (0.4, 0.8), (0.3, 0.1)]
    found = [
        progress.add({"epoch": i, "x_recall@1": r, "val_loss": loss})
        for i, (r, loss) in enumerate(entries, 1)
    ]
    assert found == [True, True, True, False] and progress.best["epoch"] == 3
    assert runs.Progress().add(dict(epoch=1)) and len(progress.history) == 4


def test_progress_without_held_out_images_keeps_the_last_epoch():
    progress = runs.Progress()
    assert [progress.add(dict(epoch=epoch)) for epoch in (1, 2, 3)] == [True] * 3


def test_resumed_flags_are_those_of_the_run_and_free_ones_typed(run):
    runs.save_config(run, CONFIG | dict(predictor=dict(hidden_dim=8, members=1)))
    flags = dict(lr=1.0, epochs=9, run="b", resume=True, hidden=4, members=3)
    recipe = dict(lr=0.5, epochs=5, run="a", resume=False, hidden=8, members=1)
    found = runs.resumed_flags(run, flags, {"epochs"}, recipe)
    assert found == dict(lr=0.5, epochs=9, run="b", resume=True, hidden=8, members=1)
    with pytest.raises(ValueError, match="--lr 0.5"):
        runs.resumed_flags(run, flags, {"lr"}, recipe)
    for change in (dict(hidden=10**12), dict(lr="high")):
        with pytest.raises(ValueError, match=str(run / runs.LAST)):
            runs.resumed_flags(run, flags, set(), recipe | change)


def test_run_from_before_several_caption_columns_is_resumed(run):
    runs.save_config(run, CONFIG | dict(predictor=dict(hidden_dim=8, members=1)))
    sizes = dict(run="a", resume=True, hidden=8, members=1)
    flags = sizes | dict(questions="", caption_column=["comment"], caption_lists=False)
    found = runs.resumed_flags(run, flags, set(), sizes | dict(caption_column="text"))
    assert found == flags | dict(caption_column=["text"])
    with pytest.raises(ValueError, match="--caption-column a b;"):
        runs.resumed_flags(run, flags, {"caption_column"}, sizes | dict(caption_column=["a", "b"]))


def test_public_recipe_has_no_path():
    recipe = dict(csv="/home/me/captions.csv", shards="", images="/home/me", cache="/c", run="/r", lr=0.1)
    assert runs.public_recipe(recipe) == dict(csv="captions.csv", shards="", lr=0.1)


def test_run_of_the_old_format_is_moved_aside_whole(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("best.pt", "last.pt", runs.LOG):
        (tmp_path / "run" / name).write_bytes(b"old")
    assert runs.begin(tmp_path / "run", CONFIG, [], resumed=False) == tmp_path / "run.1"
    assert sorted(os.listdir(tmp_path / "run.1")) == ["best.pt", "last.pt", "log.jsonl"]


def test_run_goes_into_an_empty_folder_and_not_among_files(tmp_path):
    for name in (".DS_Store", "desktop.ini"):
        (tmp_path / name).touch()
    runs.check_folder(tmp_path)
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ValueError, match=str(tmp_path)):
        runs.check_folder(tmp_path)
