"""train.py in this process, on 24 drawn images with two captions each."""

import csv
import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from PIL import Image

import eval as evaluate
import train
from models import metrics, objective, runs
from models.features import encode_archive
from models.predictor import Predictor
from models.vljepa import VLJEPA
from tests.conftest import ROOT, Run, make_shapes, write_csv

RETRIEVAL = """--loss info_nce --dropout 0.5 --input-dropout 0.3 --standardise --group-captions
    --weight-decay 0.1 --text-head residual --views 1""".split()
SMALL = "--device cpu --hidden 16 --batch-size 8 --epochs 2 --lr 3e-3 --val-fraction 0.25".split()


class Archive(Run):
    """The drawn shapes, and the one cache of features that all runs of this file share."""

    def train(self, run, *more):
        return train.main(self.flags(run, *SMALL, *more))

    @property
    def rows(self):
        lines = self.csv.read_text().splitlines()[1:]
        return [tuple(line.split(",")) for line in lines]


@pytest.fixture(scope="module")
def archive(tmp_path_factory, tiny_run):
    shapes = make_shapes(tmp_path_factory.mktemp("archive") / "shapes")
    return Archive(None, shapes.csv, shapes.images, tiny_run.cache, shapes.names, None)


@pytest.fixture(scope="module")
def four(archive, tmp_path_factory):
    """{recipe: run folder} of undisturbed runs of four epochs."""
    folder = tmp_path_factory.mktemp("four")
    for name, flags in (("classic", []), ("retrieval", RETRIEVAL)):
        assert archive.train(folder / name, "--epochs", "4", *flags) == 0
    return {name: folder / name for name in ("classic", "retrieval")}


def log_of(run):
    return [json.loads(line) for line in Path(run, runs.LOG).read_text().splitlines()]


def last_of(run):
    """(tensors, facts) of private/."""
    return runs.load_last(run)


def trained_on(run):
    return set(runs.load_private(run)[1])


def without_seconds(history):
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in history]


def assert_same_training(run, other):
    """Bit for bit: parameters, optimiser, learned scalars, the best epoch, and all of the log but the
    seconds."""
    for (a, _), (b, _) in (
        (last_of(run), last_of(other)),
        (runs._read(run / runs.WEIGHTS), runs._read(other / runs.WEIGHTS)),
    ):
        assert (
            a.keys() == b.keys()
            and [name for name in a if name != "rng" and not torch.equal(a[name], b[name])] == []
        )
    (_, a), (_, b) = last_of(run), last_of(other)
    assert [a[key] for key in ("epoch", "step", "best")] == [b[key] for key in ("epoch", "step", "best")]
    assert without_seconds(log_of(run)) == without_seconds(log_of(other))


class SignalAt(io.StringIO):
    """Standard output that sends this process a signal when a line that begins with `start` is printed."""

    def __init__(self, start, number=signal.SIGINT):
        super().__init__()
        self.start, self.number, self.sent = start, number, False

    def write(self, text):
        if not self.sent and text.lstrip().startswith(self.start):
            self.sent = True
            os.kill(os.getpid(), self.number)
        return super().write(text)


def test_train_writes_what_the_readme_promises(archive, tmp_path, capsys):
    assert archive.train(tmp_path / "run") == 0
    files = [runs.CONFIG, "curves.png", runs.LOG, runs.WEIGHTS, "private"]
    assert sorted(os.listdir(tmp_path / "run")) == files
    with Image.open(tmp_path / "run" / "curves.png") as image:
        assert image.format == "PNG" and min(image.size) > 200
    out = capsys.readouterr().out
    assert "chance" in out and re.search(r"^ +2/2 ", out, re.M) and "python eval.py --run" in out


def test_log_lines_hold_what_was_promised(four):
    recalls = {f"{way}_recall@{k}" for way in ("image_retrieval", "text_retrieval") for k in (1, 5, 10)}
    promised = recalls | set("epoch train_loss val_loss lr seconds effective_rank matched mismatched".split())
    log = log_of(four["retrieval"])
    assert [entry["epoch"] for entry in log] == [1, 2, 3, 4]
    assert all(promised <= entry.keys() and all(0 <= entry[key] <= 1 for key in recalls) for entry in log)


def test_training_learns(archive, tmp_path):
    assert archive.train(tmp_path / "run", "--epochs", "30", "--loss", "info_nce", "--standardise") == 0
    log = log_of(tmp_path / "run")
    assert log[-1]["train_loss"] < 0.2 * log[0]["train_loss"]
    best = log[runs.load_model(tmp_path / "run")[2]["epoch"] - 1]
    assert best["text_retrieval_recall@1"] > 0.5 and best["matched"] > best["mismatched"] + 0.1


def test_logged_metrics_are_those_of_the_saved_predictor(archive, four, tmp_path):
    """Of the last epoch, in evaluation mode, on the held-out images."""
    tensors, facts = last_of(four["retrieval"])
    shutil.copytree(four["retrieval"], tmp_path / "run")
    predictor = {
        name.partition(".")[2]: value for name, value in tensors.items() if name.startswith("predictor.")
    }
    runs.save_model(tmp_path / "run", predictor, dict(epoch=4, history=[], held_out=None))
    model = VLJEPA.load(tmp_path / "run")
    features = encode_archive(model.held_out(), model.vision, model.text, archive.cache, quiet=True)
    text = model.project_text(features.text)
    assert not torch.equal(text, features.text)
    expected = metrics.retrieval(model.predict(features.image), text, features.image_of)
    assert facts["history"][-1].items() >= expected.items()


def test_kept_model_is_the_epoch_with_the_best_held_out_score(archive, tmp_path):
    """With this learning rate the run gets worse again."""
    flags = ["--epochs", "12", "--lr", "0.03", "--loss", "info_nce", "--seed", "1"]
    assert archive.train(tmp_path / "run", *flags) == 0
    log = log_of(tmp_path / "run")
    recall = [round(sum(value for key, value in entry.items() if "recall@" in key), 9) for entry in log]
    scores = [(total, -entry["val_loss"]) for total, entry in zip(recall, log)]
    best = max(range(len(log)), key=scores.__getitem__)
    assert best < len(log) - 1, "this run got better to its end, so it proves nothing"
    assert runs.load_model(tmp_path / "run")[2]["epoch"] == log[best]["epoch"]
    assert last_of(tmp_path / "run")[1]["epoch"] == 12


def test_same_seed_gives_the_same_run_and_another_seed_another(archive, four, tmp_path):
    assert archive.train(tmp_path / "same", "--epochs", "4", *RETRIEVAL) == 0
    assert_same_training(tmp_path / "same", four["retrieval"])
    assert archive.train(tmp_path / "other", "--epochs", "4", *RETRIEVAL, "--seed", "1") == 0
    a, b = (
        last_of(run)[0]["predictor.members.0.up.weight"] for run in (tmp_path / "other", four["retrieval"])
    )
    assert not torch.equal(a, b)


@pytest.mark.parametrize(("recipe", "flags"), [("classic", []), ("retrieval", RETRIEVAL)])
def test_two_epochs_and_two_resumed_equal_four(archive, four, tmp_path, recipe, flags):
    assert archive.train(tmp_path / "run", *flags) == 0
    assert archive.train(tmp_path / "run", "--epochs", "4", "--resume") == 0
    assert_same_training(tmp_path / "run", four[recipe])


@pytest.mark.parametrize(("recipe", "flags"), [("classic", []), ("retrieval", RETRIEVAL)])
def test_run_stopped_inside_an_epoch_and_resumed_equals_the_undisturbed_one(
    archive, four, tmp_path, recipe, flags
):
    out = SignalAt("2/4")
    with redirect_stdout(out):
        assert archive.train(tmp_path / "run", "--epochs", "4", *flags) == 130
    facts = last_of(tmp_path / "run")[1]
    assert "--resume" in out.getvalue() and (facts["epoch"], facts["step"]) == (2, 1)
    assert archive.train(tmp_path / "run", "--resume", "--epochs", "4") == 0
    assert_same_training(tmp_path / "run", four[recipe])


@pytest.mark.parametrize(
    "more", [[], ["--batch-size", "1000"]], ids=["inside an epoch", "after its last step"]
)
def test_cosine_schedule_continues_after_sigterm(archive, tmp_path, more):
    flags = [*RETRIEVAL, "--schedule", "cosine", "--warmup", "0.3", "--epochs", "4", *more]
    assert archive.train(tmp_path / "straight", *flags) == 0
    with redirect_stdout(SignalAt("2/4", signal.SIGTERM)):  # as a scheduler stops a job
        assert archive.train(tmp_path / "stopped", *flags) == 0
    assert last_of(tmp_path / "stopped")[1]["step"] == 1
    assert archive.train(tmp_path / "stopped", "--resume", "--epochs", "4", *more) == 0
    assert_same_training(tmp_path / "stopped", tmp_path / "straight")


def test_resume_refuses_a_changed_flag(archive, four, tmp_path, capsys):
    run = shutil.copytree(four["classic"], tmp_path / "run")
    before = (run / runs.LAST).read_bytes()
    assert archive.train(run, "--resume", "--lr", "0.5") == 1
    assert "--lr 0.003" in capsys.readouterr().err and (run / runs.LAST).read_bytes() == before


@pytest.mark.parametrize("change", ["caption", "one more", "one less"])
def test_resume_refuses_changed_captions(archive, four, tmp_path, capsys, change):
    run = shutil.copytree(four["classic"], tmp_path / "run")
    rows = archive.rows
    at = next(i for i, (name, _) in enumerate(rows) if name in trained_on(run))
    changes = {"caption": [(rows[at][0], "x")], "one more": [rows[at], (rows[at][0], "more")], "one less": []}
    rows[at : at + 1] = changes[change]
    changed = write_csv(tmp_path / "changed.csv", rows)
    assert archive.train(run, "--resume", "--epochs", "4", "--csv", str(changed)) == 1
    assert "captions" in capsys.readouterr().err


def test_resume_accepts_the_same_command_with_the_tower_left_to_choose(archive, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # auto is then what is cached or packaged
    assert archive.train(tmp_path / "run", "--vision", "auto") == 0
    assert archive.train(tmp_path / "run", "--vision", "auto", "--resume", "--epochs", "3") == 0


def test_resume_of_a_run_that_is_not_there_begins_it(archive, tmp_path, capsys):
    assert archive.train(tmp_path / "run", "--resume") == 0
    assert "epoch 1" in capsys.readouterr().out and len(log_of(tmp_path / "run")) == 2


def test_resume_of_a_damaged_run_stops_and_leaves_it(archive, four, tmp_path, capsys):
    run = shutil.copytree(four["classic"], tmp_path / "run")
    half = (run / runs.LAST).read_bytes()[:5000]
    (run / runs.LAST).write_bytes(half)
    assert archive.train(run, "--resume", "--epochs", "6") == 1
    assert str(run / runs.LAST) in capsys.readouterr().err and (run / runs.LAST).read_bytes() == half


def change_lr(run, lr):
    """Give a saved run another learning rate, which --resume then continues with."""
    tensors, facts = last_of(run)
    runs.save_last(run, tensors, facts | dict(recipe=facts["recipe"] | dict(lr=lr)))


def resume(run):
    return train.main(["--resume", "--run", str(run), "--quiet", "--epochs", "8"])


@pytest.mark.parametrize("lr", [1e30, 1e38])
def test_loss_that_is_not_finite_names_the_images_and_keeps_the_last_good_epoch(four, tmp_path, capsys, lr):
    run = shutil.copytree(four["classic"], tmp_path / "run")
    change_lr(run, lr)
    assert resume(run) == 1
    err = capsys.readouterr().err
    assert "epoch 5" in err and 0 < sum(name in err for name in trained_on(run)) <= 8
    tensors, facts = last_of(run)
    assert facts["epoch"] == 4 and torch.equal(tensors["log_scale"], last_of(four["classic"])[0]["log_scale"])
    assert all(torch.equal(value, last_of(four["classic"])[0][name]) for name, value in tensors.items())


@pytest.mark.parametrize("lr", [1e30, 1e38])
def test_parameters_that_blow_up_in_the_last_step_of_an_epoch_are_not_saved(archive, tmp_path, lr):
    """Without held-out images no loss shows it between that step and the save."""
    run = tmp_path / "run"
    assert archive.train(run, "--val-fraction", "0", "--batch-size", "100") == 0  # an epoch is one step
    change_lr(run, lr)
    assert resume(run) == 1
    tensors, config, _ = runs.load_model(run)
    predictor = Predictor(**config["predictor"])
    predictor.load_state_dict(tensors)
    assert torch.isfinite(predictor.eval()(torch.eye(1280))).all()


def test_loss_that_is_not_finite_in_the_first_epoch_promises_no_saved_state(archive, tmp_path, capsys):
    assert archive.train(tmp_path / "run", "--lr", "1e30") == 1
    err = capsys.readouterr().err
    assert "--lr" in err and ("last good" in err) == (tmp_path / "run" / runs.LAST).exists()


@pytest.mark.parametrize(
    "typed",
    [
        "--batch-size 0",
        "--batch-size -4",
        "--epochs 0",
        "--hidden 0",
        "--lr -1",
        "--val-fraction 1",
        "--dropout 1.5",
        "--views -1",
    ],
)
def test_senseless_number_is_refused(archive, tmp_path, capsys, typed):
    try:
        code = archive.train(tmp_path / "run", *typed.split())
    except SystemExit as stop:  # argparse's own way
        code = stop.code
    assert code in (1, 2) and typed.split()[1] in capsys.readouterr().err
    assert not (tmp_path / "run" / runs.LAST).exists()


def test_second_run_on_a_folder_moves_the_first_aside(archive, four, tmp_path, capsys):
    run = shutil.copytree(four["classic"], tmp_path / "run")
    first = (run / runs.LAST).read_bytes()
    assert archive.train(run, "--seed", "5") == 0
    assert (tmp_path / "run.1" / runs.LAST).read_bytes() == first
    assert last_of(run)[1]["recipe"]["seed"] == 5 and str(tmp_path / "run.1") in capsys.readouterr().out


def test_folder_that_is_no_run_is_never_touched(archive, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "wedding.jpg").write_bytes(b"the only copy")
    for _ in range(3):
        assert archive.train(tmp_path / "photos", "--epochs", "1") == 1
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["wedding.jpg"]


def test_failed_start_leaves_the_earlier_run_where_it_is(archive, four, tmp_path):
    run = shutil.copytree(four["classic"], tmp_path / "run")
    assert archive.train(run, "--csv", str(tmp_path / "none.csv")) == 1
    assert os.listdir(tmp_path) == ["run"] and sorted(os.listdir(run)) == sorted(os.listdir(four["classic"]))


def test_split_depends_on_names_alone(archive, four, tmp_path):
    """Rows shuffled, captions edited, images added: no image changes sides."""
    rows = [(name, caption.upper()) for name, caption in archive.rows]
    folder = shutil.copytree(archive.images, tmp_path / "images")
    for i in range(6):
        shutil.copy(folder / "red-line.jpg", folder / f"new-{i}.jpg")
        rows.append((f"new-{i}.jpg", f"number {i}"))
    random.Random(0).shuffle(rows)
    other = write_csv(tmp_path / "other.csv", rows)
    assert archive.train(tmp_path / "run", "--epochs", "1", "--csv", str(other), "--images", str(folder)) == 0
    kept = trained_on(four["classic"])
    assert kept == trained_on(tmp_path / "run") & set(archive.names) and 0 < len(kept) < len(archive.names)


def test_held_out_images_and_captions_do_not_touch_training(archive, four, tmp_path):
    """All of them are replaced, and the predictor stays the same."""
    kept = trained_on(four["retrieval"])
    folder, rows = shutil.copytree(archive.images, tmp_path / "images"), []
    for name, caption in archive.rows:
        if name not in kept:
            Image.effect_noise((48, 48), 80).convert("RGB").save(folder / name)
        rows.append((name, caption if name in kept else f"static {len(rows)}"))
    flags = ["--csv", str(write_csv(tmp_path / "changed.csv", rows)), "--images", str(folder), *RETRIEVAL]
    assert archive.train(tmp_path / "run", "--epochs", "4", *flags) == 0
    (a, _), (b, _) = last_of(tmp_path / "run"), last_of(four["retrieval"])
    assert trained_on(tmp_path / "run") == kept and all(
        torch.equal(a[name], b[name]) for name in a if "predictor" in name
    )
    assert log_of(tmp_path / "run")[-1]["val_loss"] != log_of(four["retrieval"])[-1]["val_loss"]


def test_all_images_held_out_is_an_error(archive, tmp_path, capsys):
    assert archive.train(tmp_path / "run", "--val-fraction", "0.9999") == 1
    assert "--val-fraction" in capsys.readouterr().err


def test_nothing_held_out_trains_and_keeps_the_last_epoch(archive, tmp_path, capsys):
    assert archive.train(tmp_path / "run", "--val-fraction", "0", "--epochs", "3") == 0
    assert "epoch 3, the last" in capsys.readouterr().out
    assert runs.load_model(tmp_path / "run")[2]["epoch"] == 3 and len(trained_on(tmp_path / "run")) == 24
    assert not any(
        "val_loss" in entry or "image_retrieval_recall@1" in entry for entry in log_of(tmp_path / "run")
    )


@pytest.mark.parametrize("fraction, is_held_out", [("0.3", True), ("0", False)])
def test_last_line_is_a_command_about_an_image_of_the_run(archive, tmp_path, capsys, fraction, is_held_out):
    archive.train(tmp_path / "run", "--epochs", "1", "--val-fraction", fraction)
    start, _, command = capsys.readouterr().out.splitlines()[-1].partition("python eval.py ")
    assert ("a held-out image" in start) == is_held_out
    words = shlex.split(command)
    image = Path(words[2])
    assert image.is_file() and (image.name in VLJEPA.load(tmp_path / "run").trained_on) != is_held_out
    with open(archive.csv, newline="", encoding="utf-8") as file:
        captions = {tuple(row) for row in csv.reader(file)}
    assert (image.name, words[4]) in captions and len(set(words[4:])) == 3
    assert evaluate.main(words) == 0
    assert "Prediction: " in capsys.readouterr().out


def test_one_image_can_be_trained_on(archive, tmp_path):
    one = write_csv(tmp_path / "one.csv", archive.rows[:2])
    assert archive.train(tmp_path / "run", "--csv", str(one), "--val-fraction", "0", *RETRIEVAL) == 0


def test_missing_images_are_all_named(archive, tmp_path, capsys):
    rows = [*archive.rows[:10], ("gone.jpg", "not there"), *archive.rows[10:], ("lost.jpg", "nor this")]
    assert archive.train(tmp_path / "run", "--csv", str(write_csv(tmp_path / "bad.csv", rows))) == 1
    err = capsys.readouterr().err
    assert "line 12: gone.jpg" in err and "line 51: lost.jpg" in err and "--skip-bad" in err
    assert not (tmp_path / "run").exists()


def test_skip_bad_trains_on_the_rest_and_names_what_it_leaves_out(archive, tmp_path, caplog):
    """A truncated file only shows when it is decoded."""
    folder = shutil.copytree(archive.images, tmp_path / "images")
    (folder / "cut.jpg").write_bytes((folder / "red-line.jpg").read_bytes()[:-200])
    rows = [("gone.jpg", "not there"), *archive.rows, ("cut.jpg", "cut short"), ("cut.jpg", "twice")]
    bad = write_csv(tmp_path / "bad.csv", rows)
    flags = ["--csv", str(bad), "--images", str(folder), "--val-fraction", "0", "--skip-bad"]
    assert archive.train(tmp_path / "run", *flags) == 0
    assert "gone.jpg" in caplog.text and "cut.jpg" in caplog.text
    assert trained_on(tmp_path / "run") == set(archive.names)


def test_wrong_column_names_the_columns_there_are(archive, tmp_path, capsys):
    assert archive.train(tmp_path / "run", "--caption-column", "text") == 1
    err = capsys.readouterr().err
    assert "'text'" in err and "comment" in err and "--caption-column" in err


def test_typed_flags_override_the_recipe():
    args, typed = train.parse(
        "--loss cosine --recipe retrieval --no-standardise --dropout 0 --hidden 16".split()
    )
    assert typed == {"loss", "recipe", "standardise", "dropout", "hidden"}
    found = (
        args.loss,
        args.standardise,
        args.dropout,
        args.hidden,
        args.recipe,
        args.batch_size,
        args.members,
    )
    assert found == ("cosine", False, 0.0, 16, "retrieval", 1280, 3)


@pytest.mark.parametrize("recipe", train.RECIPES)
def test_recipe_sets_every_flag_that_has_no_default(recipe):
    args, typed = train.parse(["--recipe", recipe])
    assert typed == {"recipe"} and args.recipe == recipe
    assert [name for name, value in vars(args).items() if value is None] == []


def test_tensorboard_gets_the_numbers_of_the_log_and_drops_those_of_a_killed_epoch(tiny_run, tmp_path):
    """As TensorBoard's own reader finds them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    assert train.main(tiny_run.flags(run, "--epochs", "2", "--tensorboard")) == 0
    killed = tmp_path / "last.safetensors"
    shutil.copy(run / runs.LAST, killed)
    assert train.main(tiny_run.flags(run, "--epochs", "3", "--tensorboard", "--resume")) == 0
    shutil.copy(killed, run / runs.LAST)
    assert train.main(tiny_run.flags(run, "--epochs", "4", "--tensorboard", "--resume")) == 0
    found = accumulator.EventAccumulator(str(run / "private")).Reload()
    entries = [json.loads(line) for line in (run / runs.LOG).read_text().splitlines()]
    assert [entry["epoch"] for entry in entries] == [1, 2, 3, 4]
    for name in entries[0].keys() - {"epoch"}:
        read = [(event.step, pytest.approx(event.value)) for event in found.Scalars(name)]
        assert [(entry["epoch"], entry[name]) for entry in entries] == read, name
    assert "tensorboard" not in runs.load_config(run)["recipe"]


def test_tensorboard_that_is_not_installed_is_said_at_once(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert train.main(["--tensorboard"]) == 1
    assert (
        capsys.readouterr().err == "train.py: --tensorboard: it is not installed; pip install tensorboard\n"
    )


def test_learning_rate_rises_then_falls():
    args = Namespace(lr=1.0, warmup=0.2, schedule="cosine")
    rates = [objective.learning_rate(args, step, 10) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[6] == pytest.approx(0.5)
    assert all(a > b for a, b in zip(rates[2:], rates[3:])) and 0 < rates[-1] < 0.05
    args = Namespace(lr=1.0, warmup=0.0, schedule="constant")
    assert {objective.learning_rate(args, step, 10) for step in range(10)} == {1.0}


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_help_needs_no_torch(script):
    code = f"import runpy, sys; sys.argv = [{script!r}, '--help']\n"
    code += f"try: runpy.run_path({script!r}, run_name='__main__')\n"
    code += "finally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "--run" in done.stdout and done.stdout.splitlines()[-1] == "False"


def test_importing_the_scripts_and_the_model_imports_no_tower():
    heavy = "open_clip timm sentence_transformers transformers torchvision pandas matplotlib"
    code = (
        f"import sys, train, eval, models.vljepa; print([m for m in '{heavy}'.split() if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_resuming_a_finished_run_says_so(archive, four, tmp_path, capsys):
    shutil.copytree(four["classic"], tmp_path / "run")
    assert archive.train(tmp_path / "run", "--resume") == 0
    out = capsys.readouterr().out
    assert "--epochs" in out and "epoch train" not in out
