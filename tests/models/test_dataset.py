"""Captions files with every trap of the real ones, images, and the data set of both. tests/corpus has files
of all kinds: orientations, 16-bit grey, pixels without a known white, decompression bombs."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, features

from models.dataset import Lookalikes, Row, VisionTextDataset, open_image, read_rows, split_by_image
from tests.conftest import ROOT, picture, write_csv

HEADER = "image_name,comment\n"


@pytest.fixture
def table(tmp_path):
    """table(text or bytes) -> path of a captions file that holds it."""

    def write(content):
        path = tmp_path / "table.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def pairs(path, **options):
    return [(row.image_name, row.text) for row in read_rows(path, **options)]


READ = {
    "Flickr30k's spaces": ("image_name| n| comment\n1.jpg| 0| Two guys . \n", [("1.jpg", "Two guys .")]),
    "Excel's byte order mark": (b"\xef\xbb\xbf" + HEADER.encode() + b"a,caf\xc3\xa9\r\n", [("a", "café")]),
    "pandas' unnamed index": ("\timage_name\tcomment\n0\ta.jpg\tx\n", [("a.jpg", "x")]),
    "unnamed index, commas": (",image_name,comment\n0,a.jpg,x\n", [("a.jpg", "x")]),
    "quotes after a space": ('"image_name", "comment"\n"a.jpg", "x, y"\n', [("a.jpg", "x, y")]),
    "carriage returns": ("image_name,comment\ra.jpg,x\r", [("a.jpg", "x")]),
    "a line separator": (HEADER + "a.jpg,x\u2028y\n", [("a.jpg", "x\u2028y")]),
} | {
    f"looks like a value: {word}": (f"{HEADER}{word},{word}\n", [(word, word)])
    for word in ("NA", "null", "nan", "None", "001", "1e3", "True", "#N/A")
}


@pytest.mark.parametrize("case", READ)
def test_read_rows_takes_what_is_out_there(table, case):
    content, expected = READ[case]
    assert pairs(table(content)) == expected


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"], ids=["comma", "tab", "semicolon", "pipe"])
def test_read_rows_finds_the_separator_in_the_header_alone(table, separator):
    others = ",;|".replace(separator, "")
    text = f"image_name{separator}comment\na.jpg{separator}a dog {others} runs\n"
    assert pairs(table(text)) == [("a.jpg", f"a dog {others} runs")]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_read_rows_takes_named_columns_in_any_order_and_counts_lines(table, end):
    text = 'answer,n,image,q\nno,0,a.jpg,"is it\na dog?"\n\n"a ""big"" one",1,b.jpg,\n'.replace("\n", end)
    columns = dict(image_column="image", caption_column="answer")
    rows = read_rows(table(text), **columns, question_column="q")
    expected = [Row("a.jpg", f"is it{end}a dog?", "no", 2), Row("b.jpg", "", 'a "big" one', 5)]
    assert [row._replace(file="") for row in rows] == expected and Path(rows[0].file).name == "table.csv"
    assert [row.question for row in read_rows(table(text), **columns)] == ["", ""]


# What read_rows refuses, and what the message has to hold: the line, the columns found, the way out.
REFUSED = {
    "both columns missing": (
        "image,caption\na.jpg,x\n",
        ["'image_name'", "'comment'", "image, caption", "--image-column", "--caption-column"],
    ),
    "one column missing": ("image_name;caption\na.jpg;x\n", ["'comment'"]),
    "a column twice": (HEADER.replace("\n", ",comment\n") + "a.jpg,x,y\n", ["'comment'"]),
    "NUL byte": (HEADER + "a.jpg,x\nb.jpg,y\0z\n", ["line 3"]),
    "cp1252": (f"{HEADER}a.jpg,x\nb.jpg,café\n".encode("cp1252"), ["line 3", "0xe9", "iconv"]),
    "UTF-16": ("image_name\tcomment\na.jpg\tx\n".encode("utf-16"), ["UTF-8"]),
    "an Excel workbook": (b"PK\3\4" + bytes(100), ["CSV"]),
    "open quote": (f'{HEADER}a.jpg,x\nb.jpg,"opens\nc.jpg,y\nd.jpg,z\n', ["line 3"]),
    "Flickr8k's commas": (f"{HEADER}a.jpg,dog , ball\nb.jpg,x\nc.jpg\n", ["line 2: 3", "line 4: 1", "2 bad"]),
    "Flickr30k's row 19999": ("image_name| n| comment\na.jpg| 0| x\nb.jpg| 4   A dog\n", ["line 3: 2"]),
    "empty caption and name": (f"{HEADER}a.jpg,  \n  ,x\nb.jpg,y\n", ["line 2", "line 3", "2 bad lines"]),
    "lines in quotes": (f'{HEADER}a.jpg,"two\nlines"\n\nb.jpg,x\nc.jpg,\n', ["line 6"]),
    "no rows": (HEADER, ["no captions"]),
    "an empty file": ("", ["nothing"]),
    "one long line": ("x" * 200_000, ["'image_name'"]),
    "a caption over csv's limit": (f'{HEADER}a.jpg,"{"x" * 200_000}"\n', ["line 2"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_read_rows_refuses_and_names_file_line_and_remedy(table, case):
    content, said = REFUSED[case]
    with pytest.raises(ValueError, match=r"table\.csv") as error:
        read_rows(table(content))
    assert [words for words in said if words not in str(error.value)] == []
    assert case != "one column missing" or "'image_name'" not in str(error.value)


def test_read_rows_skip_bad_leaves_out_and_logs(table, caplog):
    path = table(HEADER + "a.jpg,x\nb.jpg,one,two\nc.jpg,\nd.jpg,y\n")
    rows = read_rows(path, skip_bad=True)
    assert [(row.image_name, row.text, row.line) for row in rows] == [("a.jpg", "x", 2), ("d.jpg", "y", 5)]
    assert all(words in caplog.text for words in ("table.csv", "2 bad lines", "line 3"))


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
PAIRS = st.tuples(WORDS, WORDS).map(lambda pair: tuple(word.strip() for word in pair)).filter(all)


@settings(deadline=None, max_examples=80)
@given(rows=st.lists(PAIRS, min_size=1, max_size=6))
def test_read_rows_reads_back_what_csv_wrote(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "round_trip.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("image_name", "comment"), *rows])
    assert pairs(path) == rows


NAMES = [f"{i:05}.jpg" for i in range(2000)]


def test_split_puts_every_image_on_one_side_and_never_moves_it():
    train, held_out = split_by_image(NAMES * 5, 0.1, seed=0)
    assert train | held_out == set(NAMES) and not train & held_out
    few = split_by_image(reversed(NAMES[::3]))
    assert few[0] <= train and few[1] <= held_out
    assert split_by_image(["café.jpg"], 0) == ({"café.jpg"}, set()) and split_by_image([]) == (set(), set())


def test_split_takes_about_the_fraction_and_grows_with_it():
    smaller = set()
    for fraction in (0, 0.05, 0.1, 0.5):
        held_out = split_by_image(NAMES, fraction)[1]
        expected = 2000 * fraction
        assert abs(len(held_out) - expected) <= 4 * (expected * (1 - fraction)) ** 0.5
        assert smaller <= held_out
        smaller = held_out
    assert 400 < len(smaller & split_by_image(NAMES, 0.5, seed=1)[1]) < 600


def python(code, **environment):
    command = [sys.executable, "-c", code]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_split_is_the_same_in_another_process():
    code = "from models.dataset import split_by_image as s; print(sorted(s(map(str, range(200)), 0.1, 7)[1]))"
    expected = sorted(split_by_image(map(str, range(200)), 0.1, 7)[1])
    assert python(code, PYTHONHASHSEED="3") == str(expected)


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_split_refuses_a_fraction_outside_zero_to_one(fraction):
    with pytest.raises(ValueError, match="val_fraction"):
        split_by_image(NAMES, fraction)


def stored(image, kind, **options):
    """The file of a PIL image, in memory. Skips the test when this Pillow lacks the format."""
    if not features.check({"AVIF": "avif", "JPEG2000": "jpg_2000"}.get(kind, "webp")):
        pytest.skip(f"this Pillow has no {kind}")
    file = io.BytesIO()
    image.save(file, kind, **options)
    return io.BytesIO(file.getvalue())


def values(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF"])
def test_open_image_decodes_in_a_fresh_process(kind, tmp_path):
    """Pillow loads a format's plug-in when something asks for it."""
    path = tmp_path / "image"
    path.write_bytes(stored(picture(1), kind).getvalue())
    code = (
        f"from models.dataset import open_image as o; image = o({str(path)!r}); print(image.mode, image.size)"
    )
    assert python(code) == "RGB (48, 32)"


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_open_image_composites_transparency_on_white(mode):
    image = Image.new("RGB", (4, 1), (200, 200, 200)).convert(mode)
    image.putalpha(Image.fromarray(np.array([[0, 85, 170, 255]], dtype=np.uint8)))
    got = values(open_image(stored(image, "PNG")))[0, :, 0]
    assert abs(got - (255 - 55 * np.array([0, 1 / 3, 2 / 3, 1]))).max() <= 1


@pytest.mark.parametrize(
    "mode, transparent, other, opaque",
    [
        ("P", 0, 1, (200, 10, 10)),
        ("P", bytes([0, 255]), 1, (200, 10, 10)),
        ("L", 0, 100, (100,) * 3),
        ("1", 0, 1, (255,) * 3),
        ("RGB", (0, 0, 0), (9, 9, 9), (9, 9, 9)),
    ],
    ids=["palette index", "palette alphas", "grey", "bit", "color key"],
)
def test_open_image_makes_the_transparent_color_white(mode, transparent, other, opaque):
    image = Image.new(mode, (2, 1), 0)
    if mode == "P":
        image.putpalette([0, 0, 0, 200, 10, 10])
    image.putpixel((1, 0), other)
    got = open_image(stored(image, "PNG", transparency=transparent))
    assert [got.getpixel((0, 0)), got.getpixel((1, 0))] == [(255, 255, 255), opaque]


MODES = (
    "CMYK JPEG,CMYK TIFF,1 PNG,1 TIFF,P PNG,P GIF,L JPEG,L PNG,RGB BMP,RGB WEBP,RGB AVIF,RGB PPM,"
    "RGB JPEG2000,YCbCr JPEG"
)


@pytest.mark.parametrize("mode_and_kind", MODES.split(","))
def test_open_image_gives_rgb_of_every_mode(mode_and_kind):
    mode, kind = mode_and_kind.split()
    image = Image.new("RGB", (64, 16), (230, 40, 30))
    image.paste((20, 30, 220), (0, 0, 32, 16))
    image = image.convert(mode)
    got = open_image(stored(image, kind))
    assert got.mode == "RGB" and got.size == (64, 16)
    for x in (8, 56):
        assert np.abs(np.subtract(got.getpixel((x, 8)), image.convert("RGB").getpixel((x, 8)))).max() <= 12


def test_open_image_takes_the_first_frame_and_a_single_pixel():
    red, *others = (Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue"))
    animation = stored(red, "GIF", save_all=True, append_images=others)
    assert open_image(animation).getpixel((4, 4)) == (255, 0, 0)
    assert open_image(stored(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG")).getpixel((0, 0)) == (9, 8, 7)


def test_open_image_refuses_a_jpeg_cut_anywhere():
    """A cut file passes Pillow's open and verify. Only the end mark, 2 bytes and padding, may be missing."""
    data = stored(picture(3, (64, 64)), "JPEG", quality=95).getvalue()
    for cut in range(0, len(data) - 16, 10):
        with pytest.raises(ValueError):
            open_image(io.BytesIO(data[:cut]))


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>404</html>", b"hello"])
def test_open_image_names_the_file_that_is_no_image(tmp_path, content):
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"photo\.jpg: cannot identify"):
        open_image(tmp_path / "photo.jpg")
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "none.jpg")


def test_open_image_never_hands_eps_to_ghostscript(tmp_path, monkeypatch):
    picture(1).save(tmp_path / "script.eps")
    (tmp_path / "photo.jpg").write_bytes((tmp_path / "script.eps").read_bytes())
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # looked for again
    for name in ("script.eps", "photo.jpg"):
        with pytest.raises(ValueError):
            open_image(tmp_path / name)
    assert not (tmp_path / "ran").exists()


KINDS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP")
WHOLE = {kind: stored(picture(4, (20, 12)), kind).getvalue() for kind in KINDS}


@pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged metadata
@pytest.mark.parametrize("kind", WHOLE)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_open_image_damaged_bytes_raise_nothing_but_value_error(kind, data):
    content = bytearray(WHOLE[kind])
    change = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for at, value in data.draw(st.lists(change, min_size=1, max_size=6)):
        content[at] = value
    try:
        assert open_image(io.BytesIO(bytes(content))).mode == "RGB"
    except ValueError:
        pass


def to_tensor(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def load(archive, **options):
    return VisionTextDataset(archive.csv, to_tensor, archive.images, **options)


def test_dataset_gives_pixels_and_caption_of_each_row(archive):
    expected = [("002.jpg", "two"), ("000.jpg", "zero"), ("002.jpg", "two again")]
    archive.csv.write_text(HEADER + "".join(f"{name},{caption}\n" for name, caption in expected))
    for dataset in (load(archive), load(archive, rows=read_rows(archive.csv))):
        assert dataset.image_names == ["002.jpg", "000.jpg"] and dataset.image_of == [0, 1, 0]
        assert len(dataset) == 3
        for (pixels, text), (name, caption) in zip(map(dataset.__getitem__, range(3)), expected):
            assert text == caption and torch.equal(pixels, to_tensor(Image.open(archive.images / name)))


def test_dataset_goes_through_a_data_loader(archive):
    pixels, captions = next(iter(torch.utils.data.DataLoader(load(archive), batch_size=4)))
    assert pixels.shape == (4, 3, 32, 48) and pixels.dtype == torch.float32
    assert list(captions) == load(archive).captions[:4]


def test_dataset_lists_all_missing_images_at_once(archive):
    for name in archive.names[1:4]:
        (archive.images / name).unlink()
    with pytest.raises(ValueError, match="3 of 8") as error:
        load(archive)
    for line, name in zip((4, 6, 8), archive.names[1:4]):
        assert f"line {line}: {name}: {archive.images / name}" in str(error.value)


def test_dataset_lists_names_that_lead_outside(archive):
    outside = archive.csv.parent / "images2" / "a.jpg"  # begins with the folder's name, but is not in it
    outside.parent.mkdir()
    picture(1).save(outside)
    (archive.images / "link.jpg").symlink_to(outside)
    (archive.images / "circle.jpg").symlink_to(archive.images / "circle.jpg")
    (archive.images / "inside.jpg").symlink_to(archive.images / "000.jpg")
    names = ["../images2/a.jpg", str(outside), "link.jpg", "circle.jpg", ".", "n" * 400]
    archive.csv.write_text(f"{HEADER}inside.jpg,fine\n" + "".join(f"{name},x\n" for name in names))
    with pytest.raises(ValueError, match="6 of 7") as error:
        load(archive)
    assert [
        line for line, name in enumerate(names, 3) if f"line {line}: {name}:" not in str(error.value)
    ] == []


def test_linked_images_are_samples_with_follow_links(archive):
    """As download caches lay files: names that lead to files named by their content."""
    blobs = archive.images.parent / "blobs"
    blobs.mkdir()
    for number, name in enumerate(archive.names):
        (archive.images / name).rename(blobs / str(number))
        (archive.images / name).symlink_to(f"../blobs/{number}")
    with pytest.raises(ValueError, match="line 2: 000.jpg: .*--follow-links"):
        load(archive)
    dataset = load(archive, follow_links=True)
    assert dataset.image_names == archive.names
    assert [os.path.realpath(dataset.path(i)) for i in range(8)] == [str(blobs / str(i)) for i in range(8)]
    archive.csv.write_text(f"{HEADER}../blobs/1,x\n000.jpg,y\n")
    with pytest.raises(ValueError, match="1 of 2 images .*\n.*leads out"):
        load(archive, follow_links=True)


def test_dataset_names_a_twin_in_another_unicode_form(archive):
    (archive.images / "001.jpg").rename(archive.images / "cafe\u0301.jpg")
    archive.csv.write_text(archive.csv.read_text().replace("001.jpg", "caf\xe9.jpg"))
    with pytest.raises(ValueError, match="line 4: .*Unicode"):
        load(archive)


HIGH, LOW = "caf\xe9", "cafe\u0301"  # the same word, as Windows and as macOS write it
LOOKALIKES = {  # the file there is, its name in the captions file, how they differ
    "ending": ("001.jpg", "001.JPG", "another case"),
    "folder": ("Train/Img_1.JPG", "train/IMG_1.jpg", "another case"),
    "Windows path": ("001.jpg", "C:\\photos\\001.jpg", "the last part"),
    "Windows share": ("train/001.jpg", r"\\nas\photos\Train\001.JPG", "the last part"),
    "backslash": ("train/001.jpg", "train\\001.jpg", "the last part"),
    "path of another computer": ("train/001.jpg", "/home/me/photos/train/001.jpg", "the last part"),
    "folder twice": ("001.jpg", "images/001.jpg", "the last part"),
    "macOS": (f"{LOW}.jpg", f"{HIGH}.jpg", "Unicode"),
    "macOS, folder": (f"{HIGH}/1.jpg", f"{LOW}/1.jpg", "Unicode"),
    "no ending": ("2024.06.01 beach.jpg", "2024.06.01 beach", "another ending"),
    "other ending": ("train/001.jpg", "train/001.PNG", "another ending"),
    "COCO 2014 for 2017": ("val2017/000000391895.jpg", "val2014/COCO_val2014_000000391895.jpg", "COCO"),
    "COCO 2017 for 2014": ("COCO_train2014_000000391895.jpg", "000000391895.jpg", "COCO"),
}


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize(("there", "named", "how"), LOOKALIKES.values(), ids=LOOKALIKES)
def test_image_under_another_name_is_pointed_out(tmp_path, caplog, there, named, how, skip_bad):
    (tmp_path / "photos" / there).parent.mkdir(parents=True)
    for name in (there, "other.jpg"):
        picture(1).save(tmp_path / "photos" / name)
    table = tmp_path / "captions.csv"
    for names in ([named], [named, "other.jpg"]):
        write_csv(table, [(name, "x") for name in names])
        if skip_bad and len(names) > 1:
            assert VisionTextDataset(table, None, tmp_path / "photos", skip_bad=True).image_names == names[1:]
            said = caplog.text
        else:
            with pytest.raises(ValueError) as error:
                VisionTextDataset(table, None, tmp_path / "photos", skip_bad=skip_bad)
            said = str(error.value)
        assert f"such as {there} for {named}" in said and how in said


@pytest.mark.parametrize(
    "named", ["000000391896.jpg", "b/000000391895.jpg", "0O1.jpg", "../a/001.jpeg", "..", ""]
)
def test_other_image_is_not_pointed_out(tmp_path, named):
    """Twelve digits are COCO's id only where one of the names is COCO's."""
    (tmp_path / "a").mkdir()
    for name in ("a/000000391895.jpg", "001.jpg"):
        picture(1).save(tmp_path / name)
    assert Lookalikes(tmp_path).find(named) in (None, ("000000391895.jpg", "the last part of the path"))


@pytest.mark.parametrize("present", [[], ["000.jpg"]])
def test_thousands_of_missing_images_take_one_line(archive, present):
    write_csv(archive.csv, [(name, "x") for name in [*(f"{i:012}.jpg" for i in range(4000)), *present]])
    with pytest.raises(ValueError, match="is --images right") as error:
        load(archive)
    said = str(error.value)
    assert f"4,000 of its {4000 + len(present):,}" in said and "000000000002.jpg" in said
    assert "\n" not in said and len(said) < 1000 and "--skip-bad" not in said


def test_many_bad_lines_and_images_are_counted_and_the_first_ones_listed(archive, caplog):
    write_csv(archive.csv, [(name, "x") for name in [*archive.names, *(f"no{i}.jpg" for i in range(300))]])
    with pytest.raises(ValueError, match="300 of its 308"):
        load(archive)
    assert load(archive, skip_bad=True).left_out == {"no such file": 300}
    assert "and 280 more" in caplog.text and caplog.text.count("\n") < 30
    write_csv(archive.csv, [("a.jpg", "")] * 300)
    with pytest.raises(ValueError, match="300 bad lines") as error:
        load(archive)
    assert str(error.value).count("\n") == 21


def test_dataset_skip_bad_leaves_out_renumbers_and_logs(archive, caplog):
    (archive.images / "001.jpg").unlink()
    dataset = load(archive, skip_bad=True)
    assert dataset.image_names == [n for n in archive.names if n != "001.jpg"] and len(dataset) == 14
    assert dataset.image_of == [i for i in range(7) for _ in range(2)]
    assert dataset[2][1] == "a disc of colour 2"
    assert all(words in caplog.text for words in ("1 images", "2 captions", "001.jpg"))


def test_dataset_without_images_says_where_it_looked(archive, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "none"):
        with pytest.raises(ValueError, match=f"{folder}.*--images"):
            load(archive._replace(images=tmp_path / folder), skip_bad=True)


def test_dataset_only_keeps_those_images(archive):
    dataset = load(archive, only={"003.jpg", "005.jpg"})
    assert dataset.image_names == ["003.jpg", "005.jpg"] and dataset.image_of == [0, 0, 1, 1]
    for options in (dict(only={"none.jpg"}), dict(only=set()), dict(rows=[], only=set())):
        with pytest.raises(ValueError, match=r"captions\.csv"):
            load(archive, **options)


def test_dataset_finds_damaged_images_by_decoding_them_whole(archive):
    path = archive.images / "002.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    dataset = load(archive)
    assert list(dataset.find_damaged(range(8))) == ["002.jpg"]
    with pytest.raises(ValueError, match=r"captions\.csv, line 6: .*002\.jpg"):
        dataset[4]


def test_missing_image_of_a_similar_name_is_suggested(archive):
    rows = [Row(archive.names[0], "", "a disc", 2), Row("0O1.jpg", "", "a disc", 3)]
    with pytest.raises(ValueError, match="did you mean 001.jpg"):
        VisionTextDataset(archive.csv, None, archive.images, rows=rows)


def test_folder_without_any_of_the_images_is_doubted_in_one_line(archive, tmp_path):
    with pytest.raises(ValueError, match="is --images right") as caught:
        VisionTextDataset(archive.csv, None, tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
