"""train.py in this process, on 24 drawn images with two captions each."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from PIL import Image

import eval
import train
from models import metrics, runs
from models.features import encode_archive
from models.features.tars import expand
from models.vljepa import VLJEPA
from tests.conftest import ROOT, write_csv

SMALL = "--hidden 16 --batch-size 8 --epochs 4 --lr 3e-3".split()
FULL = "--loss info_nce --dropout 0.5 --input-dropout 0.3 --standardise --group-captions --members 2".split()
FULL += "--weight-decay 0.1 --schedule cosine --warmup 0.3".split()
RECALLS = {f"{way}_recall@{k}" for way in ("image_retrieval", "text_retrieval") for k in (1, 5, 10)}


@pytest.fixture(scope="module")
def fit(tiny_run):
    """Trains a small predictor in a run folder; returns the exit code of train.py."""

    def train_there(run, *more):
        return train.main(tiny_run.flags(run, *SMALL, *map(str, more)))

    return train_there


@pytest.fixture(scope="module")
def full(fit, tmp_path_factory):
    """An undisturbed run of four epochs with all that the `retrieval` recipe sets."""
    run = tmp_path_factory.mktemp("full") / "run"
    assert fit(run, *FULL) == 0
    return run


@pytest.fixture
def copied(full, tmp_path):
    return shutil.copytree(full, tmp_path / "run")


@pytest.fixture
def rows(tiny_run):
    return [tuple(line.split(",", 1)) for line in tiny_run.csv.read_text().splitlines()[1:]]


def log_of(run):
    return [json.loads(line) for line in Path(run, runs.LOG).read_text().splitlines()]


def trained_on(run):
    return set(runs.load_private(run)[1])


def assert_same_tensors(run, other, prefix=""):
    a, b = runs.load_last(run)[0], runs.load_last(other)[0]
    assert a.keys() == b.keys()
    assert [name for name in a if name.startswith(prefix) and not torch.equal(a[name], b[name])] == []


def assert_same_training(run, other):
    """Bit for bit: all saved tensors, the best model, and all of the log but the seconds."""
    assert_same_tensors(run, other)
    a, b = runs.load_model(run)[0], runs.load_model(other)[0]
    assert all(torch.equal(a[name], b[name]) for name in a)
    a, b = ([entry | dict(seconds=0) for entry in log_of(folder)] for folder in (run, other))
    assert a == b


def signal_at(monkeypatch, step, number=signal.SIGINT):
    """Send this process a signal during one step of the run, as Ctrl-C does."""
    rate = train.learning_rate

    def send(args, at, steps):
        if at == step:
            os.kill(os.getpid(), number)
        return rate(args, at, steps)

    monkeypatch.setattr(train, "learning_rate", send)


# What a run leaves behind


def test_train_writes_the_run_folder_and_a_table(fit, tmp_path, capsys):
    assert fit(tmp_path / "run") == 0
    files = ["config.json", "curves.png", "log.jsonl", "model.safetensors", "private"]
    assert sorted(os.listdir(tmp_path / "run")) == files
    with Image.open(tmp_path / "run" / "curves.png") as image:
        assert image.format == "PNG" and min(image.size) > 200
    out = capsys.readouterr().out
    assert "chance" in out and re.search(r"^ +4/4 ", out, re.M) and "python eval.py --run" in out


def test_log_holds_losses_recalls_and_spread_of_every_epoch(full):
    keys = {"train_loss", "val_loss", "lr", "seconds", "effective_rank", "matched", "mismatched"} | RECALLS
    log = log_of(full)
    assert [entry["epoch"] for entry in log] == [1, 2, 3, 4]
    assert all(keys <= entry.keys() and all(0 <= entry[key] <= 1 for key in RECALLS) for entry in log)


def test_training_learns(tiny_run):
    log = log_of(tiny_run.folder)
    assert log[-1]["train_loss"] < 0.7 * log[0]["train_loss"]
    best = log[runs.load_model(tiny_run.folder)[2]["epoch"] - 1]
    assert best["text_retrieval_recall@1"] > 0.4 and best["matched"] > best["mismatched"] + 0.1


def test_logged_metrics_are_those_of_the_saved_model(full, tiny_run):
    """No dropout, no training image, and the parameters that are saved."""
    model = VLJEPA.load(full)
    features = encode_archive(model.held_out(), model.vision, model.text, tiny_run.cache, quiet=True)
    found = metrics.retrieval(model.predict(features.image), features.text, features.image_of)
    entry = log_of(full)[model.record["epoch"] - 1]
    assert entry.items() >= found.items() and model.record["held_out"]["metrics"] == found


def test_model_is_of_the_epoch_with_the_best_held_out_score(fit, tmp_path):
    assert fit(tmp_path / "run", "--epochs", 12, "--lr", 0.03, "--loss", "info_nce", "--seed", 1) == 0
    log = log_of(tmp_path / "run")
    scores = [(round(sum(entry[key] for key in RECALLS), 9), -entry["val_loss"]) for entry in log]
    best = scores.index(max(scores)) + 1
    assert best < 12, "this run got better to its end, so it proves nothing"
    assert runs.load_model(tmp_path / "run")[2]["epoch"] == best
    assert runs.load_last(tmp_path / "run")[1]["epoch"] == 12


def test_collapse_is_noticed(fit, tmp_path, capsys):
    """Each step takes a tenth of every weight away and adds nothing."""
    assert fit(tmp_path / "run", "--epochs", 1, "--lr", 1e-9, "--weight-decay", 1e8) == 0
    assert "collapse alarm" in capsys.readouterr().out


# The same again


def test_same_seed_gives_the_same_run_and_another_does_not(fit, full, tmp_path):
    assert fit(tmp_path / "same", *FULL) == 0
    assert_same_training(tmp_path / "same", full)
    for seed in (0, 1):
        assert fit(tmp_path / str(seed), "--epochs", 1, "--seed", seed, "--val-fraction", 0) == 0
    assert trained_on(tmp_path / "0") == trained_on(tmp_path / "1")
    with pytest.raises(AssertionError):
        assert_same_tensors(tmp_path / "0", tmp_path / "1", "predictor")


def test_two_epochs_and_two_resumed_equal_four(fit, tmp_path):
    assert fit(tmp_path / "four", "--dropout", 0.5) == 0
    assert fit(tmp_path / "run", "--dropout", 0.5, "--epochs", 2) == 0
    assert fit(tmp_path / "run", "--resume", "--dropout", 0.5) == 0
    assert_same_training(tmp_path / "run", tmp_path / "four")


@pytest.mark.parametrize(
    "step, number", [(0, signal.SIGINT), (7, signal.SIGTERM), (9, signal.SIGINT)], ids=["0", "7", "last"]
)
def test_run_stopped_at_any_step_and_resumed_equals_the_undisturbed_one(
    fit, full, tiny_run, tmp_path, monkeypatch, capsys, step, number
):
    """SIGINT exits with 130 and SIGTERM with 0; step 9 is the last of an epoch."""
    assert math.ceil(2 * len(tiny_run.trained_on) / 8) == 5, "the steps of this test assume 5 per epoch"
    with monkeypatch.context() as patch:
        signal_at(patch, step, number)
        assert fit(tmp_path / "run", *FULL) == (130 if number == signal.SIGINT else 0)
    assert "--resume" in capsys.readouterr().out
    facts = runs.load_last(tmp_path / "run")[1]
    assert (facts["epoch"], facts["step"]) == divmod(step + 1, 5)
    assert fit(tmp_path / "run", "--resume", *FULL) == 0
    assert_same_training(tmp_path / "run", full)


def test_run_of_one_step_per_epoch_can_be_stopped_and_resumed(fit, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, 1)
        assert fit(tmp_path / "run", "--batch-size", 100) == 130
    assert fit(tmp_path / "run", "--resume", "--batch-size", 100) == 0
    assert len(log_of(tmp_path / "run")) == 4


def test_sigterm_does_not_hide_that_saving_failed(fit, tmp_path, monkeypatch, capsys):
    rate = train.learning_rate

    def send(args, step, steps):
        if step == 7:
            shutil.rmtree(Path(args.run, "private"))
            Path(args.run, "private").write_bytes(b"")  # a file, so nothing can be saved in it
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(args, step, steps)

    monkeypatch.setattr(train, "learning_rate", send)
    assert fit(tmp_path / "run") == 1
    assert "private" in capsys.readouterr().err


def test_ctrl_c_of_the_running_script_saves(tiny_run, tmp_path):
    command = [sys.executable, "train.py", *tiny_run.flags(tmp_path / "run", *SMALL, "--epochs", "4000")]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    script = subprocess.Popen(command, cwd=ROOT, env=os.environ | dict(OMP_NUM_THREADS="1"), **pipes)
    for line in script.stdout:
        if line.lstrip().startswith("3/4000"):
            script.send_signal(signal.SIGINT)
            break
    out, err = script.communicate(timeout=60)
    assert script.returncode == 130 and "stopped after" in out and err == ""
    assert runs.load_last(tmp_path / "run")[1]["epoch"] >= 3


# What --resume refuses


def test_resume_refuses_a_changed_flag_and_leaves_the_run(fit, copied, capsys):
    before = (copied / runs.LAST).read_bytes()
    assert fit(copied, "--resume", "--lr", 0.5) == 1
    assert "--lr 0.003" in capsys.readouterr().err
    assert (copied / runs.LAST).read_bytes() == before


@pytest.mark.parametrize("change", ["caption", "one more", "one less"])
def test_resume_refuses_changed_captions(fit, copied, rows, capsys, change):
    at = next(i for i, (name, _) in enumerate(rows) if name in trained_on(copied))
    other, more = (rows[at][0], "other words"), (rows[at][0], "more")
    rows[at : at + 1] = {"caption": [other], "one more": [rows[at], more], "one less": []}[change]
    changed = write_csv(copied.parent / "changed.csv", rows)
    assert fit(copied, "--resume", *FULL, "--epochs", 5, "--csv", changed) == 1
    assert "captions have changed" in capsys.readouterr().err


def test_resume_accepts_the_same_line_with_the_tower_left_to_choose(fit, tmp_path, no_hub):
    assert fit(tmp_path / "run", "--vision", "auto", "--epochs", 1) == 0
    assert fit(tmp_path / "run", "--vision", "auto", "--resume", "--epochs", 2) == 0


def test_resume_of_a_run_that_is_not_there_starts_it(fit, tmp_path, capsys):
    assert fit(tmp_path / "run", "--resume", "--epochs", 2) == 0
    assert "no run yet" in capsys.readouterr().out and len(log_of(tmp_path / "run")) == 2


def test_resume_of_a_damaged_file_names_and_leaves_it(fit, copied, capsys):
    half = (copied / runs.LAST).read_bytes()[:5000]
    (copied / runs.LAST).write_bytes(half)
    assert fit(copied, "--resume", *FULL) == 1
    assert str(copied / runs.LAST) in capsys.readouterr().err
    assert (copied / runs.LAST).read_bytes() == half


# When training goes wrong


def resume_with(run, lr, *more):
    """The exit code of resuming a run after its learning rate was changed in what it saved."""
    tensors, facts = runs.load_last(run)
    facts["recipe"]["lr"] = lr
    runs.save_last(run, tensors, facts)
    return train.main(["--resume", "--run", str(run), "--quiet", "--epochs", "8", *more])


@pytest.mark.parametrize("lr", [1e30, 1e38])
def test_non_finite_loss_names_its_images_and_keeps_the_last_good_state(full, copied, capsys, lr):
    assert resume_with(copied, lr) == 1
    err = capsys.readouterr().err
    assert "loss is" in err and "epoch 5" in err and str(copied / runs.LAST) in err
    assert 0 < sum(name in err for name in trained_on(copied)) <= 8
    assert_same_tensors(copied, full)


@pytest.mark.parametrize("lr", [1e30, 1e38])
def test_parameters_that_blow_up_in_the_last_step_of_an_epoch_are_not_saved(fit, tmp_path, lr):
    """Without held-out images nothing else looks at them between two epochs of one step."""
    assert fit(tmp_path / "run", "--val-fraction", 0, "--batch-size", 100, "--epochs", 2) == 0
    assert resume_with(tmp_path / "run", lr) == 1
    tensors = runs.load_last(tmp_path / "run")[0]
    assert all(torch.isfinite(value).all() for value in tensors.values())
    predictor = VLJEPA.load(tmp_path / "run").predictor
    assert torch.isfinite(predictor(torch.eye(1280))).all()


def test_non_finite_loss_in_the_first_epoch_promises_no_saved_state(fit, tmp_path, capsys):
    assert fit(tmp_path / "run", "--lr", 1e30) == 1
    err = capsys.readouterr().err
    assert "loss is" in err and "--lr" in err
    assert ("last good state" in err) == (tmp_path / "run" / runs.LAST).exists()


NUMBERS = "--batch-size 0,--batch-size -4,--epochs 0,--hidden 0,--lr -1,--val-fraction 1,--val-fraction -0.1"


@pytest.mark.parametrize("typed", [*NUMBERS.split(","), "--dropout 1.5"])
def test_senseless_number_is_refused(fit, tmp_path, capsys, typed):
    assert fit(tmp_path / "run", *typed.split()) == 1
    assert typed.split()[1] in capsys.readouterr().err
    assert not (tmp_path / "run" / runs.LAST).exists()


# Folders


def test_second_run_on_a_folder_sets_the_first_aside(fit, full, copied, capsys):
    for number, seed in ((1, 5), (2, 6)):
        assert fit(copied, "--seed", seed, "--epochs", 1) == 0
        assert f"run.{number}" in capsys.readouterr().out
        assert runs.load_config(copied)["recipe"]["seed"] == seed
    assert_same_training(copied.with_name("run.1"), full)
    assert runs.load_config(copied.with_name("run.2"))["recipe"]["seed"] == 5


def test_folder_that_is_no_run_is_refused_and_left(fit, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "wedding.jpg").write_bytes(b"the only copy")
    assert fit(tmp_path / "photos", "--epochs", 1) == 1
    assert str(tmp_path / "photos") in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "wedding.jpg"]


def test_failed_start_leaves_the_earlier_run_where_it_is(fit, full, copied):
    assert fit(copied, "--csv", copied / "none.csv") == 1
    assert os.listdir(copied.parent) == ["run"]
    assert_same_training(copied, full)


# The split


def test_split_depends_on_names_alone(fit, full, tiny_run, rows, tmp_path):
    """Shuffled rows, edited captions and added images leave every image on its side."""
    folder = shutil.copytree(tiny_run.images, tmp_path / "images")
    rows = [(name, caption.upper()) for name, caption in rows[::-1]]
    for i in range(6):
        shutil.copy(folder / "red-line.jpg", folder / f"new-{i}.jpg")
        rows.insert(5 * i, (f"new-{i}.jpg", f"number {i}"))
    other = write_csv(tmp_path / "other.csv", rows)
    assert fit(tmp_path / "run", "--epochs", 1, "--csv", other, "--images", folder) == 0
    assert trained_on(full) == trained_on(tmp_path / "run") & set(tiny_run.names) == tiny_run.trained_on


def test_held_out_images_and_captions_do_not_touch_training(fit, full, tiny_run, rows, tmp_path):
    """All of them are replaced, and only the digest of the data and the held-out results change."""
    folder, changed = shutil.copytree(tiny_run.images, tmp_path / "images"), []
    for name, caption in rows:
        if name not in trained_on(full):
            Image.effect_noise((48, 48), 80).convert("RGB").save(folder / name)
        changed.append((name, caption if name in trained_on(full) else f"static {len(changed)}"))
    changed = write_csv(tmp_path / "changed.csv", changed)
    assert fit(tmp_path / "run", "--csv", changed, "--images", folder, *FULL) == 0
    assert_same_tensors(tmp_path / "run", full)
    assert log_of(tmp_path / "run")[-1]["val_loss"] != log_of(full)[-1]["val_loss"]


def test_all_images_held_out_is_an_error(fit, tmp_path, capsys):
    assert fit(tmp_path / "run", "--val-fraction", 0.9999) == 1
    assert "--val-fraction" in capsys.readouterr().err


def test_nothing_held_out_keeps_the_last_epoch_and_says_so(fit, tmp_path, capsys):
    assert fit(tmp_path / "run", "--val-fraction", 0, "--epochs", 3) == 0
    assert "epoch 3, the last" in capsys.readouterr().out
    assert runs.load_model(tmp_path / "run")[2]["epoch"] == 3 and len(trained_on(tmp_path / "run")) == 24
    assert not any(entry.keys() & ({"val_loss"} | RECALLS) for entry in log_of(tmp_path / "run"))


def test_one_image_can_be_trained_on(fit, rows, tmp_path):
    """Its deviation over one row is not a number, and a contrastive loss has no negatives."""
    one = write_csv(tmp_path / "one.csv", rows[:2])
    assert fit(tmp_path / "run", "--csv", one, "--val-fraction", 0, *FULL) == 0


# Input


def test_missing_images_are_all_named(fit, rows, tmp_path, capsys):
    rows = [*rows[:10], ("gone.jpg", "not there"), *rows[10:], ("lost.jpg", "nor this")]
    assert fit(tmp_path / "run", "--csv", write_csv(tmp_path / "bad.csv", rows)) == 1
    err = capsys.readouterr().err
    assert "line 12: gone.jpg" in err and "line 51: lost.jpg" in err and "--skip-bad" in err
    assert not (tmp_path / "run").exists()


def test_skip_bad_trains_on_the_rest_and_names_what_it_leaves_out(fit, tiny_run, rows, tmp_path, caplog):
    folder = shutil.copytree(tiny_run.images, tmp_path / "images")
    (folder / "cut.jpg").write_bytes((folder / "red-line.jpg").read_bytes()[:-200])  # shows when decoded
    rows = [("gone.jpg", "not there"), *rows, ("cut.jpg", "cut short"), ("cut.jpg", "twice")]
    flags = ["--csv", write_csv(tmp_path / "bad.csv", rows), "--images", folder, "--val-fraction", 0]
    assert fit(tmp_path / "run", *flags, "--skip-bad", "--epochs", 1) == 0
    assert "gone.jpg" in caplog.text and "cut.jpg" in caplog.text
    assert trained_on(tmp_path / "run") == set(tiny_run.names)


def test_wrong_column_names_the_columns_there_are(fit, tmp_path, capsys):
    assert fit(tmp_path / "run", "--caption-column", "text") == 1
    err = capsys.readouterr().err
    assert "'text'" in err and "comment" in err and "--caption-column" in err


def test_shards_train_a_model_that_gives_back_its_captions(fit, tiny_run, rows, tmp_path, capsys):
    """Tars in, a run out; it loads, holds the captions and names no training image."""
    for number in (0, 1):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for i, (name, caption) in enumerate(rows[number::4]):
                (tmp_path / "caption.txt").write_text(caption)
                tar.add(tiny_run.images / name, f"{i:03}.jpg")
                tar.add(tmp_path / "caption.txt", f"{i:03}.txt")
    tars = ["--shards", tmp_path / "{0..1}.tar", "--shard-features", tmp_path / "features"]
    assert len(list(expand(str(tars[1])))) == 2
    assert fit(tmp_path / "run", *tars, "--epochs", 2) == 0
    assert fit(tmp_path / "run", *tars, "--epochs", 3, "--resume") == 0
    model = VLJEPA.load(tmp_path / "run")
    texts, embeddings = model.captions()
    assert set(texts) == {caption for number in (0, 1) for _, caption in rows[number::4]}
    torch.testing.assert_close(embeddings, model.encode_text(texts), rtol=0, atol=1e-3)  # kept as float16
    assert str(tmp_path) not in json.dumps(model.config)
    with pytest.raises(ValueError, match="trained from a CSV"):
        assert model.trained_on
    flags = ["--run", str(tmp_path / "run"), "--csv", str(tiny_run.csv), "--images", str(tiny_run.images)]
    capsys.readouterr()
    assert eval.main([*flags, "--cache", str(tiny_run.cache), "--quiet"]) == 0
    assert "does not name its training images" in capsys.readouterr().out


# Flags


def test_typed_flags_win_over_the_recipe(fit, tmp_path):
    flags = "--loss cosine --recipe retrieval --no-standardise --dropout 0 --epochs 1".split()
    assert fit(tmp_path / "run", *flags) == 0
    typed = dict(recipe="retrieval", loss="cosine", standardise=False, dropout=0.0, hidden=16, epochs=1)
    set_by_recipe = dict(members=3, input_dropout=0.5, group_captions=True, schedule="cosine", warmup=0.1)
    assert runs.load_private(tmp_path / "run")[0].items() >= (typed | set_by_recipe).items()


@pytest.mark.parametrize("recipe", train.RECIPES)
def test_recipe_sets_every_flag_that_has_no_default(recipe):
    args, typed = train.parse(["--recipe", recipe])
    assert typed == {"recipe"} and args.recipe == recipe
    assert [name for name, value in vars(args).items() if value is None] == []


def test_learning_rate_rises_then_falls():
    args = Namespace(lr=1.0, warmup=0.2, schedule="cosine")
    rates = [train.learning_rate(args, step, 10) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[6] == pytest.approx(0.5)
    assert all(a > b for a, b in zip(rates[2:], rates[3:])) and 0 < rates[-1] < 0.05
    args = Namespace(lr=1.0, warmup=0.0, schedule="constant")
    assert {train.learning_rate(args, step, 10) for step in range(10)} == {1.0}


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_help_answers_at_once(script):
    """The better of two: the machine may be busy. With torch it takes over two seconds."""
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, check=True)
        seconds.append(time.perf_counter() - began)
        assert b"--run" in done.stdout
    assert min(seconds) < 2
