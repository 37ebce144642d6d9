"""The pictures of README.md, and the words of a video, on a small part of the archive."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

import train
from tools import pictures, right_words

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.name for path in (ROOT / "my_image_archive").iterdir())[:24]  # 10002456.jpg among them


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with 24 images of the archive, their captions, and a run that held 18 of them out."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "my_image_archive").mkdir()
    for name in NAMES:
        shutil.copy(ROOT / "my_image_archive" / name, folder / "my_image_archive")
    for table in ("unique_caption.csv", "caption.csv"):
        header, *lines = (ROOT / table).read_text("utf-8").splitlines()
        kept = [line for line in lines if line.split(",")[0] in NAMES]
        (folder / table).write_text("\n".join([header, *kept]) + "\n", "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        flags = "--epochs 10 --val-fraction 0.8 --vision efficientnet-lite0 --quiet"
        assert train.main(flags.split()) == 0
    return folder


def test_readme_shows_the_commands_that_make_its_pictures():
    readme = (ROOT / "README.md").read_text("utf-8")
    for name, commands in pictures.COMMANDS.items():
        assert f"docs/pictures/{name}" in readme
        for command in commands:
            assert f"`{command}`" in readme


def test_pictures_are_made_by_the_commands_of_the_readme(place, monkeypatch):
    monkeypatch.chdir(place)
    assert pictures.main(["--out", "made"]) == 0
    for name in pictures.COMMANDS:
        with Image.open(place / "made" / name) as image:
            assert image.width > 150 and len(set(image.convert("L").tobytes())) > 100


def test_words_of_a_video_are_counted(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert right_words.main("--videos 1 --seconds 8 --quiet".split()) == 0
    *_, own, other, still = capsys.readouterr().out.splitlines()
    assert own.startswith("words of the segment |") and still.startswith("words of the still image |")
    assert own.split(" | ")[-1] == other.split(" | ")[-1] == still.split(" | ")[-1] != "0"


def test_things_are_named_by_any_synonym():
    assert right_words.things("Two hares, and a man riding a bike!") >= {"rabbit"}
    assert right_words.things("three women riding waves") == right_words.things("a woman riding a wave")
    assert right_words.judge("a dog on a beach", {"dog", "kite"}) == [1, 1, 1]
    assert right_words.judge("a dog and a cat", {"dog"}) == [1, 0, 1]
    assert right_words.judge("a sunny day", {"dog"}) == [0, 0, 1]
