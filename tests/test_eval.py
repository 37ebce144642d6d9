"""eval.py in this process, on a run trained for a moment on 24 drawings with two captions each."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image, ImageDraw

import eval
import train
from models import metrics
from models import runs as checkpoint
from models.dataset import VisionTextDataset
from models.features import encode_archive
from models.vljepa import VLJEPA
from models.zeroshot import PLAIN, TEMPLATES

COLOURS, SHAPES = (
    ("red", "green", "blue", "yellow", "black", "pink"),
    ("ellipse", "rectangle", "triangle", "line"),
)
HEAVY = ["open_clip", "timm", "sentence_transformers", "transformers", "torchvision", "pandas", "matplotlib"]
RECALLS = {f"{way}_recall@{k}" for way in ("image_retrieval", "text_retrieval") for k in (1, 5, 10)}


def draw(path, colour, shape):
    image = Image.new("RGB", (48, 48), "white")
    pen = ImageDraw.Draw(image)
    if shape == "triangle":
        pen.polygon([(24, 6), (42, 42), (6, 42)], fill=colour)
    else:
        getattr(pen, shape)((8, 8, 40, 40), fill=colour, **dict(width=6) if shape == "line" else {})
    image.save(path)


class World:
    """Images, captions, cache and a trained run, a quarter of the images held out."""

    def __init__(self, root):
        self.images, self.csv, self.cache, self.run, rows = (
            root / "images",
            root / "captions.csv",
            root / "cache.sqlite",
            root / "run",
            [],
        )
        self.images.mkdir()
        for colour in COLOURS:
            for shape in SHAPES:
                name = f"{colour}-{shape}.jpg"
                draw(self.images / name, colour, shape)
                rows += [
                    (name, f"a {colour} {shape}"),
                    (name, f"the drawing shows one {shape} that is {colour}"),
                ]
        with open(self.csv, "w", newline="") as file:
            csv.writer(file).writerows([("image_name", "comment"), *rows])
        flags = [
            "--csv",
            self.csv,
            "--images",
            self.images,
            "--cache",
            self.cache,
            "--run",
            self.run,
            "--vision",
            "efficientnet-lite0",
            "--device",
            "cpu",
            "--hidden",
            "16",
            "--batch-size",
            "8",
            "--epochs",
            "12",
            "--lr",
            "3e-3",
            "--loss",
            "info_nce",
            "--standardise",
            "--val-fraction",
            "0.25",
            "--quiet",
        ]
        assert train.main(list(map(str, flags))) == 0
        self.trained_on = set(checkpoint.load(self.run / "best.pt")["trained_on"])
        self.model = VLJEPA.load(self.run)

    def eval(self, *flags):
        return eval.main(
            [
                *map(str, flags),
                "--run",
                str(self.run),
                "--cache",
                str(self.cache),
                "--device",
                "cpu",
                "--quiet",
            ]
        )

    def features(self, only=None):
        dataset = VisionTextDataset(self.csv, self.model.vision.preprocess, self.images, only=only)
        return encode_archive(dataset, self.model.vision, self.model.text, self.cache, quiet=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("eval"))


@pytest.fixture
def photo(world):
    return world.images / "red-rectangle.jpg"


@pytest.fixture
def classes(world, tmp_path):
    """A folder with a folder of images for each colour."""
    for colour in COLOURS:
        (tmp_path / "colours" / f"the_{colour}").mkdir(parents=True)
        for shape in SHAPES:
            shutil.copy(
                world.images / f"{colour}-{shape}.jpg",
                tmp_path / "colours" / f"the_{colour}" / f"{shape}.jpg",
            )
    return tmp_path / "colours"


def ask(world, images, labels, templates=PLAIN):
    """Scores [image][label], worked out with the two verbs alone."""
    classes = []
    for label in labels:
        mean = world.model.encode_text([template.format(label) for template in templates]).mean(0)
        classes.append(mean / mean.norm())
    return [[(row @ mean).item() for mean in classes] for row in world.model.encode_image(images)]


# One image


def test_answer_is_two_lines_as_documented(world, photo, capsys):
    """Catches a changed wording: other programs read 'Prediction: ' and 'Scores: '."""
    labels = ["a red rectangle", "a green ellipse", "a black line"]
    assert world.eval(photo, "--labels", *labels) == 0
    first, second, *rest = capsys.readouterr().out.splitlines()
    (scores,) = ask(world, [photo], labels)
    assert first == f"Prediction: {labels[max(range(3), key=scores.__getitem__)]}"
    assert second.startswith("Scores: [") and json.loads(second.removeprefix("Scores: ")) == pytest.approx(
        scores, abs=1e-4
    )
    best_first = sorted(zip(scores, labels), reverse=True)
    assert [line.split(maxsplit=1)[1] for line in rest] == [label for _, label in best_first]
    assert [float(line.split()[0]) for line in rest] == pytest.approx(
        [score for score, _ in best_first], abs=1e-4
    )


def test_answer_without_flags_takes_the_documented_image_and_labels(world, tmp_path, monkeypatch, capsys):
    """Catches a default image or default labels that moved: `python eval.py` is the README's second command."""
    (tmp_path / "my_image_archive").mkdir()
    draw(tmp_path / "my_image_archive" / "10002456.jpg", "red", "line")
    monkeypatch.chdir(tmp_path)
    assert world.eval() == 0
    out = capsys.readouterr().out
    assert out.startswith("Prediction: ") and len(out.splitlines()) == 5
    for label in ("persons hanging bridge and cable", "person stirring pan", "person washing dishes"):
        assert label in out


def test_model_finds_the_drawings_it_saw(world):
    """Catches an evaluation whose every number is right and whose answers are worthless (images or labels mixed up)."""
    labels = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
    names = sorted(world.trained_on)
    scores = (
        world.model.encode_image([world.images / name for name in names]) @ world.model.encode_text(labels).T
    )
    right = [
        labels[i] == f"a {name.split('-')[0]} {name.split('-')[1][:-4]}"
        for i, name in zip(scores.argmax(1).tolist(), names)
    ]
    assert sum(right) / len(right) > 0.7


def test_eval_without_a_checkpoint_says_to_train_first(world, photo, tmp_path, capsys):
    """Catches a traceback, or worse, answers of an untrained predictor."""
    assert eval.main([str(photo), "--run", str(tmp_path / "nothing")]) == 1
    captured = capsys.readouterr()
    assert "train first" in captured.err and str(tmp_path / "nothing") in captured.err and captured.out == ""


def test_several_images_and_a_folder_are_answered_in_order(world, photo, tmp_path, capsys):
    """Catches an answer that does not say which image it is about, and a folder read in the disk's order."""
    for name in ("b.jpg", "a.jpg", "c.jpg"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        shutil.copy(photo, tmp_path / "folder" / name)
    assert world.eval(photo, tmp_path / "folder", "--labels", "one", "two") == 0
    lines = capsys.readouterr().out.splitlines()
    at = [i + 1 for i, line in enumerate(lines) if line.startswith("Prediction: ")]
    assert [lines[i - 2] for i in at] == [
        str(photo),
        *(str(tmp_path / "folder" / name) for name in ("a.jpg", "b.jpg", "c.jpg")),
    ]


def test_empty_folder_and_missing_image_are_errors(world, tmp_path, capsys):
    """Catches an exit code of success after no answer."""
    (tmp_path / "empty").mkdir()
    assert world.eval(tmp_path / "empty") == 1
    assert "empty" in capsys.readouterr().err
    assert world.eval(tmp_path / "none.jpg") == 1
    assert "none.jpg" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_labels_file_gives_one_label_a_line(world, photo, tmp_path, capsys, encoding):
    """Catches empty lines, spaces or a byte order mark (Notepad writes one) inside a label."""
    (tmp_path / "labels.txt").write_text("a red rectangle  \n\n  un café noir\r\na line\n", encoding=encoding)
    assert world.eval(photo, "--labels-file", tmp_path / "labels.txt", "--json") == 0
    scores = json.loads(capsys.readouterr().out)[0]["scores"]
    assert list(scores) == ["a red rectangle", "un café noir", "a line"]


def test_labels_file_without_labels_is_an_error(world, photo, tmp_path, capsys):
    """Catches max() of nothing."""
    (tmp_path / "labels.txt").write_text("\n \n")
    assert world.eval(photo, "--labels-file", tmp_path / "labels.txt") == 1
    assert "labels.txt" in capsys.readouterr().err


def test_templates_are_averaged_when_asked_for(world, photo, capsys):
    """Catches a flag that is read and not used."""
    labels = ["red", "green"]
    found = []
    for flag in ("--templates", "--no-templates"):
        assert world.eval(photo, "--labels", *labels, flag, "--json") == 0
        found.append(list(json.loads(capsys.readouterr().out)[0]["scores"].values()))
    assert found[0] == pytest.approx(ask(world, [photo], labels, TEMPLATES)[0], abs=1e-5)
    assert found[1] == pytest.approx(ask(world, [photo], labels)[0], abs=1e-5)


# JSON


@pytest.mark.parametrize("what", ["answer", "csv", "held out", "classes"])
def test_json_on_standard_output_is_nothing_but_json(world, photo, classes, capsys, what):
    """Catches a table or a note printed among the JSON: `python eval.py ... --json | jq` would fail."""
    flags = dict(answer=[photo], csv=["--csv", world.csv], classes=["--classes", classes])
    flags["held out"] = [*flags["csv"], "--held-out"]
    assert world.eval(*flags[what], "--json") == 0
    json.loads(capsys.readouterr().out)


def test_json_never_overwrites_an_image(world, tmp_path):
    """Catches `eval.py --json photo.jpg`, where the flag takes the photograph for its file and writes over it."""
    shutil.copy(world.images / "red-line.jpg", tmp_path / "photo.jpg")
    before = (tmp_path / "photo.jpg").read_bytes()
    try:
        world.eval("--json", tmp_path / "photo.jpg")
    except SystemExit:  # argparse's own way to refuse
        pass
    assert (tmp_path / "photo.jpg").read_bytes() == before


def test_json_file_has_the_shape_of_clip_benchmark(world, tmp_path):
    """Catches keys that CLIP_benchmark's readers do not know, and recalls in percent."""
    assert world.eval("--csv", world.csv, "--json", tmp_path / "result.json") == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result.keys() >= {"dataset", "model", "pretrained", "task", "language", "metrics"}
    assert (result["dataset"], result["task"], result["language"]) == ("captions", "zeroshot_retrieval", "en")
    assert RECALLS <= result["metrics"].keys() and all(0 <= result["metrics"][key] <= 1 for key in RECALLS)
    assert any(result["metrics"][key] > 0 for key in RECALLS)
    assert (result["images"], result["captions"]) == (24, 48)
    for key in RECALLS:
        low, high = result["interval_95"][key]
        assert low <= result["metrics"][key] <= high


# Retrieval


def retrieve(world, capsys, *flags):
    """(result, standard output) of a retrieval."""
    path = world.run.parent / "result.json"
    assert world.eval("--csv", world.csv, "--json", path, *flags) == 0
    return json.loads(path.read_text()), capsys.readouterr().out


@pytest.mark.parametrize("held_out", [False, True])
def test_retrieval_equals_metrics_called_by_hand(world, capsys, held_out):
    """Catches a table over other images or captions than it says."""
    names = {path.name for path in world.images.iterdir()}
    result, _ = retrieve(world, capsys, *["--held-out"] * held_out)
    features = world.features(only=names - world.trained_on if held_out else names)
    expected = metrics.retrieval(world.model.predict(features.image), features.text, features.image_of)
    assert result["metrics"] == pytest.approx(expected)
    assert result["images"] == len(features.image) and result["captions"] == len(features.text)


def test_held_out_leaves_out_the_images_that_were_trained_on(world, capsys):
    """Catches a flattering number: without the flag a note has to say so, with it none of them may be counted."""
    everything, out = retrieve(world, capsys)
    assert f"{len(world.trained_on)} of these 24 images were trained on" in out
    held_out, out = retrieve(world, capsys, "--held-out")
    assert held_out["images"] == 24 - len(world.trained_on) > 1 and "were trained on" not in out
    assert everything["images"] == 24


def test_held_out_with_nothing_left_is_an_error(world, tmp_path, capsys):
    """Catches recalls of an empty set."""
    with open(tmp_path / "seen.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [("image_name", "comment"), *((name, "seen") for name in world.trained_on)]
        )
    assert world.eval("--csv", tmp_path / "seen.csv", "--held-out") == 1
    assert "seen.csv" in capsys.readouterr().err


def test_retrieval_table_shows_chance_and_baselines_that_know_nothing(world, capsys):
    """Catches a baseline row that leaks: a constant prediction must not beat chance, nor an untrained predictor a trained one."""
    result, out = retrieve(world, capsys)
    rows = result["rows"]
    assert (
        list(rows)[:3] == ["chance", "untrained predictor", "mean caption"]
        and rows["this model"] == result["metrics"]
    )
    assert rows["mean caption"]["image_retrieval_recall@1"] <= rows["chance"]["image_retrieval_recall@1"]
    assert (
        rows["untrained predictor"]["text_retrieval_recall@1"]
        < 0.25
        < rows["this model"]["text_retrieval_recall@1"]
    )
    assert all(any(line.startswith(name) for line in out.splitlines()) for name in rows) and "95 %" in out


def test_hub_correction_adds_a_row_and_leaves_the_plain_one(world, capsys):
    """Catches a correction that slips into the plain numbers, or banks taken from the images that are evaluated."""
    plain, _ = retrieve(world, capsys, "--held-out")
    corrected, out = retrieve(world, capsys, "--held-out", "--hub-correction")
    added = corrected["rows"].keys() - plain["rows"].keys()
    assert len(added) == 1 and "hub" in out
    assert {name: row for name, row in corrected["rows"].items() if name not in added} == plain["rows"]
    assert corrected["metrics"] == plain["metrics"]
    names = {path.name for path in world.images.iterdir()}
    mine, bank = world.features(only=names - world.trained_on), world.features(only=world.trained_on)
    expected = metrics.retrieval(
        world.model.predict(mine.image),
        mine.text,
        mine.image_of,
        image_bank=world.model.predict(bank.image),
        text_bank=bank.text,
    )
    assert corrected["rows"][added.pop()] == pytest.approx(expected)


def test_csv_with_a_missing_image_names_it(world, tmp_path, capsys):
    """Catches a table over fewer images than the file names; --skip-bad says that it leaves one out."""
    shutil.copy(world.csv, tmp_path / "more.csv")
    with open(tmp_path / "more.csv", "a") as file:
        file.write("gone.jpg,not there\r\n")
    assert world.eval("--csv", tmp_path / "more.csv") == 1
    assert "gone.jpg" in capsys.readouterr().err
    assert world.eval("--csv", tmp_path / "more.csv", "--skip-bad") == 0
    out = capsys.readouterr().out
    assert "gone.jpg" in out and "24 images, 48 captions" in out


# Classification


@pytest.mark.parametrize("flag, templates", [(None, TEMPLATES), ("--no-templates", PLAIN)])
def test_classes_give_the_accuracies_worked_out_by_hand(world, classes, tmp_path, capsys, flag, templates):
    """Catches folders and labels in different order, underscores left in names, templates that are not used."""
    assert world.eval("--classes", classes, *[flag] * bool(flag), "--json", tmp_path / "result.json") == 0
    result = json.loads((tmp_path / "result.json").read_text())
    folders = sorted(os.listdir(classes))
    labels = [folder.replace("_", " ") for folder in folders]
    scores = ask(
        world,
        [classes / folder / f"{shape}.jpg" for folder in folders for shape in SHAPES],
        labels,
        templates,
    )
    accuracy = sum(
        max(range(6), key=row.__getitem__) == i // len(SHAPES) for i, row in enumerate(scores)
    ) / len(scores)
    assert result["task"] == "zeroshot_classification" and result["metrics"].keys() >= {
        "acc1",
        "acc5",
        "mean_per_class_recall",
    }
    assert result["metrics"]["acc1"] == pytest.approx(accuracy) and result["metrics"][
        "mean_per_class_recall"
    ] == pytest.approx(accuracy)
    assert accuracy > 1 / 6 and result["metrics"]["acc5"] >= accuracy
    assert f"{100 * accuracy:.1f} %" in capsys.readouterr().out


def test_classes_write_a_confusion_matrix(world, classes):
    """Catches a picture that is announced and not there."""
    (world.run / "confusion.png").unlink(missing_ok=True)
    assert world.eval("--classes", classes) == 0
    with Image.open(world.run / "confusion.png") as image:
        assert image.format == "PNG" and min(image.size) > 200


def test_classnames_rename_the_folders(world, classes, tmp_path, capsys):
    """Catches names given to the wrong folders: WordNet ids in place of words are the usual case."""
    plain, named = tmp_path / "a.json", tmp_path / "b.json"
    shutil.copytree(classes, tmp_path / "ids")
    for i, colour in enumerate(COLOURS):  # ids in another order than the names
        os.rename(tmp_path / "ids" / f"the_{colour}", tmp_path / "ids" / f"n{90 - i}")
    (tmp_path / "names.txt").write_text(
        "".join(f"n{90 - i}\tthe {colour}\n" for i, colour in enumerate(COLOURS))
    )
    assert world.eval("--classes", classes, "--json", plain) == 0
    assert (
        world.eval("--classes", tmp_path / "ids", "--classnames", tmp_path / "names.txt", "--json", named)
        == 0
    )
    assert json.loads(named.read_text())["metrics"] == pytest.approx(json.loads(plain.read_text())["metrics"])


@pytest.mark.parametrize("folders", [[], ["one"], ["one", "two"]])
def test_classes_without_two_folders_of_images_are_an_error(world, tmp_path, capsys, folders):
    """Catches an accuracy of 100 % over one class, or a traceback over none; the message has to say what is asked for."""
    for folder in folders:
        (tmp_path / "classes" / folder).mkdir(parents=True)
    assert world.eval("--classes", tmp_path / "classes") == 1
    err = capsys.readouterr().err
    assert str(tmp_path / "classes") in err and "image" in err


def test_eval_takes_towers_from_the_checkpoint(world, photo, capsys):
    """Catches an eval that asks for --vision again and answers with another tower."""
    assert not hasattr(eval.parse([]), "vision") and world.model.vision.name == "efficientnet-lite0"
    assert world.eval(photo, "--labels", "a", "b", "--json") == 0
    (expected,) = ask(world, [photo], ["a", "b"])
    assert list(json.loads(capsys.readouterr().out)[0]["scores"].values()) == pytest.approx(
        expected, abs=1e-5
    )


def test_answer_imports_no_library_of_towers(world, photo):
    """Catches the seconds that open_clip, timm, sentence-transformers and torchvision take to import, each longer than the answer."""
    code = (
        "import sys, eval\nassert eval.main(sys.argv[1:]) == 0\n"
        f"print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(photo), "--run", str(world.run)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("Prediction: ") and done.stderr.strip() == "[]"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_json_on_a_full_disk_names_the_file(world, photo, tmp_path, capsys):
    """Catches 'No space left on device' that leaves one to guess where."""
    (tmp_path / "full.json").symlink_to("/dev/full")
    assert world.eval(photo, "--json", tmp_path / "full.json") == 1
    assert f"No space left on device, writing {tmp_path}/full.json" in capsys.readouterr().err
