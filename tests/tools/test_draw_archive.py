"""The archive that ships with the project: the drawn pictures, their captions, and the code that made both, must stay one."""

import csv
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from tools.draw_archive import __main__ as draw_archive

ROOT = Path(__file__).parents[2]
SCENES = [draw_archive.layout(index) for index in range(1000)]
SAID = {scene.name: draw_archive.captions(scene) for scene in SCENES}


def rows(name):
    with (ROOT / name).open(encoding="utf-8", newline="") as file:
        return [tuple(row) for row in csv.reader(file)]


def test_layout_is_deterministic():
    """Catches a global random generator or set order creeping in: the second call would differ."""
    assert SCENES[7] == draw_archive.layout(7)
    assert draw_archive.captions(SCENES[7]) == draw_archive.captions(draw_archive.layout(7))
    assert SCENES[7].things != draw_archive.layout(7, seed=1).things


def test_captions_csv_is_what_the_code_says():
    """Catches captions edited by hand, or code changed without drawing the archive again."""
    expected = [(scene.name, text) for scene in SCENES for text in SAID[scene.name]]
    assert rows("caption.csv") == [("image_name", "comment"), *expected]


def test_captions_are_five_distinct_short_sentences():
    """Catches one template said five times, and sentences too short or too long to be a caption."""
    for name, said in SAID.items():
        assert len({text.lower().rstrip(".!") for text in said}) == 5, name
        assert all(4 <= len(text.split()) <= 18 for text in said), said


def test_unique_csv_takes_one_of_the_five():
    """Catches a unique_caption.csv that has drifted from caption.csv, or that has lost or doubled an image."""
    one = rows("unique_caption.csv")[1:]
    assert [name for name, _ in one] == sorted(SAID)
    assert all(text in SAID[name] for name, text in one)
    assert one[500][1] == draw_archive.unique(SCENES[500])


def test_images_are_exactly_the_rows():
    """Catches a picture without captions, captions without a picture, and a stray file in the folder."""
    assert {path.name for path in (ROOT / "my_image_archive").iterdir()} == {
        name for name, _ in rows("caption.csv")[1:]
    }
    assert len(SCENES) >= 600


def test_images_are_small():
    """Catches an archive too heavy to ship: pictures of another size, or 10 MB in all."""
    paths = list((ROOT / "my_image_archive").iterdir())
    assert sum(path.stat().st_size for path in paths) < 10_000_000
    for path in paths:
        with Image.open(path) as image:
            assert (image.size, image.format) == ((256, 256), "JPEG"), path.name


def test_things_are_many_and_inside():
    """Catches glyphs that are in the table but never drawn, and boxes a pointing game would look for outside the picture."""
    glyphs = {draw_archive.LEXICON[thing.name][5] for scene in SCENES for thing in scene.things}
    assert len(glyphs) >= 150
    for scene in SCENES:
        for thing in scene.things:
            x0, y0, x1, y1 = thing.box
            assert 0 <= x0 < x1 <= 256 and 0 <= y0 < y1 <= 256, (scene.name, thing)


@pytest.mark.parametrize(
    ("phrase", "many"),
    [
        ("mouse", "mice"),
        ("woolly sheep", "woolly sheep"),
        ("slice of pizza", "slices of pizza"),
        ("man riding a bike", "men riding bikes"),
        ("puppy", "puppies"),
        ("birthday cake", "birthday cakes"),
        ("knife", "knives"),
        ("lady in a rowing boat", "ladies in rowing boats"),
    ],
)
def test_plural_is_english(phrase, many):
    """Catches 'two mouses' and 'two man riding a bikes'."""
    assert draw_archive.plural(phrase) == many


def test_relation_is_seen_from_the_first_thing():
    """Catches left and right swapped: the caption would be false of the picture."""
    left, right = (
        draw_archive.Thing("dog", "", "", "", box) for box in ((10, 100, 60, 150), (180, 100, 230, 150))
    )
    rng = draw_archive.Random(0)
    assert "left" in draw_archive.relation(rng, [left], [right])
    assert "right" in draw_archive.relation(rng, [right], [left])


@pytest.mark.parametrize("index", [0, 3, 500])
def test_draw_repeats_the_committed_picture(index):
    """Catches pictures that no longer are what layout says, so that captions and boxes would be of something else."""
    if not Path(draw_archive.FONT).is_file():
        pytest.skip(f"{draw_archive.FONT} is not installed (apt-get install fonts-noto-color-emoji)")
    drawn = draw_archive.draw(SCENES[index], draw_archive.load_font())
    with Image.open(ROOT / "my_image_archive" / SCENES[index].name) as committed:
        difference = ImageStat.Stat(ImageChops.difference(drawn, committed.convert("RGB"))).mean
    assert max(difference) < 6  # of 255; what JPEG loses is about 2


def test_main_does_not_overwrite(tmp_path):
    """Catches somebody's own captions replaced without a word."""
    mine = tmp_path / "caption.csv"
    mine.write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit, match="--overwrite"):
        draw_archive.main(
            [
                "--out",
                str(tmp_path / "images"),
                "--captions",
                str(mine),
                "--unique",
                str(tmp_path / "unique.csv"),
            ]
        )
    assert mine.read_text(encoding="utf-8") == "mine"


def test_load_font_names_the_way_out(tmp_path):
    """Catches a bare OSError where the user needs the package's name."""
    with pytest.raises(SystemExit, match=r"no-such\.ttf.*fonts-noto-color-emoji.*--font"):
        draw_archive.load_font(str(tmp_path / "no-such.ttf"))
