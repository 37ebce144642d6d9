"""eval.py in this process, on a run trained for a moment on 24 drawings with two captions each."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

import eval
from models import metrics
from models.dataset import VisionTextDataset, read_rows
from models.features import encode_archive
from models.vljepa import VLJEPA
from models.zeroshot import PLAIN, TEMPLATES, class_embeddings
from tests.conftest import COLORS, ROOT, SHAPES, draw_shape, write_csv

HEAVY = ["open_clip", "timm", "sentence_transformers", "transformers", "torchvision", "pandas", "matplotlib"]
RECALLS = {f"{way}_recall@{k}" for way in ("image_retrieval", "text_retrieval") for k in (1, 5, 10)}


@pytest.fixture(scope="module")
def model(tiny_run):
    return VLJEPA.load(tiny_run.folder)


@pytest.fixture
def photo(tiny_run):
    return tiny_run.images / "red-rectangle.jpg"


@pytest.fixture
def ask(tiny_run):
    """eval.main with the tiny run's flags."""

    def ask(*flags):
        own = ["--run", tiny_run.folder, "--cache", tiny_run.cache, "--device", "cpu", "--quiet"]
        return eval.main([str(flag) for flag in (*flags, *own)])

    return ask


@pytest.fixture
def ask_json(ask, capsys):
    """The JSON on standard output of eval.main."""

    def ask_json(*flags):
        capsys.readouterr()
        assert ask(*flags, "--json") == 0
        return json.loads(capsys.readouterr().out)

    return ask_json


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A folder of six class folders of four images."""
    root = tmp_path_factory.mktemp("classes")
    for color in COLORS:
        (root / f"the_{color}").mkdir()
        for shape in SHAPES:
            draw_shape(color, shape).save(root / f"the_{color}" / f"{shape}.jpg")
    return root


def scores_of(model, paths, labels, templates=PLAIN):
    """[C scores per path], worked out by hand."""
    return (model.encode_image(paths) @ class_embeddings(model.encode_text, labels, templates).T).tolist()


def test_answer_is_two_lines_as_documented(ask, model, photo, capsys):
    labels = ["a red rectangle", "a green ellipse", "a black line"]
    assert ask(photo, "--labels", *labels) == 0
    first, second, *rest = capsys.readouterr().out.splitlines()
    (scores,) = scores_of(model, [photo], labels)
    assert first == f"Prediction: {labels[max(range(3), key=scores.__getitem__)]}"
    assert json.loads(second.removeprefix("Scores: ")) == pytest.approx(scores, abs=1e-4)
    best_first = sorted(zip(scores, labels), reverse=True)
    assert [line.split(maxsplit=1)[1] for line in rest] == [label for _, label in best_first]
    assert [float(line.split()[0]) for line in rest] == pytest.approx([s for s, _ in best_first], abs=1e-4)


def test_answer_without_flags_takes_the_documented_image_and_labels(ask, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_image_archive").mkdir()
    draw_shape("red", "line").save(tmp_path / "my_image_archive" / "10002456.jpg")
    monkeypatch.chdir(tmp_path)
    assert ask() == 0
    out = capsys.readouterr().out
    assert out.startswith("Prediction: ") and len(out.splitlines()) == 5
    assert all(label in out for label in eval.LABELS)


def test_model_finds_the_drawings_it_was_trained_on(model, tiny_run):
    labels, names = (
        [f"a {color} {shape}" for color in COLORS for shape in SHAPES],
        sorted(tiny_run.trained_on),
    )
    scores = scores_of(model, [tiny_run.images / name for name in names], labels)
    found = [labels[max(range(24), key=row.__getitem__)] for row in scores]
    right = [
        label == f"a {name.split('-')[0]} {name.split('-')[1][:-4]}" for label, name in zip(found, names)
    ]
    assert sum(right) / len(right) > 0.7


def test_eval_without_a_model_says_to_train_first(photo, tmp_path, capsys):
    assert eval.main([str(photo), "--run", str(tmp_path / "nothing")]) == 1
    captured = capsys.readouterr()
    assert "train first" in captured.err and str(tmp_path / "nothing") in captured.err and captured.out == ""


def test_several_images_and_a_folder_are_answered_in_order(ask, photo, tmp_path, capsys):
    for name in ("b.jpg", "a.jpg", "c.jpg"):
        shutil.copy(photo, tmp_path / name)
    assert ask(photo, tmp_path, "--labels", "one", "two") == 0
    lines = capsys.readouterr().out.splitlines()
    named = [lines[i - 1] for i, line in enumerate(lines) if line.startswith("Prediction: ")]
    assert named == [str(photo), *(str(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.jpg"))]


def test_one_bad_image_does_not_lose_the_other_answers(ask, photo, tmp_path, capsys, caplog):
    for name in ("b.jpg", "a.jpg"):
        shutil.copy(photo, tmp_path / name)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "aa.jpg").write_bytes(photo.read_bytes()[:400])
    flags = (tmp_path, tmp_path / "gone.jpg", "--labels", "one", "two", "--json", "-")
    for more, code in (((), 1), (("--skip-bad",), 0)):
        assert ask(*flags, *more) == code
        out, err = capsys.readouterr()
        entries = {os.path.basename(entry["image"]): entry for entry in json.loads(out)}
        assert list(entries) == ["a.jpg", "aa.jpg", "b.jpg", "gone.jpg"]
        assert [name for name, entry in entries.items() if "error" in entry] == ["aa.jpg", "gone.jpg"]
        assert entries["a.jpg"]["scores"] == entries["b.jpg"]["scores"]
        assert "aa.jpg: " in err and "gone.jpg: No such file" in err and "2 images" in err
    counts = "7 files seen = 3 images + 1 Thumbs.db + 1 desktop.ini + 1 hidden + 1 other files (1 .txt)"
    assert counts in caplog.text
    assert ask(tmp_path / "aa.jpg", "--skip-bad") == 1 and "aa.jpg" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["empty", "none.jpg"])
def test_empty_folder_and_missing_image_are_errors(ask, name, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert ask(tmp_path / name) == 1
    assert name in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_labels_file_gives_one_label_per_line(ask_json, photo, tmp_path, encoding):
    text = "a red rectangle  \n\n  un café noir\r\na line\n"
    (tmp_path / "labels.txt").write_text(text, encoding=encoding)
    (answer,) = ask_json(photo, "--labels-file", tmp_path / "labels.txt")
    assert list(answer["scores"]) == ["a red rectangle", "un café noir", "a line"]


def test_labels_file_without_labels_is_an_error(ask, photo, tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("\n \n")
    assert ask(photo, "--labels-file", tmp_path / "labels.txt") == 1
    assert "labels.txt" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "templates"), [("--templates", TEMPLATES), ("--no-templates", PLAIN)])
def test_templates_are_averaged_when_asked_for(ask_json, model, photo, flag, templates):
    (answer,) = ask_json(photo, "--labels", "red", "green", flag)
    expected = scores_of(model, [photo], ["red", "green"], templates)[0]
    assert list(answer["scores"].values()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("what", ["answer", "csv", "held out", "classes"])
def test_json_on_standard_output_is_nothing_but_json(ask_json, tiny_run, photo, classes, what):
    flags = dict(answer=[photo], csv=["--csv", tiny_run.csv], classes=["--classes", classes])
    flags["held out"] = [*flags["csv"], "--held-out"]
    assert ask_json(*flags[what])


def test_json_never_overwrites_an_image(ask, photo, tmp_path):
    shutil.copy(photo, tmp_path / "photo.jpg")
    with pytest.raises(SystemExit):
        ask("--json", tmp_path / "photo.jpg")
    assert (tmp_path / "photo.jpg").read_bytes() == photo.read_bytes()


def test_json_has_the_shape_of_clip_benchmark(ask, tiny_run, tmp_path):
    assert ask("--csv", tiny_run.csv, "--json", tmp_path / "result.json") == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result.keys() >= {"dataset", "model", "pretrained", "task", "language", "metrics"}
    assert (result["dataset"], result["task"], result["language"]) == ("captions", "zeroshot_retrieval", "en")
    assert (result["images"], result["captions"]) == (24, 48)
    for key in RECALLS:
        low, high = result["interval_95"][key]
        assert 0 <= low <= result["metrics"][key] <= high <= 1


def features_of(model, tiny_run, only):
    dataset = VisionTextDataset(tiny_run.csv, None, tiny_run.images, only=only)
    return encode_archive(dataset, model.vision, model.text, tiny_run.cache, quiet=True)


@pytest.mark.parametrize("held_out", [False, True])
def test_retrieval_equals_metrics_called_by_hand(ask_json, model, tiny_run, held_out):
    result = ask_json("--csv", tiny_run.csv, *["--held-out"] * held_out)
    names = set(tiny_run.names) - tiny_run.trained_on if held_out else set(tiny_run.names)
    features = features_of(model, tiny_run, names)
    expected = metrics.retrieval(model.predict(features.image), features.text, features.image_of)
    assert result["metrics"] == pytest.approx(expected)
    assert (result["images"], result["captions"]) == (len(names), 2 * len(names))


def test_note_says_how_many_images_were_trained_on(ask, tiny_run, capsys):
    assert ask("--csv", tiny_run.csv) == 0
    assert f"{len(tiny_run.trained_on)} of these 24 images were trained on" in capsys.readouterr().out
    assert ask("--csv", tiny_run.csv, "--held-out") == 0
    assert "trained on" not in capsys.readouterr().out


def test_held_out_with_nothing_left_is_an_error(ask, tiny_run, tmp_path, capsys):
    seen = write_csv(tmp_path / "seen.csv", [(name, "seen") for name in tiny_run.trained_on])
    assert ask("--csv", seen, "--held-out") == 1
    assert "seen.csv" in capsys.readouterr().err


def test_table_shows_chance_and_baselines_that_know_nothing(ask, ask_json, tiny_run, capsys):
    rows = ask_json("--csv", tiny_run.csv)["rows"]
    assert list(rows) == ["chance", "untrained predictor", "mean caption", "this model"]
    recall = {name: row["text_retrieval_recall@1"] for name, row in rows.items()}
    assert recall["untrained predictor"] < 0.25 < recall["this model"]
    assert rows["mean caption"]["image_retrieval_recall@1"] <= rows["chance"]["image_retrieval_recall@1"]
    assert ask("--csv", tiny_run.csv) == 0
    out = capsys.readouterr().out
    assert all(any(line.startswith(name) for line in out.splitlines()) for name in rows) and "95 %" in out


def test_hub_correction_adds_a_row_and_leaves_the_plain_ones(ask_json, model, tiny_run):
    plain = ask_json("--csv", tiny_run.csv, "--held-out")
    corrected = ask_json("--csv", tiny_run.csv, "--held-out", "--hub-correction")
    row = corrected["rows"].pop("this model, hub-corrected")
    assert (corrected["rows"], corrected["metrics"]) == (plain["rows"], plain["metrics"])
    bank = features_of(model, tiny_run, tiny_run.trained_on)
    mine = features_of(model, tiny_run, set(tiny_run.names) - tiny_run.trained_on)
    banks = dict(image_bank=model.predict(bank.image), text_bank=bank.text)
    assert row == pytest.approx(
        metrics.retrieval(model.predict(mine.image), mine.text, mine.image_of, **banks)
    )


def test_csv_with_a_missing_image_names_it(ask, tiny_run, tmp_path, capsys, caplog):
    more = tmp_path / "more.csv"
    more.write_text(tiny_run.csv.read_text() + "gone.jpg,not there\n")
    assert ask("--csv", more) == 1
    assert "gone.jpg" in capsys.readouterr().err
    assert ask("--csv", more, "--skip-bad") == 0
    assert "gone.jpg" in caplog.text and "24 images, 48 captions" in capsys.readouterr().out


@pytest.mark.parametrize(("flag", "templates"), [((), TEMPLATES), (("--no-templates",), PLAIN)])
def test_classes_give_the_accuracies_worked_out_by_hand(ask_json, model, classes, tiny_run, flag, templates):
    folders = sorted(os.listdir(classes))
    paths = [classes / folder / f"{shape}.jpg" for folder in folders for shape in sorted(SHAPES)]
    scores = scores_of(model, paths, [folder.replace("_", " ") for folder in folders], templates)
    right = [max(range(6), key=row.__getitem__) == i // len(SHAPES) for i, row in enumerate(scores)]
    result = ask_json("--classes", classes, *flag)
    assert result["task"] == "zeroshot_classification"
    assert result["metrics"]["acc1"] == pytest.approx(sum(right) / len(right))
    assert result["metrics"]["mean_per_class_recall"] == pytest.approx(sum(right) / len(right))
    assert 1 / 6 < sum(right) / len(right) <= result["metrics"]["acc5"]
    with Image.open(tiny_run.folder / "confusion.png") as image:
        assert image.format == "PNG" and min(image.size) > 200


def test_classnames_rename_the_folders(ask_json, classes, tmp_path):
    shutil.copytree(classes, tmp_path / "ids")
    for i, color in enumerate(COLORS):  # ids in another order than the names
        os.rename(tmp_path / "ids" / f"the_{color}", tmp_path / "ids" / f"n{90 - i}")
    names = "".join(f"n{90 - i}\tthe {color}\n" for i, color in enumerate(COLORS))
    (tmp_path / "names.txt").write_text(names)
    named = ask_json("--classes", tmp_path / "ids", "--classnames", tmp_path / "names.txt")
    assert named["metrics"] == pytest.approx(ask_json("--classes", classes)["metrics"])


@pytest.mark.parametrize("separator", [" ", ","])
def test_classnames_that_fit_no_folder_are_an_error(ask, classes, tmp_path, capsys, separator):
    folders = sorted(os.listdir(classes))
    lines = [f"{folder}{separator}a colour" for folder in folders[1:]] + [f"n99{separator}a colour"]
    (tmp_path / "names.txt").write_text("\n".join(lines))
    assert ask("--classes", classes, "--classnames", tmp_path / "names.txt") == 1
    err = capsys.readouterr().err
    assert "names.txt" in err and folders[0] in err and f"line {len(folders)}: n99" in err


@pytest.mark.parametrize("flag", ["--labels-file", "--classnames"])
def test_names_in_utf_16_are_refused_with_the_command(ask, classes, tmp_path, capsys, flag):
    (tmp_path / "names.txt").write_text("a café\n", encoding="utf-16")
    more = ["--classes", classes] if flag == "--classnames" else []
    assert ask(flag, tmp_path / "names.txt", *more) == 1
    assert "names.txt, line 1: " in (err := capsys.readouterr().err) and "iconv -f utf-16" in err


def test_captions_in_two_columns_or_in_lists_score_like_rows(ask_json, tiny_run, tmp_path):
    captions = {}
    for row in read_rows(tiny_run.csv):
        captions.setdefault(row.image_name, []).append(row.text)
    wide = write_csv(tmp_path / "wide.csv", [(n, *c) for n, c in captions.items()], ("image_name", "a", "b"))
    lists = write_csv(tmp_path / "lists.csv", [(name, json.dumps(c)) for name, c in captions.items()])
    expected = ask_json("--csv", tiny_run.csv)
    for flags in ((wide, "--caption-column", "a", "b"), (lists, "--caption-lists")):
        found = ask_json("--csv", *flags)
        assert (found["metrics"], found["captions"]) == (expected["metrics"], 48)


def test_folders_and_files_that_are_no_class_change_nothing_and_are_named(
    ask_json, classes, tmp_path, caplog
):
    root = tmp_path / "classes"
    shutil.copytree(classes, root)
    red = root / "the_red"
    for folder in (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git", "birds", "the_red/deeper"):
        (root / folder).mkdir()
    for path in (
        ".ipynb_checkpoints/line.jpg",
        "__MACOSX/._line.jpg",
        "@eaDir/line.jpg",
        "the_red/._line.jpg",
    ):
        shutil.copy(red / "line.jpg", root / path)
    for path in (".DS_Store", "the_red/.DS_Store", "the_red/Thumbs.db", "the_blue/desktop.ini", "LICENSE"):
        (root / path).write_bytes(b"no image")
    shutil.move(red / "ellipse.jpg", red / "deeper" / "ellipse.jpg")
    expected = ask_json("--classes", classes)["metrics"]
    caplog.clear()
    assert ask_json("--classes", root)["metrics"] == pytest.approx(expected)
    left_out = "1 @eaDir + 1 Thumbs.db + 1 __MACOSX + 1 desktop.ini + 4 hidden + 1 other files"
    assert f"33 files seen = 24 images + {left_out}" in caplog.text
    assert "no class, since no image in it is read: .git, .ipynb_checkpoints, @eaDir, __MACOSX, birds" in (
        caplog.text
    )


def test_damaged_image_of_a_class_is_named_without_a_line_number(ask, classes, tmp_path, capsys, caplog):
    root = tmp_path / "classes"
    shutil.copytree(classes, root)
    (root / "the_red" / "half.jpg").write_bytes((root / "the_red" / "line.jpg").read_bytes()[:300])
    (root / "the_red" / "page.jpg").write_bytes(b"<html>")
    assert ask("--classes", root) == 1
    err = capsys.readouterr().err
    assert "2 of 26 images" in err and "--skip-bad" in err and "line 0" not in err and "train" not in err
    assert "the_red/half.jpg: " in err and "the_red/page.jpg: " in err
    assert ask("--classes", root, "--skip-bad") == 0
    assert "half.jpg" in caplog.text and "24 images, 6 classes" in capsys.readouterr().out


def test_linked_classes_are_read_with_follow_links(ask, ask_json, classes, tmp_path, capsys):
    (tmp_path / "blobs").mkdir()
    for n, path in enumerate(sorted(classes.rglob("*.jpg"))):
        shutil.copy(path, tmp_path / "blobs" / str(n))
        link = tmp_path / "classes" / path.relative_to(classes)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"../../blobs/{n}")
    assert ask("--classes", tmp_path / "classes") == 1 and "--follow-links" in capsys.readouterr().err
    linked = ask_json("--classes", tmp_path / "classes", "--follow-links")
    assert linked["metrics"] == pytest.approx(ask_json("--classes", classes)["metrics"])


@pytest.mark.parametrize("folders", [[], ["one"], ["one", "two"]])
def test_classes_without_two_folders_of_images_are_an_error(ask, tmp_path, capsys, folders):
    for folder in folders:
        (tmp_path / "classes" / folder).mkdir(parents=True)
    assert ask("--classes", tmp_path / "classes") == 1
    err = capsys.readouterr().err
    assert str(tmp_path / "classes") in err and "image" in err


def test_answer_imports_no_library_of_towers(photo, tiny_run):
    """Each takes longer to import than the answer takes."""
    code = (
        f"import sys, eval; eval.main(sys.argv[1:]); print([m for m in {HEAVY} if m in sys.modules], end='')"
    )
    command = [sys.executable, "-c", code, str(photo), "--run", str(tiny_run.folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Prediction: ") and done.stdout.endswith("[]")


def test_json_on_a_full_disk_names_the_file(ask, photo, tmp_path, capsys, monkeypatch):
    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert ask(photo, "--json", tmp_path / "full.json") == 1
    err = capsys.readouterr().err
    assert f"{tmp_path}/full.json" in err and "No space left" in err


@pytest.mark.parametrize("flag", ["--labels", "--ask"])
def test_image_behind_a_list_of_texts_is_not_taken_for_one(ask, photo, capsys, flag):
    with pytest.raises(SystemExit) as caught:
        ask(flag, "a dog", photo)
    assert caught.value.code == 2 and str(photo) in capsys.readouterr().err


def test_labels_of_the_demo_image_are_named_as_such(ask, photo, capsys):
    assert ask(photo) == 0
    assert "--labels" in capsys.readouterr().out
    assert ask(photo, "--labels", "a dog", "a cat") == 0
    assert "--labels" not in capsys.readouterr().out


def test_few_images_get_a_note_and_no_interval(ask, tiny_run, capsys):
    assert ask("--csv", tiny_run.csv, "--held-out") == 0
    out = capsys.readouterr().out
    assert "too few" in out and "95 %" not in out
    assert ask("--csv", tiny_run.csv) == 0
    assert "95 %" in capsys.readouterr().out
