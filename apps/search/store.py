"""The index of a folder of images: one SQLite file that keeps what a model saw in each of them.

    found, others, links = scan("photos", {"JPEG", "PNG"}, print)     # {path in the folder (bytes): stamp}, two counts
    index = Index("index.sqlite", create=True)
    todo, gone = index.compare("photos", found)                       # paths that are new or changed, that are no longer there
    with index.db:                                                    # one transaction
        index.write(b"a.jpg", found[b"a.jpg"], sha256("photos/a.jpg"), row, sketch)
    ids, rows = index.blobs("row")                                    # list of N int, (N, D) float16

A stamp tells whether a file has changed without reading it; the SHA-256 of its content, whether it was seen under another name.
"""

import hashlib
import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

FORMAT = "vl-jepa search 1"
SCHEMA = """CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB);
CREATE TABLE images (id INTEGER PRIMARY KEY, path BLOB UNIQUE, stamp TEXT, digest BLOB, row BLOB, sketch BLOB);
CREATE INDEX digests ON images (digest);"""  # a file that can't be decoded has a stamp and no row
UPSERT = """INSERT INTO images (path, stamp, digest, row, sketch) VALUES (?, ?, ?, ?, ?) ON CONFLICT (path) DO UPDATE
SET stamp = excluded.stamp, digest = excluded.digest, row = excluded.row, sketch = excluded.sketch"""
SEEN = " seen "  # in the stamp of a young file


def sha256(path):
    """Of a file's content, 32 bytes."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).digest()


def times_of(stat):
    """Size, inode and times of an os.stat_result, as text."""
    return f"{stat.st_size} {stat.st_ino} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def stamp_of(stat):
    """What changes with the file. Within 2 s (the clock tick of FAT) a file can change again and keep its times, so the stamp of
    one that young, or of one from the future, equals no later stamp."""
    now = time.time_ns()
    young = f"{SEEN}{now}" if now - max(stat.st_mtime_ns, stat.st_ctime_ns) < 2e9 else ""
    return times_of(stat) + young


def scan(root, formats, report):
    """({path below root as bytes: stamp} of the files with a suffix of these `formats` of Pillow, number of other files, of symbolic
    links). Hidden names are left out, links are not followed: a photograph is indexed once, under its own name. `report` is given
    the OSError of each folder that can't be read."""
    from PIL import Image

    suffixes = {suffix.encode() for suffix, name in Image.registered_extensions().items() if name in formats}
    found, others, links, folders = {}, 0, 0, [b""]
    while folders:
        folder = folders.pop()
        try:
            entries = [
                entry
                for entry in os.scandir(os.path.join(os.fsencode(root), folder))
                if not entry.name.startswith(b".")
            ]
        except (PermissionError, FileNotFoundError) as error:
            report(error)
            continue
        for entry in entries:
            path = os.path.join(folder, entry.name)
            if entry.is_symlink():
                links += 1
            elif entry.is_dir():
                folders.append(path)
            elif entry.is_file() and os.path.splitext(entry.name)[1].lower() in suffixes:
                with suppress(FileNotFoundError):  # deleted meanwhile
                    found[path] = stamp_of(entry.stat())
            else:
                others += 1
    return found, others, links


class Index:
    """The index in the file `path`: `db` its connection, `meta` {key: bytes} what `put` had written when it was opened, `root` the
    folder's path, "" in a new one.

    Raises FileNotFoundError when there is none (unless `create`), ValueError for another kind of file or, unless `create`, an
    index of nothing, sqlite3.OperationalError where the file is locked, read-only or full."""

    def __init__(self, path, create=False):
        path = Path(path)
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        elif not path.is_file():
            raise FileNotFoundError(
                f"{path}: no index there; make one first (python -m apps.search index DIR), or name yours with --index"
            )
        self.db = sqlite3.connect(path, timeout=60)
        try:
            self.meta = self._read(create)
        except sqlite3.DatabaseError as error:
            self.close()
            if isinstance(error, sqlite3.OperationalError):  # locked, read-only, full
                raise
            raise ValueError(
                f"{path}: not an index of this program, or damaged ({error}); name another file with --index, "
                "or delete it and index again"
            ) from None
        self.root = os.fsdecode(self.meta.get("root", b""))
        if not create and not {"root", "model", "run", "complete"} <= set(self.meta):
            self.close()
            raise ValueError(f"{path}: nothing was indexed yet; python -m apps.search index DIR")

    def _read(self, create):
        self.db.execute("PRAGMA trusted_schema = OFF")  # nothing a stranger's file defines may call functions
        tables = {name for (name,) in self.db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables and create:
            self.db.executescript(
                f"PRAGMA page_size = 16384; BEGIN; {SCHEMA} INSERT INTO meta VALUES ('format', '{FORMAT}'); COMMIT;"
            )
            tables = {"meta", "images"}
        meta = (
            dict(self.db.execute("SELECT CAST(key AS TEXT), CAST(value AS BLOB) FROM meta"))
            if tables == {"meta", "images"}
            else {}
        )
        if meta.get("format") != FORMAT.encode():
            raise sqlite3.DatabaseError("another kind of file")
        return meta

    def close(self):
        self.db.close()

    def put(self, **values):
        """Keep text or bytes by name; `meta` has them when the index is opened next."""
        self.db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def compare(self, root, found):
        """(paths of `found` that are new or changed, sorted; indexed paths that are not in `found`). A file that was young at the last
        look and has kept its times is told by its content; once it is old it gets an old one's stamp, and is not read again."""
        known = self.db.execute("SELECT CAST(path AS BLOB), stamp, CAST(digest AS BLOB) FROM images")
        kept = {path: (str(stamp), digest) for path, stamp, digest in known}

        def same(path):
            digest = None  # which is also what is kept of a file that can't be read
            with suppress(OSError):
                digest = sha256(os.path.join(os.fsencode(root), path))
            return digest == kept[path][1]

        todo = {path for path, stamp in found.items() if path not in kept or kept[path][0] != stamp}
        doubtful = [
            path
            for path in todo & kept.keys()
            if kept[path][0].partition(SEEN)[0] == found[path].partition(SEEN)[0]
        ]
        with ThreadPoolExecutor() as pool:
            unchanged = {path for path, equal in zip(doubtful, pool.map(same, doubtful)) if equal}
        with self.db:
            old = [(found[path], path) for path in unchanged if SEEN not in found[path]]
            self.db.executemany("UPDATE images SET stamp = ? WHERE path = ?", old)
        return sorted(todo - unchanged), kept.keys() - found.keys()

    def write(self, path, stamp, digest, row, sketch):
        """Keep an image (bytes, str, and three of bytes), in the place of what is known under its path."""
        self.db.execute(UPSERT, (path, stamp, digest, row, sketch))

    def clear(self):
        """Forget all images."""
        self.db.execute("DELETE FROM images")

    def remove(self, paths):
        self.db.executemany("DELETE FROM images WHERE path = ?", [(path,) for path in paths])

    def digests(self):
        """The SHA-256 of every image that could be decoded, a set."""
        return {digest for (digest,) in self.db.execute("SELECT digest FROM images WHERE row IS NOT NULL")}

    def known(self, digest):
        """(row, sketch) of an image with this content; (None, None) when no such image could be decoded."""
        known = self.db.execute(
            "SELECT row, sketch FROM images WHERE digest = ? AND row IS NOT NULL", (digest,)
        )
        return known.fetchone() or (None, None)

    def identical(self):
        """Groups of ids of images with the same content, in the index's order."""
        same = {}
        for number, digest in self.db.execute(
            "SELECT id, CAST(digest AS BLOB) FROM images WHERE row IS NOT NULL ORDER BY id"
        ):
            same.setdefault(digest, []).append(number)
        return [group for group in same.values() if len(group) > 1]

    def paths(self, numbers, image_path):
        """The paths of images by their ids. An index may be a stranger's: `image_path` (folder, name) refuses what leads out of it."""
        name = "SELECT CAST(path AS BLOB) FROM images WHERE id = ?"
        return [
            image_path(self.root, os.fsdecode(self.db.execute(name, (number,)).fetchone()[0]))
            for number in numbers
        ]

    def count(self):
        """How many images could be decoded."""
        return self.db.execute("SELECT count(*) FROM images WHERE typeof(row) = 'blob'").fetchone()[0]

    def blobs(self, column, where="1"):
        """(ids, (N, D) float16): `column` ("row" or "sketch") of the images that have one, in the index's order; `where` is SQL.
        ValueError for rows of several widths."""
        import torch

        chosen = f"FROM images WHERE typeof({column}) = 'blob' AND {where}"
        count, width = self.db.execute(f"SELECT count(*), max(length({column})) {chosen}").fetchone()
        if not count:
            return [], torch.empty(0, 1, dtype=torch.float16)
        ids, flat = [], bytearray(count * width)
        for number, blob in self.db.execute(f"SELECT id, {column} {chosen} ORDER BY id LIMIT {count}"):
            if len(blob) != width or width % 2:
                raise ValueError(
                    f"the index is damaged: image {number} has {len(blob)} bytes, another {width}; delete it and index again"
                )
            flat[len(ids) * width : (len(ids) + 1) * width] = blob
            ids.append(number)
        del flat[len(ids) * width :]  # another program may have deleted some meanwhile
        return ids, torch.frombuffer(flat, dtype=torch.float16).view(len(ids), -1)
