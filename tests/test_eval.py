"""eval.py in this process, on a run trained for a moment on 24 drawn images with two captions each."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

import eval
from models import metrics
from models.dataset import VisionTextDataset
from models.features import encode_archive
from models.vljepa import VLJEPA
from models.zeroshot import PLAIN, TEMPLATES
from tests.conftest import COLORS, ROOT, SHAPES, draw_shape, write_csv

HEAVY = set("open_clip timm sentence_transformers transformers torchvision pandas matplotlib".split())
RECALLS = {f"{way}_recall@{k}" for way in ("image_retrieval", "text_retrieval") for k in (1, 5, 10)}


class World:
    """The tiny run, its model, and eval.py on it."""

    def __init__(self, tiny, folder):
        self.csv, self.images, self.names, self.trained_on = (
            tiny.csv,
            tiny.images,
            tiny.names,
            tiny.trained_on,
        )
        self.cache = tiny.cache
        self.run = shutil.copytree(tiny.folder, folder / "run")  # --classes writes a figure there
        self.result = folder / "result.json"
        self.model = VLJEPA.load(self.run)

    def eval(self, *flags, run=None):
        where = ["--run", run or self.run, "--cache", self.cache, "--device", "cpu", "--quiet"]
        return eval.main(list(map(str, [*flags, *where])))

    def json(self, *flags):
        """What --json writes."""
        assert self.eval(*flags, "--json", self.result) == 0
        return json.loads(self.result.read_text())

    def scores(self, image, *flags):
        return list(self.json(image, *flags)[0]["scores"].values())

    def features(self, names):
        dataset = VisionTextDataset(self.csv, None, self.images, only=set(names))
        return encode_archive(dataset, self.model.vision, self.model.text, self.cache, quiet=True)

    def ask(self, images, labels, templates=PLAIN):
        """Scores [image][label], worked out with the two verbs alone."""
        classes = []
        for label in labels:
            mean = self.model.encode_text([template.format(label) for template in templates]).mean(0)
            classes.append(mean / mean.norm())
        return (self.model.encode_image(images) @ torch.stack(classes).T).tolist()

    @property
    def held_out(self):
        return set(self.names) - self.trained_on


@pytest.fixture(scope="module")
def world(tiny_run, tmp_path_factory):
    return World(tiny_run, tmp_path_factory.mktemp("eval"))


@pytest.fixture
def photo(world):
    return world.images / "red-rectangle.jpg"


@pytest.fixture
def shared(world, tmp_path):
    """The run as others get it."""
    return shutil.copytree(world.run, tmp_path / "shared", ignore=shutil.ignore_patterns("private"))


@pytest.fixture
def classes(world, tmp_path):
    """A folder with a folder of images for each color."""
    for color in COLORS:
        (tmp_path / "colors" / f"the_{color}").mkdir(parents=True)
        for shape in SHAPES:
            copy = tmp_path / "colors" / f"the_{color}" / f"{shape}.jpg"
            shutil.copy(world.images / f"{color}-{shape}.jpg", copy)
    return tmp_path / "colors"


# Labels


def test_answer_is_two_lines_as_documented_then_the_labels_best_first(world, photo, capsys):
    """Other programs read 'Prediction: ' and 'Scores: '."""
    labels = ["a red rectangle", "a green ellipse", "a black line"]
    assert world.eval(photo, "--labels", *labels) == 0
    first, second, *rest = capsys.readouterr().out.splitlines()
    (scores,) = world.ask([photo], labels)
    best_first = sorted(zip(scores, labels), reverse=True)
    assert first == f"Prediction: {best_first[0][1]}"
    assert json.loads(second.removeprefix("Scores: ")) == pytest.approx(scores, abs=1e-4)
    assert [line.split(maxsplit=1)[1] for line in rest] == [label for _, label in best_first]
    found = [float(line.split()[0]) for line in rest]
    assert found == pytest.approx([score for score, _ in best_first], abs=1e-4)


def test_answer_without_flags_takes_the_documented_image_and_labels(world, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_image_archive").mkdir()
    draw_shape("red", "line").save(tmp_path / "my_image_archive" / "10002456.jpg")
    monkeypatch.chdir(tmp_path)
    assert world.eval() == 0
    out = capsys.readouterr().out
    assert out.startswith("Prediction: ") and len(out.splitlines()) == 5
    for label in ("persons hanging bridge and cable", "person stirring pan", "person washing dishes"):
        assert label in out


def test_model_names_the_drawings_it_saw(world):
    names = sorted(world.trained_on)
    labels = [f"a {color} {shape}" for color in COLORS for shape in SHAPES]
    scores = torch.tensor(world.ask([world.images / name for name in names], labels))
    found = [labels[i] for i in scores.argmax(1)]
    right = [label == f"a {name[:-4].replace('-', ' ')}" for label, name in zip(found, names)]
    assert sum(right) / len(right) > 0.7


def test_eval_without_a_run_says_to_train_first(photo, tmp_path, capsys):
    assert eval.main([str(photo), "--run", str(tmp_path / "nothing")]) == 1
    captured = capsys.readouterr()
    assert "train first" in captured.err and str(tmp_path / "nothing") in captured.err and captured.out == ""


def test_several_images_and_a_folder_are_answered_in_order(world, photo, tmp_path, capsys):
    for name in ("b.jpg", "a.jpg", "c.jpg"):
        shutil.copy(photo, tmp_path / name)
    assert world.eval(photo, tmp_path, "--labels", "one", "two") == 0
    lines = capsys.readouterr().out.splitlines()
    named = [before for before, line in zip(lines, lines[1:]) if line.startswith("Prediction: ")]
    assert named == [
        str(path) for path in (photo, *(tmp_path / name for name in ("a.jpg", "b.jpg", "c.jpg")))
    ]


@pytest.mark.parametrize("name", ["empty", "none.jpg"])
def test_empty_folder_and_missing_image_are_errors(world, tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    assert world.eval(tmp_path / name) == 1
    assert name in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_labels_file_gives_one_label_per_line(world, photo, tmp_path, encoding):
    (tmp_path / "labels.txt").write_text("a red rectangle  \n\n  un café noir\r\na line\n", encoding=encoding)
    (answer,) = world.json(photo, "--labels-file", tmp_path / "labels.txt")
    assert list(answer["scores"]) == ["a red rectangle", "un café noir", "a line"]


def test_labels_file_without_labels_is_an_error(world, photo, tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("\n \n")
    assert world.eval(photo, "--labels-file", tmp_path / "labels.txt") == 1
    assert "labels.txt" in capsys.readouterr().err


@pytest.mark.parametrize("flag, templates", [("--templates", TEMPLATES), ("--no-templates", PLAIN)])
def test_templates_are_averaged_when_asked_for(world, photo, flag, templates):
    (expected,) = world.ask([photo], ["red", "green"], templates)
    assert world.scores(photo, "--labels", "red", "green", flag) == pytest.approx(expected, abs=1e-5)


# JSON


@pytest.mark.parametrize(
    "flags", [["image"], ["--csv"], ["--csv", "--held-out"], ["--classes"]], ids=" ".join
)
def test_json_on_standard_output_is_nothing_but_json(world, photo, classes, capsys, flags):
    what = {"image": [photo], "--csv": ["--csv", world.csv], "--classes": ["--classes", classes]}[flags[0]]
    assert world.eval(*what, *flags[1:], "--json") == 0
    json.loads(capsys.readouterr().out)


def test_json_never_overwrites_an_image(world, photo, capsys):
    before = photo.read_bytes()
    with pytest.raises(SystemExit):
        world.eval("--json", photo)
    assert photo.read_bytes() == before and str(photo) in capsys.readouterr().err


def test_json_has_the_shape_of_clip_benchmark(world):
    result = world.json("--csv", world.csv)
    assert result.keys() >= {"dataset", "model", "pretrained", "task", "language", "metrics"}
    assert (result["dataset"], result["task"], result["language"]) == ("captions", "zeroshot_retrieval", "en")
    assert (result["images"], result["captions"]) == (24, 48)
    assert RECALLS <= result["metrics"].keys() and any(result["metrics"][key] > 0 for key in RECALLS)
    for key in RECALLS:
        low, high = result["interval_95"][key]
        assert 0 <= low <= result["metrics"][key] <= high <= 1


def test_json_that_cannot_be_written_is_named(world, photo, capsys):
    assert world.eval(photo, "--json", photo / "result.json") == 1  # below a file
    assert str(photo) in capsys.readouterr().err


# Retrieval


@pytest.mark.parametrize("flags", [[], ["--held-out"]], ids=["all", "held out"])
def test_retrieval_equals_metrics_called_by_hand(world, flags, capsys):
    result = world.json("--csv", world.csv, *flags)
    features = world.features(world.held_out if flags else world.names)
    expected = metrics.retrieval(world.model.predict(features.image), features.text, features.image_of)
    assert result["metrics"] == pytest.approx(expected)
    assert (result["images"], result["captions"]) == (len(features.image), len(features.text))
    note = f"{len(world.trained_on)} of these 24 images were trained on"
    assert (note in capsys.readouterr().out) == (not flags)


def test_held_out_with_nothing_left_is_an_error(world, tmp_path, capsys):
    seen = write_csv(tmp_path / "seen.csv", [(name, "seen") for name in world.trained_on])
    assert world.eval("--csv", seen, "--held-out") == 1
    assert "seen.csv" in capsys.readouterr().err


def test_retrieval_table_shows_chance_and_baselines_that_know_nothing(world, capsys):
    result = world.json("--csv", world.csv)
    rows, out = result["rows"], capsys.readouterr().out
    assert list(rows)[:3] == ["chance", "untrained predictor", "mean caption"]
    assert rows["this model"] == result["metrics"] and "95 %" in out
    assert rows["mean caption"]["image_retrieval_recall@1"] <= rows["chance"]["image_retrieval_recall@1"]
    untrained, trained = (
        rows[name]["text_retrieval_recall@1"] for name in ("untrained predictor", "this model")
    )
    assert untrained < 0.25 < trained
    assert all(any(line.startswith(name) for line in out.splitlines()) for name in rows)


def test_hub_correction_adds_a_row_and_leaves_the_others(world):
    plain = world.json("--csv", world.csv, "--held-out")
    corrected = world.json("--csv", world.csv, "--held-out", "--hub-correction")
    row = corrected["rows"].pop("this model, hub-corrected")
    assert corrected == plain
    mine, bank = world.features(world.held_out), world.features(world.trained_on)
    banks = dict(image_bank=world.model.predict(bank.image), text_bank=bank.text)
    predicted = world.model.predict(mine.image)
    assert row == pytest.approx(metrics.retrieval(predicted, mine.text, mine.image_of, **banks))


@pytest.mark.parametrize("flag", ["--held-out", "--hub-correction"])
def test_shared_model_refuses_what_needs_its_training_images(world, shared, capsys, flag):
    csv = ["--csv", world.csv, "--images", world.images]
    assert world.eval(*csv, flag, run=shared) == 1
    assert "does not name the images it was trained on" in capsys.readouterr().err


def test_shared_model_asks_for_the_folder_of_images(world, shared, capsys):
    assert world.eval("--csv", world.csv, run=shared) == 1
    assert "--images" in capsys.readouterr().err
    assert world.eval("--csv", world.csv, "--images", world.images, run=shared) == 0
    assert "does not name its training images" in capsys.readouterr().out


def test_bad_images_are_named_and_skipped_when_asked(world, tmp_path, capsys, caplog):
    folder = shutil.copytree(world.images, tmp_path / "images")
    (folder / "cut.jpg").write_bytes((folder / "red-line.jpg").read_bytes()[:-200])
    text = world.csv.read_text() + "cut.jpg,cut short\ngone.jpg,not there\n"
    (tmp_path / "more.csv").write_text(text)
    flags = ["--csv", tmp_path / "more.csv", "--images", folder]
    assert world.eval(*flags) == 1
    assert "line 51: gone.jpg" in capsys.readouterr().err
    assert world.eval(*flags, "--skip-bad") == 0
    assert "gone.jpg" in caplog.text and "cut.jpg" in caplog.text
    assert "24 images, 48 captions" in capsys.readouterr().out


# Classification


@pytest.mark.parametrize("flags, templates", [([], TEMPLATES), (["--no-templates"], PLAIN)])
def test_classes_give_the_accuracies_worked_out_by_hand(world, classes, capsys, flags, templates):
    (world.run / "confusion.png").unlink(missing_ok=True)
    result = world.json("--classes", classes, *flags)
    folders = sorted(os.listdir(classes))
    images = [classes / folder / f"{shape}.jpg" for folder in folders for shape in SHAPES]
    scores = torch.tensor(world.ask(images, [folder.replace("_", " ") for folder in folders], templates))
    truth = torch.arange(6).repeat_interleave(len(SHAPES))
    accuracy = (scores.argmax(1) == truth).float().mean().item()
    assert result["task"] == "zeroshot_classification" and 1 / 6 < accuracy <= result["metrics"]["acc5"]
    assert result["metrics"]["acc1"] == pytest.approx(accuracy)
    assert result["metrics"]["mean_per_class_recall"] == pytest.approx(accuracy)  # as many images per class
    assert f"{100 * accuracy:.1f} %" in capsys.readouterr().out
    with Image.open(world.run / "confusion.png") as image:
        assert image.format == "PNG" and min(image.size) > 200


def test_classes_skip_a_damaged_image_and_keep_the_others_in_their_class(world, classes, caplog):
    before = world.json("--classes", classes)["metrics"]
    (classes / "the_black" / "cut.jpg").write_bytes((classes / "the_black" / "line.jpg").read_bytes()[:-200])
    assert world.eval("--classes", classes) == 1
    assert world.json("--classes", classes, "--skip-bad")["metrics"] == before
    assert "cut.jpg" in caplog.text


def test_classnames_rename_the_folders(world, classes, tmp_path):
    """The ids sort in another order than the names."""
    plain = world.json("--classes", classes)["metrics"]
    names = tmp_path / "names.txt"
    names.write_text("".join(f"n{90 - i}\tthe {color}\n" for i, color in enumerate(COLORS)))
    for i, color in enumerate(COLORS):
        os.rename(classes / f"the_{color}", classes / f"n{90 - i}")
    assert world.json("--classes", classes, "--classnames", names)["metrics"] == pytest.approx(plain)


@pytest.mark.parametrize("folders", [[], ["one"], ["one", "two"]])
def test_classes_without_two_folders_of_images_are_an_error(world, tmp_path, capsys, folders):
    for folder in folders:
        (tmp_path / folder).mkdir()
    assert world.eval("--classes", tmp_path) == 1
    err = capsys.readouterr().err
    assert str(tmp_path) in err and "image" in err


def test_answer_imports_no_library_of_towers(world, photo):
    """Each takes longer to import than the answer."""
    code = f"import sys, eval\neval.main(sys.argv[1:])\nprint(*{HEAVY} & sys.modules.keys(), file=sys.stderr)"
    command = [sys.executable, "-c", code, str(photo), "--run", str(world.run)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Prediction: ") and done.stderr == "\n"
