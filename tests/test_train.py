"""train.py in this process, on 24 drawn images with two captions each."""

import csv
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

import train
from models import metrics
from models import runs as checkpoint
from models.dataset import VisionTextDataset
from models.features import encode_archive
from models.predictor import Predictor
from models.vljepa import VLJEPA

ROOT = Path(__file__).parents[1]
COLOURS, SHAPES = (
    ("red", "green", "blue", "yellow", "black", "pink"),
    ("ellipse", "rectangle", "triangle", "line"),
)
RETRIEVAL = "--loss info_nce --dropout 0.5 --input-dropout 0.3 --standardise --group-captions --weight-decay 0.1".split()


def draw(path, colour, shape):
    image = Image.new("RGB", (48, 48), "white")
    pen = ImageDraw.Draw(image)
    if shape == "triangle":
        pen.polygon([(24, 6), (42, 42), (6, 42)], fill=colour)
    else:
        getattr(pen, shape)((8, 8, 40, 40), fill=colour, **dict(width=6) if shape == "line" else {})
    image.save(path)


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image_name", "comment"), *rows])
    return path


class Archive:
    """Images, captions file and the one cache of features that all runs of this file share."""

    def __init__(self, root):
        self.images, self.cache, self.rows = root / "images", root / "features.sqlite", []
        self.images.mkdir()
        for colour in COLOURS:
            for shape in SHAPES:
                name = f"{colour}-{shape}.jpg"
                draw(self.images / name, colour, shape)
                self.rows += [
                    (name, f"a {colour} {shape}"),
                    (name, f"the drawing shows one {shape} that is {colour}"),
                ]
        self.csv = write_csv(root / "captions.csv", self.rows)

    def flags(self, run, *more):
        return [
            "--csv",
            str(self.csv),
            "--images",
            str(self.images),
            "--cache",
            str(self.cache),
            "--run",
            str(run),
            "--quiet",
            "--vision",
            "efficientnet-lite0",
            "--device",
            "cpu",
            "--hidden",
            "16",
            "--batch-size",
            "8",
            "--epochs",
            "2",
            "--lr",
            "3e-3",
            "--val-fraction",
            "0.25",
            *more,
        ]

    def train(self, run, *more):
        return train.main(self.flags(run, *more))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return Archive(tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="module")
def four(archive, tmp_path_factory):
    """{recipe: run folder} of undisturbed runs of four epochs."""
    runs = tmp_path_factory.mktemp("four")
    for name, flags in (("classic", []), ("retrieval", RETRIEVAL)):
        assert archive.train(runs / name, "--epochs", "4", *flags) == 0
    return {"classic": runs / "classic", "retrieval": runs / "retrieval"}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_training(run, other):
    """Bit for bit: parameters, optimiser, learned scalars, and all of the log but the seconds."""
    a, b = (checkpoint.load(Path(r, "last.pt")) for r in (run, other))
    for key in ("predictor", "optimiser", "log_scale", "bias", "epoch", "step", "best"):
        assert same(a[key], b[key]), key
    a, b = ([{k: v for k, v in entry.items() if k != "seconds"} for entry in log_of(r)] for r in (run, other))
    assert a == b
    assert same(
        checkpoint.load(Path(run, "best.pt"))["predictor"],
        checkpoint.load(Path(other, "best.pt"))["predictor"],
    )


def log_of(run):
    return [json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()]


class InterruptAt(io.StringIO):
    """Standard output that sends this process a signal (as Ctrl-C does) when a line that begins with `start` is printed."""

    def __init__(self, start, number=signal.SIGINT):
        super().__init__()
        self.start, self.number, self.sent = start, number, False

    def write(self, text):
        if not self.sent and text.lstrip().startswith(self.start):
            self.sent = True
            os.kill(os.getpid(), self.number)
        return super().write(text)


# What a run leaves behind


def test_train_writes_checkpoints_log_and_curves(archive, tmp_path, capsys):
    """Catches an exit code of failure after success, and a file that the README promises and nobody writes."""
    assert archive.train(tmp_path / "run") == 0
    assert sorted(os.listdir(tmp_path / "run")) == ["best.pt", "curves.png", "last.pt", "log.jsonl"]
    with Image.open(tmp_path / "run" / "curves.png") as image:
        assert image.format == "PNG" and min(image.size) > 200
    out = capsys.readouterr().out
    assert "chance" in out and re.search(r"^ +2/2 ", out, re.M) and "python eval.py --run" in out


def test_log_lines_hold_what_was_promised(archive, four):
    """Catches a key that readers of log.jsonl rely on and that was renamed or left out."""
    recalls = {f"{way}_recall@{k}" for way in ("image_retrieval", "text_retrieval") for k in (1, 5, 10)}
    log = log_of(four["retrieval"])
    assert [entry["epoch"] for entry in log] == [1, 2, 3, 4]
    for entry in log:
        assert {
            "epoch",
            "train_loss",
            "val_loss",
            "lr",
            "seconds",
            "effective_rank",
            "matched",
            "mismatched",
        } | recalls <= entry.keys()
        assert all(0 <= entry[key] <= 1 for key in recalls)


def test_training_learns(archive, tmp_path):
    """Catches a loop that runs, logs and saves and moves nothing: on 24 drawings both losses have to fall, and the six held
    out be told apart better than by chance."""
    assert archive.train(tmp_path / "run", "--epochs", "30", "--loss", "info_nce", "--standardise") == 0
    log = log_of(tmp_path / "run")
    assert log[-1]["train_loss"] < 0.2 * log[0]["train_loss"]
    state = checkpoint.load(tmp_path / "run" / "best.pt")
    best = log[state["epoch"] - 1]
    assert best["text_retrieval_recall@1"] > 0.5 and best["matched"] > best["mismatched"] + 0.1


def test_logged_metrics_are_those_of_the_saved_predictor(archive, four):
    """Catches an evaluation in training mode (dropout on), on training images, or of other parameters than are saved."""
    state = checkpoint.load(four["retrieval"] / "last.pt")
    model = VLJEPA.load(four["retrieval"] / "last.pt")
    dataset = VisionTextDataset(archive.csv, model.vision.preprocess, archive.images)
    dataset.keep(set(dataset.image_names) - set(state["trained_on"]))
    features = encode_archive(dataset, model.vision, model.text, archive.cache, quiet=True)
    expected = metrics.retrieval(model.predict(features.image), features.text, features.image_of)
    assert log_of(four["retrieval"])[-1].items() >= expected.items()


def test_best_checkpoint_is_the_epoch_with_the_best_held_out_score(archive, tmp_path):
    """Catches a best.pt that is merely the latest: with this learning rate the run gets worse again."""
    assert (
        archive.train(tmp_path / "run", "--epochs", "12", "--lr", "0.03", "--loss", "info_nce", "--seed", "1")
        == 0
    )
    log = log_of(tmp_path / "run")
    scores = [
        (round(sum(v for k, v in entry.items() if "recall@" in k), 9), -entry["val_loss"]) for entry in log
    ]
    best = max(range(len(log)), key=scores.__getitem__)
    assert best < len(log) - 1, "this run got better to its end, so it proves nothing"
    assert checkpoint.load(tmp_path / "run" / "best.pt")["epoch"] == log[best]["epoch"]
    assert checkpoint.load(tmp_path / "run" / "last.pt")["epoch"] == 12


# The same again


def test_same_seed_gives_the_same_checkpoint(archive, four, tmp_path):
    """Catches randomness that no seed reaches, in a run with dropout and noise."""
    assert archive.train(tmp_path / "run", "--epochs", "4", *RETRIEVAL) == 0
    assert_same_training(tmp_path / "run", four["retrieval"])


def test_another_seed_gives_another_checkpoint(archive, tmp_path):
    """Catches a seed that is taken and never used, which would make the test above worthless."""
    for seed in "01":
        assert archive.train(tmp_path / seed, "--epochs", "1", "--seed", seed, "--val-fraction", "0") == 0
    zero, one = (checkpoint.load(tmp_path / seed / "last.pt") for seed in "01")
    assert zero["trained_on"] == one["trained_on"]
    assert not same(zero["predictor"], one["predictor"])


@pytest.mark.parametrize("recipe, flags", [("classic", []), ("retrieval", RETRIEVAL)])
def test_two_epochs_and_two_resumed_equal_four(archive, four, tmp_path, recipe, flags):
    """Catches an optimiser, random state or learned temperature that --resume forgets."""
    assert archive.train(tmp_path / "run", *flags) == 0
    assert archive.train(tmp_path / "run", "--epochs", "4", "--resume") == 0
    assert_same_training(tmp_path / "run", four[recipe])


@pytest.mark.parametrize("recipe, flags", [("classic", []), ("retrieval", RETRIEVAL)])
def test_run_stopped_inside_an_epoch_and_resumed_equals_the_undisturbed_one(
    archive, four, tmp_path, recipe, flags
):
    """Catches steps that are done twice or left out, and dropout that draws anew, when Ctrl-C falls into an epoch."""
    out = InterruptAt("2/4")
    with redirect_stdout(out):
        assert archive.train(tmp_path / "run", "--epochs", "4", *flags) == 130
    assert "--resume" in out.getvalue()
    state = checkpoint.load(tmp_path / "run" / "last.pt")
    assert (state["epoch"], state["step"]) == (2, 1)
    assert archive.train(tmp_path / "run", "--resume", "--epochs", "4") == 0
    assert_same_training(tmp_path / "run", four[recipe])


def test_cosine_schedule_goes_on_where_it_stopped(archive, tmp_path):
    """Catches a schedule or warm-up that begins anew with --resume."""
    flags = [*RETRIEVAL, "--schedule", "cosine", "--warmup", "0.3", "--epochs", "4"]
    assert archive.train(tmp_path / "straight", *flags) == 0
    with redirect_stdout(InterruptAt("1/4", signal.SIGTERM)):  # as a scheduler stops a job
        archive.train(tmp_path / "stopped", *flags)
    assert checkpoint.load(tmp_path / "stopped" / "last.pt")["step"] == 1
    assert archive.train(tmp_path / "stopped", "--resume", "--epochs", "4") == 0
    assert_same_training(tmp_path / "stopped", tmp_path / "straight")


def test_interrupt_of_the_running_script_saves_and_resumes_bit_for_bit(archive, tmp_path):
    """Catches a save that works from inside the process and not when a terminal stops the script, at whatever step."""
    flags = ["--epochs", "400", "--batch-size", "2", *RETRIEVAL]
    environment = os.environ | dict(OMP_NUM_THREADS=str(torch.get_num_threads()))
    script = subprocess.Popen(
        [sys.executable, "train.py", *archive.flags(tmp_path / "run", *flags)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in script.stdout:
        if line.lstrip().startswith("3/400"):
            script.send_signal(signal.SIGINT)
            break
    out, err = script.communicate(timeout=60)
    assert "stopped" in out and script.returncode == 130, err
    state = checkpoint.load(tmp_path / "run" / "last.pt")
    epochs = str(state["epoch"] + 1)
    assert archive.train(tmp_path / "run", *flags, "--resume", "--epochs", epochs) == 0
    assert archive.train(tmp_path / "straight", *flags, "--epochs", epochs) == 0
    assert_same_training(tmp_path / "run", tmp_path / "straight")


# What --resume refuses


def test_resume_refuses_a_changed_flag(archive, tmp_path, capsys):
    """Catches a typed flag that is ignored without a word, or that turns the run into a mixture of two."""
    assert archive.train(tmp_path / "run") == 0
    before = (tmp_path / "run" / "last.pt").read_bytes()
    assert archive.train(tmp_path / "run", "--resume", "--epochs", "4", "--lr", "0.5") == 1
    assert "--lr 0.003" in capsys.readouterr().err
    assert (tmp_path / "run" / "last.pt").read_bytes() == before


@pytest.mark.parametrize("change", ["caption", "one more", "one less"])
def test_resume_refuses_changed_captions(archive, tmp_path, capsys, change):
    """Catches a run that goes on with other data in another order and calls itself the same."""
    assert archive.train(tmp_path / "run") == 0
    trained_on = checkpoint.load(tmp_path / "run" / "last.pt")["trained_on"]
    at = next(i for i, (name, _) in enumerate(archive.rows) if name in trained_on)
    rows = list(archive.rows)
    rows[at : at + 1] = {
        "caption": [(rows[at][0], "other words")],
        "one more": [rows[at], (rows[at][0], "more")],
        "one less": [],
    }[change]
    changed = write_csv(tmp_path / "changed.csv", rows)
    assert archive.train(tmp_path / "run", "--resume", "--epochs", "4", "--csv", str(changed)) == 1
    assert "captions changed" in capsys.readouterr().err


def test_resume_accepts_the_same_line_with_the_tower_left_to_choose(archive, tmp_path, monkeypatch):
    """Catches '--vision auto' compared as text with the tower that it chose: the very line that began the run would be refused."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # no network: auto is what is cached or packaged
    assert archive.train(tmp_path / "run", "--vision", "auto") == 0
    assert archive.train(tmp_path / "run", "--vision", "auto", "--resume", "--epochs", "3") == 0


def test_resume_of_a_run_that_is_not_there_begins_it(archive, tmp_path, capsys):
    """Catches a job script that always passes --resume and never starts."""
    assert archive.train(tmp_path / "run", "--resume") == 0
    assert "not there" in capsys.readouterr().out and len(log_of(tmp_path / "run")) == 2


def test_resume_of_a_damaged_checkpoint_stops_and_leaves_it(archive, four, tmp_path, capsys):
    """Catches a damaged last.pt that is taken for none: the run would begin anew and throw the rest away."""
    shutil.copytree(four["classic"], tmp_path / "run")
    half = (tmp_path / "run" / "last.pt").read_bytes()[:5000]
    (tmp_path / "run" / "last.pt").write_bytes(half)
    assert archive.train(tmp_path / "run", "--resume", "--epochs", "6") == 1
    assert str(tmp_path / "run" / "last.pt") in capsys.readouterr().err
    assert (tmp_path / "run" / "last.pt").read_bytes() == half


# When training goes wrong


def spoil(four, run, lr):
    """A copy of the classic run whose recipe holds another learning rate: what --resume goes on with."""
    shutil.copytree(four["classic"], run)
    state = checkpoint.load(run / "last.pt")
    state["recipe"]["lr"] = lr
    checkpoint.save(state, run / "last.pt")


def resume(archive, run, *more):
    return train.main(["--resume", "--run", str(run), "--quiet", "--epochs", "8", *more])


@pytest.mark.parametrize("lr", [1e30, 1e38])
def test_non_finite_loss_stops_names_files_and_keeps_a_checkpoint_that_loads(
    archive, four, tmp_path, capsys, lr
):
    """Catches a run that goes on with NaN, one that doesn't say which images the batch held, and a last.pt that is NaN."""
    spoil(four, tmp_path / "run", lr)
    assert resume(archive, tmp_path / "run") == 1
    err = capsys.readouterr().err
    assert "loss is" in err and "epoch 5" in err
    trained_on = checkpoint.load(four["classic"] / "last.pt")["trained_on"]
    assert 0 < sum(name in err for name in trained_on) <= 8
    state = checkpoint.load(tmp_path / "run" / "last.pt")
    assert state["epoch"] == 4
    assert same(state["predictor"], checkpoint.load(four["classic"] / "last.pt")["predictor"])


@pytest.mark.parametrize("lr", [1e30, 1e38])
def test_parameters_that_blow_up_in_the_last_step_of_an_epoch_are_not_saved(archive, tmp_path, capsys, lr):
    """Catches a save between the step that broke the parameters and the loss that shows it: without held-out images nothing
    looks at them in between, and 'keeps the last good checkpoint' would be a lie."""
    flags = ["--val-fraction", "0", "--batch-size", "100"]  # an epoch is one step
    assert archive.train(tmp_path / "run", *flags) == 0
    good = checkpoint.load(tmp_path / "run" / "last.pt")
    checkpoint.save(good | dict(recipe=good["recipe"] | dict(lr=lr)), tmp_path / "run" / "last.pt")
    assert resume(archive, tmp_path / "run") == 1
    state = checkpoint.load(tmp_path / "run" / "last.pt")
    predictor = Predictor(**state["config"])
    predictor.load_state_dict(state["predictor"])
    assert torch.isfinite(predictor.eval()(torch.eye(1280))).all()
    assert "Traceback" not in capsys.readouterr().err


def test_non_finite_loss_in_the_first_epoch_does_not_promise_a_checkpoint(archive, tmp_path, capsys):
    """Catches 'keeps the last good checkpoint' said of a folder that holds none."""
    assert archive.train(tmp_path / "run", "--lr", "1e30") == 1
    err = capsys.readouterr().err
    assert "loss is" in err and "--lr" in err
    assert ("keeps the last good checkpoint" in err) == (tmp_path / "run" / "last.pt").exists()


@pytest.mark.parametrize(
    "typed",
    [
        "--batch-size 0",
        "--batch-size -4",
        "--epochs 0",
        "--hidden 0",
        "--lr -1",
        "--val-fraction 1",
        "--val-fraction -0.1",
        "--dropout 1.5",
    ],
)
def test_senseless_number_is_refused(archive, tmp_path, capsys, typed):
    """Catches a traceback, and worse, a run that trains nothing (a negative batch size makes no steps) and saves that."""
    try:
        code = archive.train(tmp_path / "run", *typed.split())
    except SystemExit as stop:  # argparse's own way
        code = stop.code
    assert code in (1, 2)
    assert typed.split()[1] in capsys.readouterr().err
    assert not (tmp_path / "run" / "last.pt").exists()


# Folders


def test_second_run_on_a_folder_moves_the_first_aside(archive, tmp_path, capsys):
    """Catches a day's training overwritten by the same line typed again."""
    assert archive.train(tmp_path / "run") == 0
    first = (tmp_path / "run" / "last.pt").read_bytes()
    assert archive.train(tmp_path / "run", "--seed", "5") == 0
    assert (tmp_path / "run.previous" / "last.pt").read_bytes() == first
    assert checkpoint.load(tmp_path / "run" / "last.pt")["recipe"]["seed"] == 5
    assert "run.previous" in capsys.readouterr().out


def test_folder_that_is_no_run_is_never_deleted(archive, tmp_path):
    """Catches --run pointed at a folder of photographs: moved aside by the first run, deleted with '.previous' by the second."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "wedding.jpg").write_bytes(b"the only copy")
    for _ in range(3):
        archive.train(tmp_path / "photos", "--epochs", "1")
    assert [path.read_bytes() for path in tmp_path.rglob("wedding.jpg")] == [b"the only copy"]


def test_failed_start_leaves_the_earlier_run_where_it_is(archive, four, tmp_path):
    """Catches a run folder moved aside before it is known that there is anything to train on."""
    shutil.copytree(four["classic"], tmp_path / "run")
    assert archive.train(tmp_path / "run", "--csv", str(tmp_path / "none.csv")) == 1
    assert sorted(os.listdir(tmp_path)) == ["run"] and len(os.listdir(tmp_path / "run")) == 4


# The split


def test_split_depends_on_names_alone(archive, tmp_path):
    """Catches images that change sides when rows are shuffled, captions edited or images added: they would leak into training."""
    rows = [(name, caption.upper()) for name, caption in archive.rows]
    folder = shutil.copytree(archive.images, tmp_path / "images")
    for i in range(6):
        shutil.copy(folder / "red-line.jpg", folder / f"new-{i}.jpg")
        rows.append((f"new-{i}.jpg", f"number {i}"))
    random.Random(0).shuffle(rows)
    assert archive.train(tmp_path / "a", "--epochs", "1") == 0
    other = write_csv(tmp_path / "other.csv", rows)
    assert archive.train(tmp_path / "b", "--epochs", "1", "--csv", str(other), "--images", str(folder)) == 0
    a, b = (set(checkpoint.load(tmp_path / run / "last.pt")["trained_on"]) for run in "ab")
    names = {name for name, _ in archive.rows}
    assert a == b & names and 0 < len(a) < len(names)


def test_held_out_images_and_captions_do_not_touch_training(archive, four, tmp_path):
    """Catches a leak: statistics for --standardise, or a step, taken from held-out data. Here all of it is replaced."""
    state = checkpoint.load(four["retrieval"] / "last.pt")
    trained_on = set(state["trained_on"])
    folder, rows = shutil.copytree(archive.images, tmp_path / "images"), []
    for name, caption in archive.rows:
        if name not in trained_on:
            Image.effect_noise((48, 48), 80).convert("RGB").save(folder / name)
        rows.append((name, caption if name in trained_on else f"static {len(rows)}"))
    changed = write_csv(tmp_path / "changed.csv", rows)
    assert (
        archive.train(
            tmp_path / "run", "--epochs", "4", "--csv", str(changed), "--images", str(folder), *RETRIEVAL
        )
        == 0
    )
    other = checkpoint.load(tmp_path / "run" / "last.pt")
    assert set(other["trained_on"]) == trained_on and same(other["predictor"], state["predictor"])
    assert log_of(tmp_path / "run")[-1]["val_loss"] != log_of(four["retrieval"])[-1]["val_loss"]


def test_all_images_held_out_is_an_error(archive, tmp_path, capsys):
    """Catches a training set of nothing."""
    assert archive.train(tmp_path / "run", "--val-fraction", "0.9999") == 1
    assert "--val-fraction" in capsys.readouterr().err


def test_nothing_held_out_trains_and_says_that_best_is_the_last(archive, tmp_path, capsys):
    """Catches a crash on an empty held-out set, and a 'best' that nothing chose."""
    assert archive.train(tmp_path / "run", "--val-fraction", "0", "--epochs", "3") == 0
    assert "best.pt is epoch 3, the last" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "run" / "best.pt")["epoch"] == 3
    assert len(checkpoint.load(tmp_path / "run" / "last.pt")["trained_on"]) == 24
    assert not any(
        "val_loss" in entry or "image_retrieval_recall@1" in entry for entry in log_of(tmp_path / "run")
    )


def test_one_image_can_be_trained_on(archive, tmp_path):
    """Catches a deviation over one row (NaN) and a contrastive loss without negatives."""
    one = write_csv(tmp_path / "one.csv", archive.rows[:2])
    assert archive.train(tmp_path / "run", "--csv", str(one), "--val-fraction", "0", *RETRIEVAL) == 0


# Bad input


def test_missing_images_are_all_named(archive, tmp_path, capsys):
    """Catches a crash at the first missing image of many, hours apart each."""
    rows = [*archive.rows[:10], ("gone.jpg", "not there"), *archive.rows[10:], ("lost.jpg", "nor this")]
    assert archive.train(tmp_path / "run", "--csv", str(write_csv(tmp_path / "bad.csv", rows))) == 1
    err = capsys.readouterr().err
    assert "line 12: gone.jpg" in err and "line 51: lost.jpg" in err and "--skip-bad" in err
    assert not (tmp_path / "run").exists()


def test_skip_bad_trains_on_the_rest(archive, tmp_path, capsys):
    """Catches a --skip-bad that skips silently, or drops good images with the bad; a truncated file only shows when decoded."""
    folder = shutil.copytree(archive.images, tmp_path / "images")
    (folder / "cut.jpg").write_bytes((folder / "red-line.jpg").read_bytes()[:-200])
    rows = [("gone.jpg", "not there"), *archive.rows, ("cut.jpg", "cut short"), ("cut.jpg", "twice")]
    flags = [
        "--csv",
        str(write_csv(tmp_path / "bad.csv", rows)),
        "--images",
        str(folder),
        "--val-fraction",
        "0",
    ]
    assert archive.train(tmp_path / "run", *flags) == 1
    assert "gone.jpg" in capsys.readouterr().err
    assert archive.train(tmp_path / "run", *flags, "--skip-bad") == 0
    out = capsys.readouterr().out
    assert "gone.jpg" in out and "cut.jpg" in out
    assert set(checkpoint.load(tmp_path / "run" / "last.pt")["trained_on"]) == {
        name for name, _ in archive.rows
    }


def test_wrong_column_names_the_columns_there_are(archive, tmp_path, capsys):
    """Catches a KeyError in place of the way out."""
    assert archive.train(tmp_path / "run", "--caption-column", "text") == 1
    err = capsys.readouterr().err
    assert "'text'" in err and "comment" in err and "--caption-column" in err


# Flags


def test_typed_flags_override_the_recipe(archive, tmp_path):
    """Catches a recipe that wins over what was typed beside it, before or after it on the line."""
    flags = ["--loss", "cosine", "--recipe", "retrieval", "--no-standardise", "--dropout", "0"]
    assert archive.train(tmp_path / "run", *flags) == 0
    recipe = checkpoint.load(tmp_path / "run" / "last.pt")["recipe"]
    typed = dict(
        recipe="retrieval",
        loss="cosine",
        standardise=False,
        dropout=0.0,
        hidden=16,
        batch_size=8,
        epochs=2,
        lr=3e-3,
    )
    assert recipe.items() >= (train.RECIPES["retrieval"] | typed).items()


@pytest.mark.parametrize("recipe", train.RECIPES)
def test_recipe_sets_every_flag_that_has_no_default(recipe):
    """Catches a recipe flag whose value stays None."""
    args, typed = train.parse(["--recipe", recipe])
    assert typed == {"recipe"} and args.items() >= train.RECIPES[recipe].items()
    assert [name for name, value in args.items() if value is None] == []


def test_learning_rate_rises_then_falls():
    """Catches a warm-up or cosine that is off by its ends, against numbers by hand."""
    from argparse import Namespace

    args = Namespace(lr=1.0, warmup=0.2, schedule="cosine")
    rates = [train.learning_rate(args, step, 10) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[6] == pytest.approx(0.5)
    assert all(a > b for a, b in zip(rates[2:], rates[3:])) and 0 < rates[-1] < 0.05
    args = Namespace(lr=1.0, warmup=0.0, schedule="constant")
    assert {train.learning_rate(args, step, 10) for step in range(10)} == {1.0}


# Start-up


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_help_answers_within_two_seconds(script):
    """Catches torch, or worse, imported before the flags are read. The better of two: the machine may be busy."""
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - began)
        assert "--run" in done.stdout
    assert min(seconds) < 2


def test_importing_the_scripts_and_metrics_imports_no_tower():
    """Catches a heavy import at module level, also one that comes in through another module."""
    heavy = "open_clip timm sentence_transformers transformers torchvision pandas matplotlib"
    code = f"import sys, train, eval, models.metrics, models.vljepa; print([m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
