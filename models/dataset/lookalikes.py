"""Where an image is that a file names otherwise.

names = Lookalikes("photos")
names.find("C:\\\\photos\\\\IMG_1.JPG")      # ("IMG_1.jpg", "the last part of the path")
"""

import os
import re
import unicodedata
from pathlib import Path, PurePath, PureWindowsPath

# COCO's releases name one image COCO_val2014_000000391895.jpg and val2017/000000391895.jpg; the id is unique.
COCO = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(?P<id>\d{12})\.jpg")
OF_COCO = re.compile(r"COCO_|(train|val|test|unlabeled)20\d\d/")  # twelve digits alone may be of any data set
# How a name may differ from that of the file.
CASE, UNICODE, ENDING = "another case", "another Unicode form", "another ending"
PATH, COCO_ID = "the last part of the path", "the same COCO id"


class Lookalikes:
    """The files of a folder, by names that say the same in another spelling. Each folder is listed once."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.listings = {}  # {folder: {plain name: name}}
        self.coco = None  # {id: name}

    def find(self, name):
        """(name of a file in the folder, how it differs), or None where there is no such file."""
        path = PureWindowsPath(name)  # \\ and / both separate
        parts = path.parts[bool(path.anchor) :]
        if found := self._same_id(name, path.name):
            return found, COCO_ID
        for first in range(len(parts)):
            found = self._walk(parts[first:])
            if found and (first or path.anchor or "\\" in name):
                return found, PATH
            if found:
                same = unicodedata.normalize("NFC", found) == unicodedata.normalize("NFC", name)
                return found, UNICODE if same else CASE
        for last in (f"{path.name}.*", f"{path.stem}.*"):
            if found := self._walk([*parts[:-1], last]):
                return found, ENDING
        return None

    def _walk(self, parts):
        """The name of the file that these parts lead to, whatever their case and Unicode form, or None."""
        found = []
        for part in parts:
            own = self._listing("/".join(found)).get(_plain(part))
            if own is None:
                return None
            found.append(own)
        name = "/".join(found)
        return name if os.path.isfile(self.folder / name) else None

    def _listing(self, folder):
        """{plain name: name} of the files in a folder, also with .* in place of the ending."""
        if folder not in self.listings:
            path = self.folder / folder
            names = sorted(os.listdir(path)) if path.is_dir() else []
            stems = {f"{_plain(PurePath(name).stem)}.*": name for name in names}
            self.listings[folder] = stems | {_plain(name): name for name in names}
        return self.listings[folder]

    def _same_id(self, name, last):
        """The name of the file with the COCO id of `name`, whose last part is `last`, or None."""
        wanted = COCO.fullmatch(last)
        if not wanted:
            return None
        if self.coco is None:
            self.coco = {}
            for folder, folders, files in os.walk(self.folder):
                folders.sort()
                for match in filter(None, map(COCO.fullmatch, sorted(files))):
                    path = Path(folder, match[0]).relative_to(self.folder)
                    self.coco.setdefault(match["id"], path.as_posix())
        found = self.coco.get(wanted["id"])
        return found if found and OF_COCO.search(f"{name} {found}") else None


def _plain(name):
    """A name without what spellings differ in: case and Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
