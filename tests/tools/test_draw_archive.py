"""The archive that ships with the project: its images, captions and code must agree."""

import csv
import json
from pathlib import Path
from random import Random

import pytest
from PIL import Image, ImageChops, ImageStat

from tools.draw_archive.__main__ import main
from tools.draw_archive.captions import article, captions, plural, relation, unique
from tools.draw_archive.drawing import FONT, draw, load_font
from tools.draw_archive.layout import Thing, layout
from tools.draw_archive.vocabulary import LEXICON

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "my_image_archive"


@pytest.fixture(scope="module")
def scenes():
    return [layout(index) for index in range(1000)]


@pytest.fixture(scope="module")
def said(scenes):
    return {scene.name: captions(scene) for scene in scenes}


def rows(name):
    with (ROOT / name).open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image_name", "comment"]
    return rows


def test_layout_depends_on_index_and_seed_alone(scenes, said):
    again = layout(7)
    assert again == scenes[7] and captions(again) == said[again.name]
    assert layout(7, seed=1).things != again.things


def test_captions_csv_is_what_the_code_makes(said):
    assert rows("caption.csv") == [[name, text] for name, texts in said.items() for text in texts]


def test_unique_csv_is_what_the_code_makes(scenes):
    assert rows("unique_caption.csv") == [[scene.name, unique(scene)] for scene in scenes]


def test_captions_are_five_distinct_short_sentences(said):
    for name, texts in said.items():
        assert len({text.lower().rstrip(".!") for text in texts}) == 5, name
        assert all(4 <= len(text.split()) <= 18 for text in texts), texts


def test_images_are_the_rows_and_small(said):
    paths = list(IMAGES.iterdir())
    assert {path.name for path in paths} == set(said)
    assert sum(path.stat().st_size for path in paths) < 10_000_000
    for path in paths:
        with Image.open(path) as image:
            assert (image.size, image.format) == ((256, 256), "JPEG"), path.name


def test_things_are_many_and_inside(scenes):
    things = [thing for scene in scenes for thing in scene.things]
    assert len({LEXICON[thing.name].glyph for thing in things}) >= 150
    for thing in things:
        x0, y0, x1, y1 = thing.box
        assert 0 <= x0 < x1 <= 256 and 0 <= y0 < y1 <= 256, thing


@pytest.mark.parametrize(
    ("phrase", "many"),
    [
        ("mouse", "mice"),
        ("woolly sheep", "woolly sheep"),
        ("slice of pizza", "slices of pizza"),
        ("man riding a bike", "men riding bikes"),
        ("puppy", "puppies"),
        ("city bus", "city buses"),
        ("knife", "knives"),
        ("lady in a rowing boat", "ladies in rowing boats"),
    ],
)
def test_plural_is_english(phrase, many):
    assert plural(phrase) == many


def test_relation_is_seen_from_the_first_thing():
    left, right = (Thing("dog", "", "", "", box) for box in ((10, 100, 60, 150), (180, 100, 230, 150)))
    assert "left" in relation(Random(0), [left], [right])
    assert "right" in relation(Random(0), [right], [left])


@pytest.mark.skipif(not Path(FONT).is_file(), reason="apt-get install fonts-noto-color-emoji")
@pytest.mark.parametrize("index", [0, 3, 500])
def test_draw_repeats_the_committed_image(scenes, index):
    drawn = draw(scenes[index], load_font())
    with Image.open(IMAGES / scenes[index].name) as committed:
        difference = ImageStat.Stat(ImageChops.difference(drawn, committed.convert("RGB"))).mean
    assert max(difference) < 6  # of 255; JPEG compression accounts for about 2


def test_boxes_are_those_of_the_layout(scenes, tmp_path, capsys):
    path = tmp_path / "boxes.json"
    flags = ["--boxes", str(path), "--count", "40"]
    assert main(flags) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    assert list(found) == [scene.name for scene in scenes[:40]]
    for scene in scenes[:40]:
        boxes = [(text, tuple(box)) for text, boxes in found[scene.name].items() for box in boxes]
        assert sorted(boxes) == sorted((article(thing.name), thing.box) for thing in scene.things)
    assert main(flags) == 1 and f"{path} exists" in capsys.readouterr().err


def test_main_overwrites_nothing_unasked(tmp_path, capsys):
    mine = tmp_path / "caption.csv"
    mine.write_text("mine", encoding="utf-8")
    flags = ["--out", f"{tmp_path}/images", "--captions", str(mine), "--unique", f"{tmp_path}/one.csv"]
    assert main(flags) == 1
    assert "--overwrite" in capsys.readouterr().err and mine.read_text(encoding="utf-8") == "mine"


def test_missing_font_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no-such\.ttf.*fonts-noto-color-emoji.*--font"):
        load_font(tmp_path / "no-such.ttf")
