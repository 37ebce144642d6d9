"""Rows of a captions CSV, and the pixels of the images they name.

    rows = read_captions("caption.csv")          # [Row(image_name, caption, line), ...]
    train, val = split_by_image(names, 0.1, 0)   # captions of one image never straddle the split
    dataset = VisionTextDataset("caption.csv", vision.preprocess)
    pixels, caption = dataset[0]                 # (3, H, W) float32, str

Every image of the project is decoded by `open_image`.
"""

import hashlib
import os
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .images import FORMATS, MAX_PIXELS, check_file, image_path, open_image, upright_rgb
from .rows import Row, read_captions

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "Row",
    "VisionTextDataset",
    "check_file",
    "image_path",
    "open_image",
    "read_captions",
    "split_by_image",
    "upright_rgb",
]


def split_by_image(image_names, val_fraction=0.1, seed=0):
    """(train, val): the names as two sets. A name's side depends on nothing but the name, the fraction and the
    seed, so adding images never moves old ones; all captions of an image are on one side."""
    if not 0 <= val_fraction < 1:
        raise ValueError(
            f"val_fraction is {val_fraction}; give 0 (no held-out images) or more, and less than 1"
        )

    def place(name):  # in [0, 1)
        return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") / 2**64

    names = set(image_names)
    val = {name for name in names if place(name) < val_fraction}
    return names - val, val


class VisionTextDataset:
    """One sample a caption: (pixels (3, H, W) float32 as `vision_preprocess` makes them, caption str). None will do for
    `vision_preprocess` where `encode_archive` reads the pixels: it brings the tower's own.

    `image_names` (N) are the distinct images in order of first appearance, `captions` (M), `image_of` (M) the
    index into `image_names` each caption describes. `only` (a set of names) takes those images alone; `rows` stands for
    what the file would hold. Names that are missing or lead out of `image_dir` raise one ValueError that lists all of them
    with their CSV lines; `skip_bad` leaves them out and prints which.
    """

    def __init__(
        self,
        csv_path,
        vision_preprocess,
        image_dir="my_image_archive",
        image_column="image_name",
        caption_column="comment",
        skip_bad=False,
        only=None,
        rows=None,
    ):
        self.csv_path, self.image_dir, self.preprocess, self.skip_bad = (
            Path(csv_path),
            Path(image_dir),
            vision_preprocess,
            skip_bad,
        )
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
            """Why an image can't be used, or None."""
            try:
                path = image_path(self.image_dir, name)
                if decode:
                    open_image(path)
                else:
                    open(check_file(path), "rb").close()  # is there, is a file, and may be read
            except FileNotFoundError:
                twins = (path.with_name(unicodedata.normalize(form, path.name)) for form in ("NFC", "NFD"))
                twin = any(twin.is_file() for twin in twins)
                return (
                    f"{path}: no such file"
                    + ", but one that looks the same and is spelled in another Unicode form; rename it" * twin
                )
            except (
                OSError,
                ValueError,
                RuntimeError,
            ) as error:  # RuntimeError: a symbolic link to itself, before Python 3.13
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
            raise ValueError(
                f"{self.csv_path}: {len(bad)} of {len(self.image_names)} images can't be used; mend them, or train on "
                f"the rest with --skip-bad\n  {listed}"
            )
        captions = Counter(row.image_name in bad for row in self.rows)[True]
        print(
            f"{self.csv_path}: left out {len(bad)} images that can't be used, with their {captions} captions\n  {listed}"
        )
        self._index([row for row in self.rows if row.image_name not in bad])
        if not self.rows:
            raise ValueError(
                f"{self.csv_path}: no image is left; is {self.image_dir} the right folder (--images)?"
            )

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
