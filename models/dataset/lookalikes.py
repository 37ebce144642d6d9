"""Where an image is that a file names otherwise.

names = Lookalikes("photos")
names.find("C:\\\\photos\\\\IMG_1.JPG")      # ("IMG_1.jpg", "the last part of the path")
"""

import os
import re
import unicodedata
from pathlib import Path, PureWindowsPath

# COCO's releases name one image COCO_val2014_000000391895.jpg and 000000391895.jpg; the id is unique in all.
COCO = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(?P<id>\d{12})\.jpg")
# How a name may differ from that of the file.
CASE, UNICODE = "another case", "another Unicode form"
PATH, RELEASE = "the last part of the path", "COCO's other file name"


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
        for first in range(len(parts)):
            found = self._walk(parts[first:])
            if found and (first or path.anchor or "\\" in name):
                return found, PATH
            if found:
                same = unicodedata.normalize("NFC", found) == unicodedata.normalize("NFC", name)
                return found, UNICODE if same else CASE
        return self._other_release(path.name)

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
        if folder not in self.listings:
            path = self.folder / folder
            names = os.listdir(path) if path.is_dir() else []
            self.listings[folder] = {_plain(name): name for name in sorted(names)}
        return self.listings[folder]

    def _other_release(self, name):
        wanted = COCO.fullmatch(name)
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
        # Twelve digits alone may be a name of any data set.
        return (found, RELEASE) if found and "COCO_" in found + name else None


def _plain(name):
    """A name without what spellings differ in: case and Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
