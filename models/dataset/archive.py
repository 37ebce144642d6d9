"""A captions file and its folder of images as a data set, and its split into images to train on and images
held out."""

import hashlib
import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from pathlib import Path

from models.files import listed, tally

from .folders import image_path
from .frames import FRAMES, open_frames
from .images import check_file
from .lookalikes import Lookalikes
from .rows import read_rows

log = logging.getLogger(__name__)
MISSING, OUTSIDE, UNUSABLE = "no such file", "leads out of the image folder", "unusable image"
HINTS, MOST_NAMES = 5, 10_000  # missing images for which a similar name is looked up, and in how many


def split_by_image(image_names, val_fraction=0.1, seed=0):
    """(train, held out): the names as two sets.

    The side of a name depends on the name, the fraction and the seed alone, so adding images never moves
    others, and all captions of an image are on one side. ValueError for a fraction outside [0, 1)."""
    if not 0 <= val_fraction < 1:
        raise ValueError(
            f"val_fraction is {val_fraction}; give 0 (no held-out images) or more, and less than 1"
        )
    names = set(image_names)
    held_out = {name for name in names if _uniform(f"{seed}/{name}") < val_fraction}
    return names - held_out, held_out


def _uniform(text):
    """A number in [0, 1) that follows from `text`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


class VisionTextDataset:
    """One sample per caption: (pixels (3, H, W) float32 as `vision_preprocess` gives them, caption str).
    `vision_preprocess` may be None where `models.features` reads the pixels.

    `image_names` (N) are the distinct images in order of first appearance, `captions` (M) the texts, and
    `image_of` (M) the index into `image_names` that each describes. Rows with a question are not samples:
    they are in `question_rows`, and their images in `image_names`. `only`, a set of names, keeps those images
    alone; `rows` replaces what the file holds, and `left_out` {reason: rows} says what was left out of it.
    Names that are missing or lead out of `image_dir`, also through a link unless `follow_links`, raise one
    ValueError with their lines; with `skip_bad` they are left out and logged. `account()` says what became of
    every row of the file."""

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
        caption_lists=False,
        left_out=None,
        follow_links=False,
    ):
        self.csv_path = Path(csv_path)
        self.image_dir = Path(image_dir)
        self.preprocess = vision_preprocess
        self.skip_bad = skip_bad
        self.follow_links = follow_links
        if not self.image_dir.is_dir():
            raise ValueError(f"{image_dir}: no such folder of images; name yours with --images DIR")
        self.left_out = Counter(left_out)
        if rows is None:
            options = dict(skip_bad=skip_bad, caption_lists=caption_lists, left_out=self.left_out)
            rows = read_rows(csv_path, image_column, caption_column, **options)
        self._index(rows)
        if only is not None:
            self.keep(only)
        self.drop(self._find_bad(range(len(self.image_names))))

    def _index(self, rows):
        self.rows = rows
        self.image_names = list(dict.fromkeys(row.image_name for row in rows))
        number = {name: i for i, name in enumerate(self.image_names)}
        captions = [row for row in rows if not row.question]
        self.captions = [row.text for row in captions]
        self.image_of = [number[row.image_name] for row in captions]
        self.question_rows = [row for row in rows if row.question]

    def keep(self, names, reason="of other images"):
        """Keep the images of this set of names, with their captions; the others are left out for `reason`.
        ValueError when none is left."""
        self._leave_out({name: reason for name in self.image_names if name not in names})
        if not self.rows:
            raise ValueError(f"{self.csv_path}: none of its images is asked for")

    def _leave_out(self, reasons):
        """Leave the images of {name: reason} out, and count their rows."""
        gone = {(row.file, row.line, row.image_name) for row in self.rows if row.image_name in reasons}
        self.left_out.update(reasons[name] for *_, name in gone)
        self._index([row for row in self.rows if row.image_name not in reasons])

    def account(self):
        """'captions.csv: 12 rows = 10 used + 2 left out (1 blank, 1 no such file)'. A row may hold several
        captions."""
        used = {(row.file, row.line, row.image_name) for row in self.rows}
        files = " and ".join(dict.fromkeys(row.file or str(self.csv_path) for row in self.rows))
        unit = "rows" if any(row.line for row in self.rows) else "files"
        return f"{files}: {tally(unit, len(used), self.left_out)}"

    def drop(self, bad):
        """Leave the images of `bad` {name: reason} out and log them; without `skip_bad`, raise ValueError
        naming them."""
        if not bad:
            return
        total = len(self.image_names)
        kinds = {name: _kind(why) for name, why in bad.items()}
        looks = Lookalikes(self.image_dir)
        found = {name: looks.find(name) for name, kind in kinds.items() if kind != UNUSABLE}
        # A link that leads out of the folder has its own name there.
        elsewhere = {name: other for name, other in found.items() if other and other[0] != name}
        remedy = _remedy(elsewhere)
        missing = [name for name, kind in kinds.items() if kind == MISSING]
        if len(missing) == total or (2 * len(missing) > total and not self.skip_bad):
            first = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
            found = f"{len(missing):,} of its {total:,} images are not in {self.image_dir}: {first}"
            raise ValueError(f"{self.csv_path}: {found}; is --images right?{remedy}")
        lines = self._described(bad, elsewhere)
        if not self.skip_bad:
            found = f"{len(bad)} of {total} images cannot be used"
            found += " (none is decoded yet)" if missing else ""
            advice = "replace them, or leave them out with --skip-bad"
            raise ValueError(f"{self.csv_path}: {found}; {advice}{remedy}{lines}")
        rows = sum(row.image_name in bad for row in self.rows)
        what = "captions and questions" if self.question_rows else "captions"
        left_out = f"left out {len(bad)} images that cannot be used, with their {rows} {what}"
        log.warning("%s: %s%s%s", self.csv_path, left_out, remedy, lines)
        self._leave_out(kinds)
        if not self.rows:
            where = f"no image is left of those in {self.image_dir}; is --images right?"
            raise ValueError(f"{self.csv_path}: {where}{remedy}")

    def _described(self, bad, elsewhere):
        """A line for each bad image; of many with the same reason the first ones."""
        line = {row.image_name: row.line for row in reversed(self.rows)}
        by_reason = {}
        for number, (name, why) in enumerate(bad.items()):
            hint = self._hint(name) if number < HINTS and why.endswith(MISSING) else ""
            if name in elsewhere:
                hint = "; did you mean {} ({})?".format(*elsewhere[name])
            kind = _kind(why)
            reason = why.split(": ", 1)[-1] if kind == UNUSABLE else kind  # without the path
            place = f"line {line[name]}: " if line[name] else ""  # a folder has no lines
            by_reason.setdefault(reason, []).append(f"{place}{name}: {why}{hint}")
        return "".join(map(listed, by_reason.values()))

    def find_damaged(self, images, workers=None, frames=FRAMES):
        """{image name: reason} for those of `images` (indices) that do not decode. Every pixel is decoded, of
        a video those of `frames` frames: a truncated JPEG passes `Image.open` and `verify`, and only fails
        when its last rows are read."""
        return self._find_bad(images, frames, workers)

    def _find_bad(self, images, frames=0, workers=None):
        """{image name: reason} for those of `images` (indices) that cannot be used."""
        names = [self.image_names[i] for i in images]
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            reasons = pool.map(lambda name: self._why_unusable(name, frames), names)
            return {name: why for name, why in zip(names, reasons) if why}

    def _why_unusable(self, name, frames):
        """Why an image cannot be used, or None. Nothing is decoded for 0 `frames`."""
        try:
            path = image_path(self.image_dir, name, self.follow_links)
            if frames:
                open_frames(path, frames)
            else:
                open(check_file(path), "rb").close()  # exists, is a file, and may be read
        except (FileNotFoundError, NotADirectoryError):
            return f"{path}: {MISSING}"
        except (OSError, ValueError, RuntimeError) as error:
            # RuntimeError: a link to itself, before Python 3.13.
            return str(error)

    def _hint(self, name):
        """'; did you mean NAME?' where the folder has a file of a similar name."""
        path = Path(self.image_dir, name)
        names = os.listdir(path.parent) if path.parent.is_dir() else []
        similar = get_close_matches(path.name, names[:MOST_NAMES], n=1, cutoff=0.8)
        return f"; did you mean {similar[0]}?" if similar else ""

    def path(self, image):
        """Path of the image with index `image`."""
        return image_path(self.image_dir, self.image_names[image], self.follow_links)

    def where(self, image):
        """'FILE, line N': where the image with index `image` is first named; the folder of class folders."""
        row = next(row for row in self.rows if row.image_name == self.image_names[image])
        return f"{row.file or self.csv_path}" + (f", line {row.line}" if row.line else "")

    def pixels(self, image):
        """What `preprocess` gives for the image with index `image`, or for the frame in the middle of a
        video. ValueError names its CSV line and path."""
        try:
            return self.preprocess(open_frames(self.path(image), 1)[0])
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.where(image)}: {error}") from None

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, row):
        return self.pixels(self.image_of[row]), self.captions[row]


def _kind(why):
    """The reason that an image is counted by."""
    return next((kind for kind in (MISSING, OUTSIDE) if kind in why), UNUSABLE)


def _remedy(elsewhere):
    """What to say of {image name: (name of a file that is there, how it differs)}."""
    text = ""
    for how, count in Counter(how for _, how in elsewhere.values()).items():
        name, found = next((name, found) for name, (found, way) in elsewhere.items() if way == how)
        text += f"; {count:,} are there under another name ({how}), such as {found} for {name}"
    return text and f"{text}; correct the names"
