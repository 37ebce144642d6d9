"""Rows of a captions CSV, and the pixels of the images they name.

    rows = read_captions("caption.csv")          # [Row(image_name, caption, line), ...]
    train, val = split_by_image(names, 0.1, 0)   # captions of one image never straddle the split
    dataset = VisionTextDataset("caption.csv", vision.preprocess)
    pixels, caption = dataset[0]                 # (3, H, W) float32, str

Every image of the project is decoded by `open_image`.
"""

import csv
import hashlib
import io
import os
import re
import stat
import struct
import unicodedata
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

SEPARATORS = (",", "\t", ";", "|")
# EPS and PDF are left out on purpose: Pillow hands them to other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
MAX_SCANS = 500  # of a JPEG, each a pass over all of it: a small file can ask for hours. libjpeg-turbo's own fuzzers stop there
MAX_PIXELS = 89_478_485  # Pillow's own limit (a quarter GB as RGB), here an error and not a warning
# What Pillow's decoders were seen to raise on damaged files, beside OSError (tests/corpus.py: truncated, mutated, bombs).
DECODE_ERRORS = (OSError, ValueError, SyntaxError, RuntimeError, EOFError, LookupError, TypeError, ArithmeticError, MemoryError,
                 AttributeError, AssertionError, struct.error, zlib.error, Image.DecompressionBombError)  # fmt: skip
# What else lies in folders of images: how it begins, and what to say.
NOT_IMAGES = {
    rb"\Z": "it is empty",
    rb"(?s).{4}ftyp(hei|hev|mif1|msf1)": "it is a HEIC photo; make a JPEG of it, for example with the package pillow-heif",
    rb"(?s).{4}ftyp(?!avi)": "it is a film",
    rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype )?html": "it is a web page, so its download went wrong",
    rb"(?i)(\xef\xbb\xbf)?\s*<(\?xml|!doctype svg|svg)": "it is a drawing (SVG); save it as PNG",
    rb"8BPS": "it is a Photoshop file; save it as PNG",
    rb"version https://git-lfs": "it is Git LFS's pointer to the image; fetch that with: git lfs pull",
    rb"": f"it is not an image of a kind read here ({', '.join(FORMATS)}), or its beginning is damaged",
}
NOT_CSV = {
    b"\xff\xfe\0\0": "it is UTF-32; save it as UTF-8: iconv -f utf-32 -t utf-8",
    b"\xff\xfe": "it is UTF-16; save it as UTF-8: iconv -f utf-16 -t utf-8",
    b"\xfe\xff": "it is UTF-16; save it as UTF-8: iconv -f utf-16 -t utf-8",
    b"PK\3\4": "it is an Excel workbook or a ZIP archive; save the sheet as CSV UTF-8",
    b"\x1f\x8b": "it is packed with gzip; unpack it first",
}


class Row(NamedTuple):
    image_name: str
    caption: str
    line: int  # in the file, counted from 1


def read_captions(csv_path, image_column="image_name", caption_column="comment", skip_bad=False):
    """The rows of a captions file, every field stripped text ('NA' and '001' stay as they are).

    The separator is whichever of comma, tab, semicolon or pipe makes a header that holds both columns.
    Raises ValueError naming the file and every bad line (wrong number of fields, empty name or caption);
    with `skip_bad` those lines are left out and printed instead. OSError when there is no such file.
    """
    path = check_file(csv_path)
    data = path.read_bytes()
    if what := next((what for start, what in NOT_CSV.items() if data.startswith(start)), None):
        raise ValueError(f"{path}: {what}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n?|\n", data[: error.start])) + 1
        raise ValueError(f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; "
                         f"save the file as UTF-8, for example: iconv -f cp1252 -t utf-8 {path}") from None  # fmt: skip
    lines = re.split("\r\n?|\n", text)  # as csv does; str.splitlines would also cut at U+2028 and its like
    if "\0" in text:
        line = next(number for number, line in enumerate(lines, 1) if "\0" in line)
        raise ValueError(f"{path}, line {line}: holds a NUL byte, so it is not a text file; save it as UTF-8 CSV")
    first = next((line for line in lines if line.strip()), "")[: csv.field_size_limit()]
    headers = {s: [f.strip() for f in next(csv.reader([first], delimiter=s, skipinitialspace=True), [])] for s in SEPARATORS}
    fits = [s for s, fields in headers.items() if {image_column, caption_column} <= set(fields)]
    if not fits:
        found = max(headers.values(), key=len)
        lost = [c for c in (image_column, caption_column) if c not in found]
        raise ValueError(f"{path}: no column {' and no column '.join(map(repr, lost))} (found: {', '.join(found)[:300] or 'nothing'}); "
                         "name yours with --image-column and --caption-column; a published data set: python -m apps.prepare")  # fmt: skip
    fields = headers[fits[0]]
    for column in (image_column, caption_column):
        if fields.count(column) > 1:
            raise ValueError(f"{path}: column {column!r} stands {fields.count(column)} times in the header; rename all but one")
    image_at, caption_at = fields.index(image_column), fields.index(caption_column)

    rows, bad, header_seen = [], [], False
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=fits[0], strict=True, skipinitialspace=True)
    start = 1
    try:
        for record in reader:
            line, start = start, reader.line_num + 1
            record = [field.strip() for field in record]
            if not any(record):
                continue
            if not header_seen:
                header_seen = True
            elif len(record) != len(fields):
                bad.append(f"line {line}: {len(record)} fields where the header has {len(fields)} (quote a caption that holds {fits[0]!r})")
            elif not record[image_at] or not record[caption_at]:
                bad.append(f"line {line}: the {'image name' if not record[image_at] else 'caption'} is empty")
            else:
                rows.append(Row(record[image_at], record[caption_at], line))
    except csv.Error as error:  # an open quote, text after a closing quote, a field over csv.field_size_limit()
        raise ValueError(f"{path}, line {start}: {error}; close the quote that is open, write one inside a caption twice") from None
    if bad and not skip_bad:
        raise ValueError(f"{path}: {len(bad)} bad lines; mend them, or leave them out with --skip-bad\n  " + "\n  ".join(bad))
    if bad:
        print(f"{path}: left out {len(bad)} bad lines, the first: {bad[0]}")
    if not rows:
        raise ValueError(f"{path}: no captions in it (header: {', '.join(fields)})")
    return rows


def split_by_image(image_names, val_fraction=0.1, seed=0):
    """(train, val): the names as two sets. A name's side depends on nothing but the name, the fraction and the
    seed, so adding images never moves old ones; all captions of an image are on one side."""
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}; give 0 (no held-out images) or more, and less than 1")

    def place(name):  # in [0, 1)
        return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") / 2**64

    names = set(image_names)
    val = {name for name in names if place(name) < val_fraction}
    return names - val, val


def check_file(path):
    """`path` as a Path. ValueError when it is a folder or a pipe (which to open would wait for ever) and not a file."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: it is a {'folder' if stat.S_ISDIR(mode) else 'pipe, socket or device'}, not a file")
    return Path(path)


def image_path(image_dir, name):
    """The path of an image inside `image_dir`. Names are somebody's text: one that leads outside raises ValueError."""
    folder = Path(image_dir).resolve()
    path = (folder / name).resolve()
    if not path.is_relative_to(folder) or "\0" in name:
        raise ValueError(f"{name!r} leads out of the image folder {image_dir}")
    return path


def open_image(file):
    """An image file (path or binary file object) as an upright RGB PIL image, see `upright_rgb`.

    Raises ValueError saying why a file can't be decoded; OSError when there is none, or it may not be read."""
    if isinstance(file, (str, os.PathLike)):
        with open(check_file(file), "rb") as opened:
            return _decode(opened, file)
    return _decode(file, "image")


def _decode(file, name):
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels is over the limit of {MAX_PIXELS:,}; scale it down")
            _mend(image)
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except UnidentifiedImageError:
        file.seek(0)
        head = file.read(100)
        what = next(what for start, what in NOT_IMAGES.items() if re.match(start, head))
        raise ValueError(f"{name}: cannot identify an image: {what}") from None
    except DECODE_ERRORS as error:
        raise ValueError(f"{name}: can't be decoded as an image ({type(error).__name__}: {error})") from None


def _mend(image):
    """Put right, or refuse, what Pillow 13 would decode for hours, or to wrong pixels (each is a file of tests/corpus.py)."""
    if image.format in ("JPEG", "MPO"):
        image.fp.seek(0)
        scans = image.fp.read().count(b"\xff\xda")
        if scans > MAX_SCANS:
            raise ValueError(f"{scans} scans are over the limit of {MAX_SCANS}; save it anew")
    if image.format == "TIFF" and image.mode.startswith("I"):
        (bits, *_), photometric, (form, *_) = (image.tag_v2.get(tag, (1,)) for tag in (258, 262, 339))
        if (bits, photometric, form) != (16, 1, 1):  # Pillow scales no 12 bits, turns no white-is-zero, tells no sign
            raise ValueError(f"grey TIFF with BitsPerSample {bits}, PhotometricInterpretation {photometric} and SampleFormat {form} "
                             "has no known white here; save it as 8 bit")  # fmt: skip
    if image.format == "PNG" and image.mode == "P" and image.palette is None:
        raise ValueError("its pixels are numbers of a palette, and there is no palette")
    if image.format == "PNG" and isinstance(image.info.get("transparency"), (int, tuple)) and image.tile:
        coding = image.tile[0].args
        if "16" in coding:  # Pillow keeps 8 bits of the pixels, and compares those with all 16 of the colour
            raise ValueError("16 bit with one colour that stands for transparency; save it with an alpha channel, or as 8 bit")
        image.info["transparency"] *= {"L;2": 85, "L;4": 17}.get(coding, 1)  # Pillow scales the pixels only


def upright_rgb(image):
    """A PIL image of any mode as RGB: EXIF orientation applied, transparency composited on white, 16-bit grey scaled to 8,
    the first frame of an animation. ValueError for pixels that have no known white (32-bit, floating-point)."""
    return _rgb(ImageOps.exif_transpose(image))


def _rgb(image):
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known white; save it as 8 or 16 bit")
    if image.mode.startswith("I"):  # 16-bit grey; convert('RGB') would clip it to near white
        image = image.convert("I")
        low, high = image.getextrema()
        if low < 0 or high > 65535:
            raise ValueError(f"32-bit integer pixels from {low} to {high} have no known white; save it as 8 or 16 bit")
        image = image.point(lambda value: value * (1 / 257))  # in its own line, so that the copy above is let go
        return image.convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


class VisionTextDataset:
    """One sample a caption: (pixels (3, H, W) float32 as `vision_preprocess` makes them, caption str). None will do for
    `vision_preprocess` where `encode_archive` reads the pixels: it brings the tower's own.

    `image_names` (N) are the distinct images in order of first appearance, `captions` (M), `image_of` (M) the
    index into `image_names` each caption describes. `only` (a set of names) takes those images alone; `rows` stands for
    what the file would hold. Names that are missing or lead out of `image_dir` raise one ValueError that lists all of them
    with their CSV lines; `skip_bad` leaves them out and prints which.
    """

    def __init__(self, csv_path, vision_preprocess, image_dir="my_image_archive", image_column="image_name",
                 caption_column="comment", skip_bad=False, only=None, rows=None):  # fmt: skip
        self.csv_path, self.image_dir, self.preprocess, self.skip_bad = Path(csv_path), Path(image_dir), vision_preprocess, skip_bad
        if not self.image_dir.is_dir():
            raise ValueError(f"{image_dir}: no such folder of images; name yours with --images DIR")
        self._index(rows or read_captions(csv_path, image_column, caption_column, skip_bad))
        if only is not None:
            self.keep(only)
        self.drop(self._find_bad(range(len(self.image_names)), decode=False))

    def _index(self, rows):
        self.rows, self.captions = rows, [row.caption for row in rows]
        self.image_names = list(dict.fromkeys(row.image_name for row in rows))
        number = {name: i for i, name in enumerate(self.image_names)}
        self.image_of = [number[row.image_name] for row in rows]

    def _find_bad(self, images, decode, workers=None):
        """{image name: reason} for those of `images` (indices) that can't be used."""

        def reason(name):
            try:
                path = image_path(self.image_dir, name)
                if decode:
                    open_image(path)
                else:
                    open(check_file(path), "rb").close()  # is there, is a file, and may be read
            except FileNotFoundError:
                twins = (path.with_name(unicodedata.normalize(form, path.name)) for form in ("NFC", "NFD"))
                twin = any(twin.is_file() for twin in twins)
                return f"{path}: no such file" + ", but one that looks the same and is spelled in another Unicode form; rename it" * twin
            except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a symbolic link to itself, before Python 3.13
                return str(error)

        names = [self.image_names[i] for i in images]
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            return {name: why for name, why in zip(names, pool.map(reason, names)) if why}

    def find_damaged(self, images, workers=None):
        """{image name: reason} for those of `images` (indices) that don't decode. Every pixel is decoded: a truncated
        JPEG passes `Image.open` and `verify`, and only fails when its last rows are read."""
        return self._find_bad(images, decode=True, workers=workers)

    def keep(self, names):
        """Only the images of this set of names, with their captions."""
        self._index([row for row in self.rows if row.image_name in names])
        if not self.rows:
            raise ValueError(f"{self.csv_path}: none of its images is asked for")

    def drop(self, bad):
        """Leave the images of `bad` {name: reason} out, saying so; without `skip_bad`, raise ValueError naming them all."""
        if not bad:
            return
        line = {row.image_name: row.line for row in reversed(self.rows)}
        listed = "\n  ".join(f"line {line[name]}: {name}: {why}" for name, why in bad.items())
        if not self.skip_bad:
            raise ValueError(f"{self.csv_path}: {len(bad)} of {len(self.image_names)} images can't be used; mend them, or train on "
                             f"the rest with --skip-bad\n  {listed}")  # fmt: skip
        captions = Counter(row.image_name in bad for row in self.rows)[True]
        print(f"{self.csv_path}: left out {len(bad)} images that can't be used, with their {captions} captions\n  {listed}")
        self._index([row for row in self.rows if row.image_name not in bad])
        if not self.rows:
            raise ValueError(f"{self.csv_path}: no image is left; is {self.image_dir} the right folder (--images)?")

    def path(self, image):
        """Path of the image with index `image`."""
        return image_path(self.image_dir, self.image_names[image])

    def pixels(self, image, preprocess=None):
        """What `preprocess` (the data set's own by default) makes of the image with index `image`; ValueError names its
        CSV line and path."""
        try:
            return (preprocess or self.preprocess)(open_image(self.path(image)))
        except (OSError, ValueError) as error:
            line = next(row.line for row in self.rows if row.image_name == self.image_names[image])
            raise ValueError(f"{self.csv_path}, line {line}: {error}") from None

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, row):
        return self.pixels(self.image_of[row]), self.captions[row]
