"""Captions files with every trap of the real ones, and images in every state people keep them in."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from models.dataset import VisionTextDataset, open_image, read_captions, split_by_image

ROOT = Path(__file__).parents[2]

# ---------------------------------------------------------------------------------------------------------------- captions


@pytest.fixture
def table(tmp_path):
    """table(text or bytes) -> path of a captions file that holds it."""

    def write(content):
        path = tmp_path / "table.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def pairs(path, **options):
    return [(row.image_name, row.caption) for row in read_captions(path, **options)]


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"], ids=["comma", "tab", "semicolon", "pipe"])
def test_read_captions_sniffs_the_separator(table, separator):
    """Catches reading only commas, or guessing the separator from captions that hold the other three."""
    others = "".join({",", "\t", ";", "|"} - {separator}).replace("\t", "")
    text = f"image_name{separator}comment\na.jpg{separator}a dog {others} runs\nb.jpg{separator}NA\n"
    assert pairs(table(text)) == [("a.jpg", f"a dog {others} runs"), ("b.jpg", "NA")]


def test_read_captions_strips_header_and_fields(table):
    """Catches Flickr30k's results.csv ('image_name| comment_number| comment') read with spaces in names and captions."""
    text = "image_name| comment_number| comment\n1000092795.jpg| 0| Two young guys with shaggy hair . \n"
    assert pairs(table(text)) == [("1000092795.jpg", "Two young guys with shaggy hair .")]


def test_read_captions_takes_a_byte_order_mark(table):
    """Catches a first column named '\\ufeffimage_name', as Excel's 'CSV UTF-8' would give."""
    assert pairs(table(b"\xef\xbb\xbfimage_name,comment\r\na.jpg,caf\xc3\xa9\r\n")) == [("a.jpg", "café")]


def test_read_captions_keeps_words_that_look_like_values(table):
    """Catches pandas' defaults: 'NA', 'null' and 'nan' turned into NaN, 001 into 1, 1e3 into 1000.0."""
    words = ["NA", "null", "nan", "None", "001", "1e3", "True", "#N/A"]
    text = "image_name,comment\n" + "".join(f"{word},{word}\n" for word in words)
    assert pairs(table(text)) == [(word, word) for word in words]


def test_read_captions_missing_column_names_what_was_found(table):
    """Catches a bare KeyError: the user has to see the columns of the file and the flag that renames them."""
    with pytest.raises(
        ValueError, match=r"table\.csv.*'image_name'.*'comment'.*found: image, caption.*--image-column"
    ) as error:
        read_captions(table("image,caption\na.jpg,x\n"))
    assert "--caption-column" in str(error.value)
    with pytest.raises(ValueError, match="no column 'comment'") as error:
        read_captions(table("image_name;caption\na.jpg;x\n"))
    assert "no column 'image_name'" not in str(error.value)


def test_read_captions_takes_renamed_columns_in_any_order(table):
    """Catches columns taken by position, or the two names swapped."""
    text = "caption,number,image\na dog,0,a.jpg\n"
    assert pairs(table(text), image_column="image", caption_column="caption") == [("a.jpg", "a dog")]


def test_read_captions_doubled_column_is_refused(table):
    """Catches taking the first (or last) of two columns 'comment' without a word."""
    with pytest.raises(ValueError, match="'comment' stands 2 times"):
        read_captions(table("image_name,comment,comment\na.jpg,x,y\n"))


def test_read_captions_nul_byte_names_the_line(table):
    """Catches csv's 'line contains NUL', or a caption cut at a C string's end."""
    with pytest.raises(ValueError, match=r"table\.csv, line 3: .*NUL"):
        read_captions(table(b"image_name,comment\na.jpg,x\nb.jpg,y\0z\n"))


def test_read_captions_other_encoding_names_the_line_and_the_way_out(table):
    """Catches a bare UnicodeDecodeError, and cp1252 read as something else without a word."""
    with pytest.raises(ValueError, match=r"table\.csv, line 3: byte 0xe9 is not UTF-8.*iconv"):
        read_captions(table("image_name,comment\na.jpg,x\nb.jpg,café\n".encode("cp1252")))


def test_read_captions_utf16_is_refused(table):
    """Catches Excel's 'Unicode text' ending in a crash of the csv module."""
    with pytest.raises(ValueError, match="UTF-8"):
        read_captions(table("image_name\tcomment\na.jpg\tx\n".encode("utf-16")))


def test_read_captions_open_quote_names_where_it_opens(table):
    """Catches one stray quote that swallows the rest of the file as a single caption."""
    with pytest.raises(ValueError, match=r"table\.csv, line 3:"):
        read_captions(table('image_name,comment\na.jpg,x\nb.jpg,"opens here\nc.jpg,y\nd.jpg,z\n'))


def test_read_captions_newline_in_quotes_keeps_line_numbers_right(table):
    """Catches counting records in place of lines: the error would point two lines too high."""
    text = 'image_name,comment\na.jpg,"two\nlines"\n\nb.jpg,"a ""big"" dog"\nc.jpg,\n'
    with pytest.raises(ValueError, match="line 6: the caption is empty"):
        read_captions(table(text))
    rows = read_captions(table(text.replace("c.jpg,", "c.jpg,z")))
    assert rows == [("a.jpg", "two\nlines", 2), ("b.jpg", 'a "big" dog', 5), ("c.jpg", "z", 6)]
    assert read_captions(table(text.replace("c.jpg,", "c.jpg,z").replace("\n", "\r\n")))[-1].line == 6


def test_read_captions_wrong_field_count_names_every_line(table):
    """Catches Flickr8k's unquoted commas cutting a caption short, and Flickr30k's row 19999 that lacks a separator."""
    with pytest.raises(ValueError, match="2 bad lines") as error:
        read_captions(table("image_name,comment\na.jpg,a dog , a ball\nb.jpg,fine\nc.jpg\n"))
    assert "line 2: 3 fields where the header has 2" in str(error.value) and "line 4: 1 fields" in str(
        error.value
    )
    text = "image_name| comment_number| comment\na.jpg| 0| x\n2199200615.jpg| 4   A dog runs across the grass .\n"
    with pytest.raises(ValueError, match="line 3: 2 fields where the header has 3"):
        read_captions(table(text))


def test_read_captions_empty_name_or_caption_is_refused(table):
    """Catches a caption of spaces becoming the embedding of '', and an empty name becoming the image folder itself."""
    with pytest.raises(ValueError, match="line 2: the caption is empty") as error:
        read_captions(table("image_name,comment\na.jpg,  \n  ,x\nb.jpg,y\n"))
    assert "line 3: the image name is empty" in str(error.value)


def test_read_captions_without_rows_is_refused(table):
    """Catches an empty table that fails later, inside torch, with a message about shapes."""
    with pytest.raises(ValueError, match="no captions"):
        read_captions(table("image_name,comment\n"))
    with pytest.raises(ValueError, match="found: nothing"):
        read_captions(table(""))


def test_read_captions_skip_bad_leaves_out_and_says(table, capsys):
    """Catches bad lines dropped in silence, and good ones dropped with them."""
    path = table("image_name,comment\na.jpg,x\nb.jpg,one,two\nc.jpg,\nd.jpg,y\n")
    assert read_captions(path, skip_bad=True) == [("a.jpg", "x", 2), ("d.jpg", "y", 5)]
    said = capsys.readouterr().out
    assert "left out 2 bad lines" in said and "line 3" in said


def test_read_captions_takes_an_unnamed_first_column(table):
    """Catches stripping the header line whole: pandas' to_csv(sep='\\t') begins it with a tab, for the index."""
    for separator in ",\t;|":
        text = f"{separator}image_name{separator}comment\n0{separator}a.jpg{separator}x\n"
        assert pairs(table(text)) == [("a.jpg", "x")], separator


def test_read_captions_header_is_parsed_as_the_rows_are(table):
    """Catches a header whose quoted names after a space keep their quotes, while the rows' fields lose them."""
    assert pairs(table('"image_name", "comment"\n"a.jpg", "x, y"\n')) == [("a.jpg", "x, y")]


@pytest.mark.parametrize(
    "content",
    ["image_name,comment\ra.jpg,x\r", "x" * 200_000, f'image_name,comment\na.jpg,"{"x" * 200_000}"\n'],
    ids=["carriage returns", "one long line", "long caption"],
)
def test_read_captions_raises_nothing_but_value_error(table, content):
    """Catches the csv module's own error coming out, which the scripts don't turn into a message."""
    try:
        assert pairs(table(content)) in ([("a.jpg", "x")], [("a.jpg", "x" * 200_000)])
    except ValueError as error:
        assert "table.csv" in str(error)


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


@settings(deadline=None, max_examples=80)
@given(rows=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6))
def test_read_captions_reads_back_what_csv_wrote(tmp_path_factory, rows):
    """Catches any character that does not survive: quotes, separators, newlines, astral planes (round trip through csv.writer)."""
    import csv

    rows = [(name.strip(), caption.strip()) for name, caption in rows if name.strip() and caption.strip()]
    path = tmp_path_factory.getbasetemp() / "round_trip.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("image_name", "comment"), *rows])
    if rows:
        assert pairs(path) == rows


# ------------------------------------------------------------------------------------------------------------------- split

NAMES = [f"{i:05}.jpg" for i in range(2000)]


def test_split_puts_every_image_on_one_side():
    """Catches captions of one image on both sides: validation would then be on seen images."""
    train, val = split_by_image(NAMES * 5, 0.1, seed=0)
    assert train | val == set(NAMES) and not train & val


def test_split_never_moves_an_old_image():
    """Catches a shuffled split: adding images to the archive would move validation images into training."""
    few, many = split_by_image(NAMES[::3]), split_by_image(reversed(NAMES))
    assert few[0] <= many[0] and few[1] <= many[1]


def test_split_takes_about_the_fraction_and_grows_with_it():
    """Catches a hash that is not uniform, and a fraction that means the training side."""
    sizes = [len(split_by_image(NAMES, f)[1]) for f in (0, 0.05, 0.1, 0.5)]
    assert sizes[0] == 0
    assert all(
        abs(n - 2000 * f) < 4 * (2000 * f * (1 - f)) ** 0.5 + 1 for n, f in zip(sizes, (0, 0.05, 0.1, 0.5))
    )
    assert split_by_image(NAMES, 0.1)[1] < split_by_image(NAMES, 0.5)[1]


def test_split_depends_on_the_seed():
    """Catches a seed that is not used, and two seeds that share more images than chance has them share."""
    shared = split_by_image(NAMES, 0.5, 0)[1] & split_by_image(NAMES, 0.5, 1)[1]
    assert 400 < len(shared) < 600


def test_split_is_the_same_in_another_process():
    """Catches Python's salted hash(): the checkpoint's validation images would change from run to run."""
    code = "from models.dataset import split_by_image; print(sorted(split_by_image([str(i) for i in range(200)], 0.1, 7)[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "3"},
    )
    assert done.stdout.strip() == str(sorted(split_by_image(map(str, range(200)), 0.1, 7)[1]))


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_split_refuses_a_fraction_outside_zero_to_one(fraction):
    """Catches a percentage given as a fraction: nothing would be left to train on."""
    with pytest.raises(ValueError, match="val_fraction"):
        split_by_image(NAMES, fraction)


# ------------------------------------------------------------------------------------------------------------------ images


def stored(image, kind, **options):
    """The file of a PIL image, in memory."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return io.BytesIO(file.getvalue())


def values(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF"])
def test_open_image_decodes_in_a_fresh_process(kind, tmp_path):
    """Catches a format that only opens once something else made Pillow load its plug-ins: the first image of a run is a PNG."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / f"image.{kind.lower()}"
    picture(1).save(path, kind)
    code = f"from models.dataset import open_image; image = open_image({str(path)!r}); print(image.mode, *image.size)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "RGB 48 32", done.stderr


T = Image.Transpose
# How a file of each EXIF orientation stores an upright picture (6 is a phone held upright: turned left in the file).
STORED = {
    1: None,
    2: T.FLIP_LEFT_RIGHT,
    3: T.ROTATE_180,
    4: T.FLIP_TOP_BOTTOM,
    5: T.TRANSPOSE,
    6: T.ROTATE_90,
    7: T.TRANSVERSE,
    8: T.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_open_image_turns_upright(kind, orientation):
    """Catches EXIF ignored, applied twice, or mirrored: the same picture, stored in all eight ways, has to come out the same."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image, turn = picture(2), STORED[orientation]
    as_stored = image if turn is None else image.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {
        "JPEG": dict(quality=100, subsampling=0),
        "WEBP": dict(lossless=True),
        "AVIF": dict(quality=100, subsampling="4:4:4"),
    }
    got = open_image(stored(as_stored, kind, exif=exif, **options.get(kind, {})))
    assert got.size == image.size and got.mode == "RGB"
    assert abs(values(got) - values(image)).mean() < (2 if kind in ("JPEG", "AVIF") else 1e-9)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_open_image_composites_transparency_on_white(mode):
    """Catches transparency dropped: what lies under it (often black) would be seen."""
    image = Image.new("RGB", (4, 1), (200, 200, 200)).convert(mode)
    image.putalpha(Image.fromarray(np.array([[0, 85, 170, 255]], dtype=np.uint8)))
    got = values(open_image(stored(image, "PNG")))[0, :, 0]
    assert abs(got - (255 - 55 * np.array([0, 1 / 3, 2 / 3, 1]))).max() <= 1


@pytest.mark.parametrize(
    "mode, transparent",
    [("P", 0), ("P", bytes([0, 255])), ("L", 0), ("1", 0), ("RGB", (0, 0, 0))],
    ids=["palette index", "palette alphas", "grey", "bit", "colour key"],
)
def test_open_image_makes_the_transparent_colour_white(mode, transparent):
    """Catches reading only RGBA as transparent: palette, grey, 1-bit and RGB files mark one of their colours."""
    image = Image.new(mode, (2, 1), 0)
    if mode == "P":
        image.putpalette([0, 0, 0, 200, 10, 10])
    image.putpixel((1, 0), {"P": 1, "L": 100, "1": 1, "RGB": (9, 9, 9)}[mode])
    opaque = {"P": (200, 10, 10), "L": (100,) * 3, "1": (255,) * 3, "RGB": (9, 9, 9)}[mode]
    got = open_image(stored(image, "PNG", transparency=transparent))
    assert [got.getpixel((0, 0)), got.getpixel((1, 0))] == [(255, 255, 255), opaque]


RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)


def tiff(data, width, height, bits, sample_format, order):
    """The bytes of an uncompressed one-strip grey TIFF; `order` is '<' or '>'."""
    entries = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: 1,
        273: 8,
        277: 1,
        278: height,
        279: len(data),
        339: sample_format,
    }
    directory = struct.pack(order + "H", len(entries)) + b"".join(
        struct.pack(order + "HHII", t, 4, 1, v) for t, v in entries.items()
    )
    return (
        (b"II*\0" if order == "<" else b"MM\0*")
        + struct.pack(order + "I", 8 + len(data))
        + data
        + directory
        + bytes(4)
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "big-endian TIFF", "PGM"])
def test_open_image_scales_16_bit_grey(kind):
    """Catches Pillow's convert('RGB') of 16-bit grey, which clips: everything over 255 of 65,535 becomes white."""
    if kind in ("PNG", "TIFF"):
        file = stored(Image.fromarray(RAMP), kind)
    elif kind == "PGM":
        file = io.BytesIO(b"P5 256 256 65535\n" + RAMP.astype(">u2").tobytes())
    else:
        file = io.BytesIO(tiff(RAMP.astype(">u2").tobytes(), 256, 256, 16, 1, ">"))
    got = values(open_image(file))
    assert abs(got - (RAMP / 257)[:, :, None]).max() <= 1
    assert got[0, 0, 0] == 0 and got[-1, -1, 0] == 255


def test_open_image_refuses_pixels_without_a_known_white():
    """Catches floating-point and 32-bit pixels clipped to an all-white or all-black picture."""
    for data, sample_format in (
        (RAMP.astype("<f4"), 3),
        (RAMP.astype("<i4") * 1000, 2),
        (RAMP.astype("<i4") - 5, 2),
    ):
        with pytest.raises(ValueError, match="no known white"):
            open_image(io.BytesIO(tiff(data.tobytes(), 256, 256, 32, sample_format, "<")))


@pytest.mark.parametrize(
    "mode_and_kind",
    [
        "CMYK JPEG",
        "CMYK TIFF",
        "1 PNG",
        "1 TIFF",
        "P PNG",
        "P GIF",
        "L JPEG",
        "L PNG",
        "RGB BMP",
        "RGB WEBP",
        "RGB AVIF",
        "RGB PPM",
        "RGB JPEG2000",
        "YCbCr JPEG",
    ],
)
def test_open_image_gives_rgb_of_every_mode(mode_and_kind):
    """Catches a mode that crashes, comes out inverted (Adobe's CMYK) or keeps palette numbers for colours."""
    mode, kind = mode_and_kind.split()
    if not features.check({"AVIF": "avif", "JPEG2000": "jpg_2000"}.get(kind, "webp")):
        pytest.skip(f"this Pillow has no {kind}")
    image = Image.new("RGB", (64, 16), (230, 40, 30))
    image.paste((20, 30, 220), (0, 0, 32, 16))
    image = image.convert(mode)
    got = open_image(stored(image, kind))
    assert got.mode == "RGB" and got.size == (64, 16)
    for x in (8, 56):
        assert np.abs(np.subtract(got.getpixel((x, 8)), image.convert("RGB").getpixel((x, 8)))).max() <= 12


def test_open_image_takes_the_first_frame_of_an_animation():
    """Catches the last frame, or a 4-d array, of an animated GIF."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    assert open_image(stored(frames[0], "GIF", save_all=True, append_images=frames[1:])).getpixel((4, 4)) == (
        255,
        0,
        0,
    )


def test_open_image_takes_a_single_pixel():
    """Catches a squeeze or a division by (width - 1)."""
    assert open_image(stored(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG")).getpixel((0, 0)) == (9, 8, 7)


def test_open_image_truncated_jpeg_raises_value_error_or_is_whole():
    """Catches the cut file that passes open() and verify(), and fails (or comes out grey) only when its pixels are asked for."""
    data = stored(picture(3, (64, 64)), "JPEG", quality=95).getvalue()
    refused = 0
    for cut in range(0, len(data), 10):
        try:
            got = open_image(io.BytesIO(data[:cut]))
            assert got.mode == "RGB" and got.size == (64, 64) and cut > len(data) - 16, (
                cut
            )  # all but the end mark is there
        except ValueError:
            refused += 1
    assert refused >= len(data) // 10 - 1


def test_open_image_names_the_file_and_the_reason(tmp_path):
    """Catches an empty file, a web page saved as .jpg or a text file ending in anything but one ValueError with the path."""
    for name, content in (
        ("empty.jpg", b""),
        ("page.jpg", b"<!DOCTYPE html><html>404</html>"),
        ("text.png", b"hello"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name) as error:
            open_image(tmp_path / name)
        assert "cannot identify" in str(error.value)
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "none.jpg")


def png_header(width, height):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + body
        + struct.pack(">I", zlib.crc32(body))
        + struct.pack(">I", 0)
        + b"IDAT"
    )


@pytest.mark.parametrize("width, height", [(100_000, 100_000), (10_000, 9_000)])
def test_open_image_refuses_a_bomb_by_its_header(width, height):
    """Catches 30 GB (or a quarter) allocated for a 60-byte file, and Pillow's bomb error, which is not an OSError."""
    with pytest.raises(ValueError, match="pixels|Bomb"):
        open_image(io.BytesIO(png_header(width, height)))


def test_open_image_never_hands_eps_to_ghostscript(tmp_path, monkeypatch):
    """Catches Pillow running `gs` on a stranger's PostScript, whatever the file is called."""
    from PIL import EpsImagePlugin

    picture(1).save(tmp_path / "script.eps")
    (tmp_path / "photo.jpg").write_bytes((tmp_path / "script.eps").read_bytes())
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # looked for anew
    for name in ("script.eps", "photo.jpg"):
        with pytest.raises(ValueError):
            open_image(tmp_path / name)
    assert not (tmp_path / "ran").exists()


WHOLE = {
    kind: stored(picture(4, (20, 12)), kind).getvalue()
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP")
}


@pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged metadata
@pytest.mark.parametrize("kind", WHOLE)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_open_image_damaged_bytes_raise_nothing_but_value_error(kind, data):
    """Catches any other exception of Pillow's decoders (SyntaxError, struct.error, ...) ending a run of hours."""
    content = bytearray(WHOLE[kind])
    changes = st.lists(
        st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1, max_size=6
    )
    for at, value in data.draw(changes):
        content[at] = value
    try:
        assert open_image(io.BytesIO(bytes(content))).mode == "RGB"
    except ValueError:
        pass


# ---------------------------------------------------------------------------------------------------------------- data set


def to_tensor(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def test_dataset_gives_pixels_and_caption_of_each_row(archive):
    """Catches a caption paired with its neighbour's image: `image_of` and the order of first appearance."""
    archive.csv.write_text("image_name,comment\n002.jpg,two\n000.jpg,zero\n002.jpg,two again\n")
    dataset = VisionTextDataset(archive.csv, to_tensor, archive.images)
    assert (
        dataset.image_names == ["002.jpg", "000.jpg"] and dataset.image_of == [0, 1, 0] and len(dataset) == 3
    )
    for row, (name, caption) in enumerate(
        [("002.jpg", "two"), ("000.jpg", "zero"), ("002.jpg", "two again")]
    ):
        pixels, text = dataset[row]
        assert text == caption and torch.equal(pixels, to_tensor(Image.open(archive.images / name)))


def test_dataset_goes_through_a_data_loader(archive):
    """Catches samples that the default collate can't stack: users were promised a plain torch data set."""
    dataset = VisionTextDataset(archive.csv, to_tensor, archive.images)
    pixels, captions = next(iter(torch.utils.data.DataLoader(dataset, batch_size=4)))
    assert pixels.shape == (4, 3, 32, 48) and pixels.dtype == torch.float32
    assert list(captions) == dataset.captions[:4]


def test_dataset_lists_all_missing_images_at_once(archive):
    """Catches stopping at the first: a user would run once for each of a thousand missing files."""
    for name in archive.names[1:4]:
        (archive.images / name).unlink()
    with pytest.raises(ValueError, match="3 of 8 images") as error:
        VisionTextDataset(archive.csv, to_tensor, archive.images)
    for i, name in enumerate(archive.names[1:4], 1):
        assert f"line {2 + 2 * i}: {name}" in str(error.value) and str(archive.images / name) in str(
            error.value
        )


def test_dataset_lists_names_that_lead_outside(archive):
    """Catches a captions file that reads /etc/passwd: '..', an absolute path, a symbolic link to the outside."""
    outside = archive.csv.parent / "outside.jpg"
    picture(1).save(outside)
    (archive.images / "link.jpg").symlink_to(outside)
    (archive.images / "inside.jpg").symlink_to(archive.images / "000.jpg")
    (archive.csv.parent / "images2").mkdir()  # begins with the folder's name, but is not in it
    picture(1).save(archive.csv.parent / "images2" / "a.jpg")
    names = ["../outside.jpg", str(outside), "link.jpg", "../images2/a.jpg", "."]
    archive.csv.write_text("image_name,comment\ninside.jpg,fine\n" + "".join(f"{name},x\n" for name in names))
    with pytest.raises(ValueError, match="5 of 6 images") as error:
        VisionTextDataset(archive.csv, to_tensor, archive.images)
    for line, name in enumerate(names, 3):
        assert f"line {line}: {name}:" in str(error.value)
    assert "inside.jpg" not in str(error.value)


def test_dataset_lists_links_in_a_circle_and_overlong_names(archive):
    """Catches RuntimeError (a link that leads to itself, Python below 3.13) and 'File name too long' ending the run."""
    (archive.images / "circle.jpg").symlink_to(archive.images / "circle.jpg")
    archive.csv.write_text(f"image_name,comment\ncircle.jpg,x\n000.jpg,y\n{'n' * 400}.jpg,z\n")
    with pytest.raises(ValueError, match="2 of 3 images"):
        VisionTextDataset(archive.csv, to_tensor, archive.images)


def test_dataset_skip_bad_leaves_out_and_renumbers(archive, capsys):
    """Catches captions of a missing image kept, or `image_of` still counting it."""
    (archive.images / "001.jpg").unlink()
    dataset = VisionTextDataset(archive.csv, to_tensor, archive.images, skip_bad=True)
    assert dataset.image_names == [n for n in archive.names if n != "001.jpg"] and len(dataset) == 14
    assert dataset.image_of == [i for i in range(7) for _ in range(2)]
    assert dataset[2][1] == "a disc of colour 2"
    said = capsys.readouterr().out
    assert "left out 1 images" in said and "2 captions" in said and "001.jpg" in said


def test_dataset_with_no_image_left_says_where_it_looked(archive, tmp_path):
    """Catches a data set of nothing when --images names the wrong folder and --skip-bad is on."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty.*--images"):
        VisionTextDataset(archive.csv, to_tensor, tmp_path / "empty", skip_bad=True)
    with pytest.raises(ValueError, match="no such folder.*--images"):
        VisionTextDataset(archive.csv, to_tensor, tmp_path / "none")


def test_dataset_only_keeps_those_images(archive):
    """Catches the split applied to captions and not to images."""
    dataset = VisionTextDataset(archive.csv, to_tensor, archive.images, only={"003.jpg", "005.jpg"})
    assert dataset.image_names == ["003.jpg", "005.jpg"] and dataset.image_of == [0, 0, 1, 1]


def test_dataset_finds_damaged_images_by_decoding_them_whole(archive):
    """Catches Image.verify(), which a JPEG cut in half passes."""
    path = archive.images / "002.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    dataset = VisionTextDataset(archive.csv, to_tensor, archive.images)
    assert list(dataset.find_damaged(range(8))) == ["002.jpg"]
    with pytest.raises(ValueError, match=r"captions\.csv, line 6: .*002\.jpg"):
        dataset[4]
