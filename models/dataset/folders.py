"""What lies in a folder of images and videos: the files to read, and how many are left out and why.

walked = walk("photos", exclude=["*_small.jpg"])
walked.files                      # {"2019/a.jpg": os.stat_result}
walked.seen, walked.parts()       # 5, ["1 images", "3 hidden", "1 other files (1 .txt)"]
expand(["a.jpg", "photos"])       # [Path("a.jpg"), Path("photos/b.jpg")]
"""

import logging
import os
from collections import Counter, deque
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from models.files import level, printable, why_passed_over

from .images import HEIC_NEEDS, VIDEO_SUFFIXES, format_of, image_suffixes, is_video

log = logging.getLogger(__name__)
LINKS, REPEATED, OTHERS = "links", "links to what is read anyway", "other files"
HEIC = f"HEIC files ({HEIC_NEEDS})"


class Walk(NamedTuple):
    """What a folder holds. Each file is in `files` or counted in `left_out`. A link to a folder that is not
    followed counts as a file, and so does a folder that cannot be read."""

    files: dict  # {path below the folder, with slashes: os.stat_result}, sorted
    left_out: Counter  # {reason: how many files}
    suffixes: Counter  # {suffix: how many files} of the other files
    videos: set  # paths; of those in `files`

    @property
    def seen(self):
        """The number of files: those to read and those left out."""
        return len(self.files) + self.left_out.total()

    def parts(self, *kinds):
        """The counts of which `seen` is the sum, as a list of text. `kinds` say in place of "N images" what
        became of the files."""
        videos = len(self.videos & self.files.keys())
        found = [f"{len(self.files) - videos:,} images"] + ([f"{videos:,} videos"] if videos else [])
        parts = list(kinds) or found
        common = ", ".join(f"{count:,} {suffix}" for suffix, count in self.suffixes.most_common(3))
        more = ", ..." if len(self.suffixes) > 3 else ""
        details = {LINKS: " (--follow-links reads them)", OTHERS: f" ({common}{more})"}
        reasons = sorted(self.left_out.items())
        return parts + [f"{count:,} {printable(why)}{details.get(why, '')}" for why, count in reasons]

    def without_images(self):
        """What there is in a folder without images, in brackets."""
        return f"({', '.join(self.parts()[1:]) or 'it is empty'})"

    def counted(self, folder, *kinds):
        """One line: how many files `folder` holds, and what they are."""
        return f"{printable(str(folder))}: {self.seen:,} files seen = {' + '.join(self.parts(*kinds))}"


def image_path(image_dir, name, follow_links=False):
    """The path of an image inside `image_dir`. ValueError for a name that leads outside, since names may come
    from elsewhere, and, unless `follow_links`, for a link that does."""
    folder = Path(image_dir).resolve()
    inside = Path(os.path.normpath(folder / name))
    if "\0" in name or not inside.is_relative_to(folder):
        raise ValueError(f"{name!r} leads out of the image folder {image_dir}")
    if follow_links:
        return inside
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        what = f"{name!r} leads out of the image folder {image_dir} through a link"
        raise ValueError(f"{what}; --follow-links reads it")
    return path


def expand(paths, exclude=(), follow_links=False):
    """A list of Path: files as they are, and for each folder the images in it, sorted. What a folder holds is
    logged. ValueError for a folder without images."""
    found = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        walked = walk(path, exclude, follow_links, deep=False)
        if not walked.files:
            raise ValueError(f"{path}: no images in it {walked.without_images()}")
        log.log(level(walked.left_out), "%s", walked.counted(path))
        found += [path / name for name in walked.files]
    return found


def by_class(root, exclude=(), follow_links=False):
    """{name of a folder in `root`: its images, also in deeper folders, as paths below `root`}, sorted. What
    `root` holds is logged, and which folders are no class, since no image in them is read. ValueError for
    fewer than two classes."""
    what = "--classes takes a folder that holds one folder of images per class"
    if not os.path.isdir(root):
        raise ValueError(f"{root}: no such folder; {what}")
    walked, classes = walk(root, exclude, follow_links), {}
    for path in list(walked.files):
        folder, _, name = path.partition("/")
        if name:
            classes.setdefault(folder, []).append(path)
        else:
            del walked.files[path]
            walked.left_out["beside the class folders"] += 1
    if len(classes) < 2:
        found = f"{len(classes)} class folders with images in it {walked.without_images()}"
        raise ValueError(f"{root}: {found}; {what}")
    log.log(level(walked.left_out), "%s", walked.counted(root))
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if empty := [name for name in folders if name not in classes]:
        log.warning("%s: no class, since no image in it is read: %s", root, printable(", ".join(empty)))
    return classes


def walk(root, exclude=(), follow_links=False, deep=True):
    """The Walk of a folder and, if `deep`, of those in it.

    Images and videos are recognised by their suffix, those without one and .ts by their content. Left out are
    hidden and system files and folders, with all that is in them, and what matches a pattern of `exclude`: a
    name, or a path below the folder. With `follow_links` a link is read under its own name, unless it leads
    to a file or a folder that is read anyway, so links in a circle end."""
    walked = Walk({}, Counter({"excluded": 0} if exclude else {}), Counter(), set())
    patterns = [pattern.rstrip("/") for pattern in exclude]
    scanner = _Scanner(os.fspath(root), patterns, follow_links, deep, walked)
    scanner.enter("", os.stat(root))
    scanner.work()
    return walked._replace(files=dict(sorted(walked.files.items())))


class _Scanner:
    """The folders and links still to look at, and what is read already."""

    def __init__(self, root, exclude, follow_links, deep, walked):
        self.suffixes, self.heic = image_suffixes()
        self.root, self.exclude, self.deep, self.walked = root, exclude, deep, walked
        self.follow_links = follow_links
        self.folders, self.links = [], deque()
        self.read = set()  # (device, inode) of the folders and files that are read under their own name

    def work(self):
        """Folders first, so that a file is read under its own name and not under that of a link to it."""
        while self.folders or self.links:
            if self.folders:
                self.scan(*self.folders.pop())
            else:
                self.follow(self.links.popleft())

    def enter(self, path, stat, why=None):
        """Look at a folder later. `why` says why what is in it is left out, if so."""
        if why or self.is_new(stat):
            self.folders.append((path, why))
        else:
            self.leave_out(REPEATED)

    def is_new(self, stat):
        """Whether this folder or file is read for the first time."""
        place = (stat.st_dev, stat.st_ino)
        if not self.follow_links:  # then there is one way to each
            return True
        is_new = place not in self.read
        self.read.add(place)
        return is_new

    def scan(self, folder, why):
        """Take every entry of a folder, in the order of names; `why` is the reason to leave them all out."""
        try:
            entries = sorted(os.scandir(os.path.join(self.root, folder)), key=lambda entry: entry.name)
        except OSError as error:
            if not why:
                log.warning("passed over: %s", printable(str(error)))
            self.leave_out(why or "folders that cannot be read")
            return
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                self.place(entry, path, why or self.why_not(entry.name, path))
            except FileNotFoundError:  # deleted in between
                continue

    def why_not(self, name, path):
        """Why a path is left out for its name, or None."""
        if any(fnmatch(name, pattern) or fnmatch(path, pattern) for pattern in self.exclude):
            return "excluded"
        return why_passed_over(name)

    def place(self, entry, path, why):
        """Queue a folder or link; read or count a file."""
        if entry.is_symlink():
            if self.follow_links and not why:
                self.links.append(path)
            else:
                self.leave_out(why or LINKS)
        elif entry.is_dir():
            if self.deep:
                self.enter(path, os.stat(entry.path), why)
            else:
                self.leave_out("folders")
        elif why:
            self.leave_out(why)
        else:
            stat = os.stat(entry.path) if self.follow_links else entry.stat()
            self.is_new(stat)
            self.take(path, stat, entry.is_file())

    def follow(self, path):
        """Read what a link leads to."""
        target = os.path.join(self.root, path)
        try:
            stat = os.stat(target)
        except OSError:
            self.leave_out("broken links")
            return
        if os.path.isdir(target) and self.deep:
            self.enter(path, stat)
        elif os.path.isdir(target):
            self.leave_out("folders")
        elif (stat.st_dev, stat.st_ino) in self.read:
            self.leave_out(REPEATED)
        else:
            self.take(path, stat, os.path.isfile(target))

    def take(self, path, stat, is_file):
        """Read a file that is an image or a video, count another."""
        suffix = os.path.splitext(path)[1].lower()
        if suffix in self.heic:
            self.leave_out(HEIC)
        elif is_file and (kind := self.kind_of(path, suffix)):
            self.walked.files[path] = stat
            if kind == "video":
                self.walked.videos.add(path)
        else:
            self.leave_out(OTHERS)
            self.walked.suffixes[suffix or "without suffix"] += 1

    def kind_of(self, path, suffix):
        """What a file is: image, video, or None for another one."""
        if suffix in self.suffixes | VIDEO_SUFFIXES:
            return "video" if suffix in VIDEO_SUFFIXES else "image"
        path = os.path.join(self.root, path)
        try:
            if suffix in ("", ".ts") and is_video(path):
                return "video"
            return "image" if not suffix and format_of(path) else None
        except OSError:
            return None

    def leave_out(self, why):
        self.walked.left_out[why] += 1
