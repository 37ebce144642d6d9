"""train.py and eval.py on videos among images."""

import json
import shutil

import pytest
import torch
from PIL import Image

import eval as evaluate
import train
from models.dataset import open_frames
from models.vljepa import VLJEPA
from tests.conftest import make_shapes, write_csv
from tests.models.test_clips import write


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """(folder, flags): the drawn shapes, every third one as a video in which it is turned, and a run."""
    folder = tmp_path_factory.mktemp("mixed")
    shapes = make_shapes(folder / "shapes")
    rows, asked = [], []
    for i, name in enumerate(shapes.names):
        color, _, shape = name.removesuffix(".jpg").partition("-")
        if i % 3 == 0:
            image = Image.open(shapes.images / name)
            name = write(
                shapes.images / f"{color}-{shape}.mkv", [image.rotate(3 * n) for n in range(16)]
            ).name
        rows.append((name, f"a {color} {shape}"))
        asked += [(name, "What color is it?", color), (name, "What shape is it?", shape)]
    write_csv(folder / "captions.csv", rows)
    write_csv(folder / "questions.csv", asked, ("image_name", "question", "answer"))
    flags = ["--images", str(shapes.images), "--cache", str(folder / "f.sqlite"), "--quiet"]
    return folder, flags


def run(mixed, *more):
    """Train on the captions and the questions; returns the run folder."""
    folder, flags = mixed
    if not (folder / "run").exists():
        files = ["--csv", str(folder / "captions.csv"), "--questions", str(folder / "questions.csv")]
        files += ["--recipe", "answer", "--epochs", "3", "--hidden", "64", "--members", "1"]
        files += ["--vision", "efficientnet-lite0", "--val-fraction", "0.3", "--run", str(folder / "run")]
        assert train.main([*flags, *files]) == 0
    return folder / "run"


def result(folder, *flags):
    assert evaluate.main([*map(str, flags), "--quiet", "--json", str(folder / "r.json")]) == 0
    return json.loads((folder / "r.json").read_text())


def test_images_and_videos_train_together_and_are_scored(mixed):
    folder, flags = mixed
    own = ["--run", run(mixed), *flags[:4]]
    found = result(folder, "--csv", folder / "captions.csv", *own)
    assert (found["images"], found["captions"]) == (24, 24)
    found = result(folder, "--questions", folder / "questions.csv", *own)
    assert 0 <= found["metrics"]["accuracy"] <= 1


def test_scores_of_a_video_are_those_of_its_frames_averaged(mixed):
    folder, _ = mixed
    clip = folder / "shapes" / "images" / "red-ellipse.mkv"
    model = VLJEPA.load(run(mixed))
    frames = open_frames(clip, 8)
    rows, places = model.vision.encode(
        torch.stack([model.vision.preprocess(one) for one in frames]), places=True
    )
    mean = torch.nn.functional.normalize(rows.mean(0, keepdim=True), dim=1)
    labels = ["red", "a blue line"]
    (entry,) = result(folder, clip, "--run", run(mixed), "--labels", *labels)
    expected = (model.predict(mean) @ model.encode_text(labels).T)[0]
    assert torch.tensor(list(entry["scores"].values())) == pytest.approx(expected.numpy(), abs=1e-6)
    torch.testing.assert_close(model.encode_image(clip, frames=8), model.predict(mean), rtol=0, atol=1e-6)
    (entry,) = result(folder, clip, "--run", run(mixed), "--ask", "What color is it?")
    assert entry["answer"] == model.answer(clip, "What color is it?")


def test_clips_in_class_folders_are_classified(mixed):
    folder, _ = mixed
    for path in (folder / "shapes" / "images").iterdir():
        color = path.stem.partition("-")[0]
        (folder / "classes" / color).mkdir(parents=True, exist_ok=True)
        if path.suffix == ".mkv" or color == "red":
            shutil.copy(path, folder / "classes" / color)
    result(folder, "--classes", folder / "classes", "--run", run(mixed), "--cache", folder / "f.sqlite")
    clip = next((folder / "classes").rglob("*.mkv"))
    clip.write_bytes(clip.read_bytes()[:200])
    flags = ["--classes", folder / "classes", "--run", run(mixed), "--cache", folder / "f.sqlite"]
    assert evaluate.main(list(map(str, flags))) == 1
    assert evaluate.main([*map(str, flags), "--skip-bad"]) == 0


def test_damaged_clip_does_not_lose_the_other_answers(mixed, tmp_path, caplog):
    folder, _ = mixed
    clip = folder / "shapes" / "images" / "red-ellipse.mkv"
    (tmp_path / "cut.mkv").write_bytes(clip.read_bytes()[:200])
    shutil.copy(clip, tmp_path / "whole.mkv")
    flags = [tmp_path, "--run", run(mixed), "--labels", "red", "blue", "--json", folder / "r.json"]
    assert evaluate.main(list(map(str, flags))) == 1
    cut, whole = json.loads((folder / "r.json").read_text())
    assert str(tmp_path / "cut.mkv") in cut["error"] and whole["prediction"] in ("red", "blue")
    assert "2 files seen = 0 images + 2 videos" in caplog.text


@pytest.mark.parametrize("frames", ["0", "65536", "x"])
def test_number_of_frames_is_checked(mixed, frames, capsys):
    for main in (train.main, evaluate.main):
        with pytest.raises(SystemExit, match="2"):
            main(["--frames", frames])
        assert "--frames" in capsys.readouterr().err
