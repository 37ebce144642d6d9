"""The index of a folder of images and videos: one SQLite file with the embedding of each image and of some
frames of each video.

    with opened("index.sqlite", create=True) as store:
        todo, gone = store.compare("photos", {b"a.jpg": stamp("photos/a.jpg")})
        with store.db:                               # one transaction
            store.write(b"a.jpg", stamp, digest, row, sketch)
        ids, rows = store.rows()                     # list of N int, (N, D) float16

Paths are bytes, relative to the folder. A stamp shows whether a file has changed without reading it. Where a
stamp cannot, the SHA-256 of the content does.
"""

import logging
import os
import shlex
import sqlite3
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from models.files import YOUNG, printable, relative, sha256

log = logging.getLogger(__name__)
DEFAULT = ".cache/search.sqlite"
FORMAT = "vl-jepa search 4"
OLD = ("vl-jepa search 1", "vl-jepa search 2", "vl-jepa search 3")
# An image that cannot be decoded has a stamp and no row. `digest` is the hex SHA-256. The row of a video is
# those of its frames in a line, and `times` their times as float64; NULL for an image. `taken` is what
# `date_of` gives.
SCHEMA = """CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB);
CREATE TABLE images (id INTEGER PRIMARY KEY, path BLOB UNIQUE, stamp TEXT, digest TEXT, row BLOB,
sketch BLOB, times BLOB, taken TEXT);
CREATE INDEX digests ON images (digest);"""
UPSERT = """INSERT INTO images (path, stamp, digest, row, sketch, times, taken) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (path) DO UPDATE SET stamp = excluded.stamp, digest = excluded.digest, row = excluded.row,
sketch = excluded.sketch, times = excluded.times, taken = excluded.taken"""
FRAMES = "CASE WHEN typeof(times) = 'blob' THEN max(1, length(times) / 8) ELSE 1 END"  # rows of an image


def shown(path):
    """A path relative to the current folder, fit for a terminal."""
    return printable(relative(path))


@contextmanager
def opened(path=DEFAULT, create=False):
    """The Index in the file `path`, closed when the block ends. What SQLite cannot do there (locked, full,
    read-only, damaged) raises OSError naming the file; see Index for the rest."""
    try:
        with closing(Index(path, create)) as store:
            yield store
    except sqlite3.Error as error:
        raise OSError(f"{path}: {error}; if no other program uses it, delete it and index again") from None


class Index:
    """`path` is its file, `db` the connection, `meta` what `put` has stored ({str: str}),
    `root` the indexed folder, "" in a new index.

    Raises FileNotFoundError when there is no such file (unless `create`) and ValueError for a file of another
    kind, for an index of an older format and, unless `create`, for one in which nothing was ever indexed."""

    def __init__(self, path, create=False):
        self.path = Path(path)
        if create:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        elif not self.path.is_file():
            raise FileNotFoundError(
                f"{path}: no index there; python -m apps.search index DIR makes one, --index names yours"
            )
        self.db = sqlite3.connect(path, timeout=60)
        try:
            self.meta = self._read(create)
            self.root = self.meta.get("root", "")
            if not create and not {"root", "model", "run", "complete"} <= set(self.meta):
                raise ValueError(f"{path}: nothing was indexed yet; python -m apps.search index DIR")
        except BaseException:
            self.close()
            raise

    def _read(self, create):
        try:
            self.db.execute("PRAGMA trusted_schema = OFF")  # an untrusted schema may not call functions
            names = self.db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {name for (name,) in names}
            if not tables and create:
                first = f"INSERT INTO meta VALUES ('format', '{FORMAT}');"
                self.db.executescript(f"PRAGMA page_size = 16384; BEGIN; {SCHEMA} {first} COMMIT;")
                tables = {"meta", "images"}
            if tables != {"meta", "images"}:
                raise sqlite3.DatabaseError("it has other tables")
            pairs = self.db.execute("SELECT CAST(key AS TEXT), CAST(value AS BLOB) FROM meta")
            meta = {key: os.fsdecode(value or b"") for key, value in pairs}
            if meta.get("format") not in (FORMAT, *OLD):
                raise sqlite3.DatabaseError(f"its format is {meta.get('format')!r}, not {FORMAT!r}")
        except sqlite3.OperationalError:  # locked, read-only, full: no damage
            raise
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self.path}: not an index of this program, or damaged ({error}); name another file with "
                "--index, or delete it and index again"
            ) from None
        if meta["format"] in OLD:
            raise ValueError(f"{self.path}: an index of an older version; delete it and index again")
        return meta

    def close(self):
        self.db.close()

    def put(self, **values):
        """Store text or bytes by name, where they differ from what `meta` holds."""
        new = {name: value for name, value in values.items() if self.meta.get(name) != os.fsdecode(value)}
        self.db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", new.items())
        self.meta |= {name: os.fsdecode(value) for name, value in new.items()}

    def compare(self, root, found):
        """(paths of `found` {path: stamp} that are new or changed, sorted; indexed paths not in `found`).

        A file that was young at the last look and has kept its times is compared by content. When it is
        unchanged and no longer young it gets its lasting stamp, and is not read again."""
        images = self.db.execute("SELECT CAST(path AS BLOB), CAST(stamp AS TEXT), digest FROM images")
        known = {path: (stamp or "", digest) for path, stamp, digest in images}
        todo = {path for path, stamp in found.items() if path not in known or known[path][0] != stamp}
        times = {path: known[path][0].partition(YOUNG)[0] for path in todo & known.keys()}
        doubtful = [path for path in times if times[path] == found[path].partition(YOUNG)[0]]
        with ThreadPoolExecutor() as pool:
            digests = pool.map(_digest, [os.path.join(os.fsencode(root), path) for path in doubtful])
            same = {path for path, digest in zip(doubtful, digests) if digest == known[path][1]}
        with self.db:
            lasting = [(found[path], path) for path in same if YOUNG not in found[path]]
            self.db.executemany("UPDATE images SET stamp = ? WHERE path = ?", lasting)
        return sorted(todo - same), known.keys() - found.keys()

    def recognise(self, root, todo, found, gone):
        """{path of `todo`: the indexed path whose content it holds}, which is its own or one of `gone`. Only
        files of the size of such an image are read."""
        query = "SELECT path, CAST(stamp AS TEXT), digest FROM images WHERE typeof(path) = 'blob'"
        images = self.db.execute(query)
        known = {path: (_size(stamp), digest) for path, stamp, digest in images if digest}
        left = {}  # {digest: paths of `gone`}
        for path in sorted(gone & known.keys()):
            left.setdefault(known[path][1], []).append(path)
        sizes = {known[path][0] for path in gone & known.keys()}
        own = {path: known.get(path, (None, None)) for path in todo}
        asked = [path for path in todo if _size(found[path]) in sizes | {own[path][0]}]
        same = {}
        with ThreadPoolExecutor() as pool:
            digests = pool.map(_digest, [os.path.join(os.fsencode(root), path) for path in asked])
            for path, digest in zip(asked, digests):
                if digest and digest == own[path][1]:
                    same[path] = path
                elif sources := left.get(digest):
                    same[path] = sources.pop() if len(sources) > 1 else sources[0]
        return same

    def move(self, same, found):
        """Store each path of `same` {path: indexed path} with what is known of the indexed one."""
        query = "SELECT digest, row, sketch, times, taken FROM images WHERE path = ?"
        for path, source in same.items():
            self.write(path, found[path], *self.db.execute(query, (source,)).fetchone())

    def write(self, path, stamp, digest, row, sketch, times=None, taken=None):
        """Store an image or video in place of what is known of this path. `row`, `sketch` and `times` are
        bytes or None, `taken` is what `date_of` gives."""
        self.db.execute(UPSERT, (path, stamp, digest, row, sketch, times, taken))

    def forget_videos(self):
        """Have all videos indexed again."""
        self.db.execute("UPDATE images SET stamp = '', digest = NULL WHERE times IS NOT NULL")

    def clear(self):
        """Remove all images."""
        self.db.execute("DELETE FROM images")

    def remove(self, paths):
        self.db.executemany("DELETE FROM images WHERE path = ?", [(path,) for path in paths])

    def identical(self):
        """Groups of ids of images with the same content, in the order of the index."""
        same = {}
        decoded = "SELECT id, digest FROM images WHERE row IS NOT NULL ORDER BY id"
        for number, digest in self.db.execute(decoded):
            same.setdefault(digest, []).append(number)
        return [group for group in same.values() if len(group) > 1]

    def paths(self, numbers):
        """The path of each image by its id. ValueError for one that leads out of the indexed folder: an index
        may come from somebody else."""
        from models.dataset import image_path

        query = "SELECT CAST(path AS BLOB) FROM images WHERE id = ?"
        names = [self.db.execute(query, (number,)).fetchone()[0] for number in numbers]
        follow_links = bool(self.meta.get("follow_links"))
        return [image_path(self.root, os.fsdecode(name), follow_links) for name in names]

    def number(self, path):
        """The id of the image at `path`, which may be relative to the folder. ValueError for a file that is
        not in the index."""
        name = os.fsencode(os.path.relpath(os.path.join(self.root, path), self.root))
        found = self.db.execute(
            "SELECT id FROM images WHERE path = ? AND row IS NOT NULL", (name,)
        ).fetchone()
        if not found:
            raise ValueError(f"{os.fsdecode(name)}: is not an image of this index")
        return found[0]

    def all_paths(self):
        """The path of each image, also of damaged ones, as bytes."""
        root = os.fsencode(self.root)
        found = self.db.execute("SELECT CAST(path AS BLOB) FROM images")
        return [os.path.join(root, path) for (path,) in found]

    def report_gone(self, gone, left):
        """Log how many files that would be shown are gone, if any. ValueError when none of them is `left`."""
        if not gone:
            return
        advice = f"index again: python -m apps.search index {shlex.quote(shown(self.root))}"
        what = f"{self.path}: {len(gone):,} images that match are gone, such as {shown(gone[0])}"
        if not left:
            raise ValueError(f"{what}; {advice}")
        log.warning("note: %s; %s", what, advice)

    def count(self):
        """How many images and videos have a row, that is, could be decoded."""
        return self.db.execute("SELECT count(*) FROM images WHERE typeof(row) = 'blob'").fetchone()[0]

    def between(self, after, before):
        """(ids, how many of them are dated by the time of their file) of the images taken at `after` or later
        and earlier than `before`, by local time. Both are beginnings of "2024-05-31 18:30:05", or None.
        ValueError for a damaged stamp."""
        columns = "id, CAST(taken AS TEXT), CAST(stamp AS TEXT)"
        ids, by_file = set(), 0
        for number, taken, stamp in self.db.execute(
            f"SELECT {columns} FROM images WHERE row IS NOT NULL AND stamp != ''"
        ):
            date = taken or self._file_date(stamp)
            if (after or "") <= date and (before is None or date < before):
                ids.add(number)
                by_file += not taken
        return ids, by_file

    def _file_date(self, stamp):
        """When a file was changed, as its stamp has it: "2024-05-31 18:30:05", local time."""
        try:
            return str(datetime.fromtimestamp(int(stamp.split()[2]) // 10**9))
        except (LookupError, ValueError, OverflowError, OSError):
            wrong = f"{stamp!r} is no stamp of a file"
            raise ValueError(f"{self.path}: damaged, {wrong}; delete it and index again") from None

    def frames(self):
        """(how many rows there are, the most of one video)."""
        query = f"SELECT total({FRAMES}), max({FRAMES}) FROM images WHERE typeof(row) = 'blob'"
        total, most = self.db.execute(query).fetchone()
        return int(total), most or 1

    def time(self, number, frame):
        """The time of a frame of a video, in seconds; None for an image."""
        (times,) = self.db.execute("SELECT times FROM images WHERE id = ?", (number,)).fetchone()
        if not isinstance(times, bytes) or len(times) < 8 * (frame + 1):
            return None
        return struct.unpack_from("d", times, 8 * frame)[0]

    def rows(self, where="1"):
        """(ids, (N, D) float16): the rows of all images and of the frames of all videos, by id. `where` is
        SQL. ValueError for rows of several widths."""
        return self._blobs("row", FRAMES, where)

    def sketches(self, where="1"):
        """(ids, (N, D) float16): one sketch for each image and video, by id, as `rows`."""
        return self._blobs("sketch", "1", where)

    def _blobs(self, column, frames, where):
        import torch

        chosen = f"FROM images WHERE typeof({column}) = 'blob' AND {where}"
        query = f"SELECT count(*), total({frames}), max(length({column}) / {frames}) {chosen}"
        count, total, width = self.db.execute(query).fetchone()
        if not count:
            return [], torch.empty(0, 1, dtype=torch.float16)
        ids = []
        flat = bytearray(int(total) * width)
        query = f"SELECT id, {frames}, {column} {chosen} ORDER BY id LIMIT {count}"
        for number, rows, blob in self.db.execute(query):
            if len(blob) != rows * width or width % 2:
                sizes = f"image {number} has {len(blob)} bytes, another {width}"
                raise ValueError(f"{self.path}: damaged, {sizes}; delete it and index again")
            flat[len(ids) * width : (len(ids) + rows) * width] = blob
            ids += [number] * rows
        del flat[len(ids) * width :]  # another program may have deleted some in between
        return ids, torch.frombuffer(flat, dtype=torch.float16).view(len(ids), -1)


def _size(stamp):
    """The size of a file as the stamp of it has it."""
    return (stamp or "").partition(" ")[0]


def _digest(path):
    """The SHA-256 of a file, or None, which is also what is stored for a file that cannot be read."""
    with suppress(OSError):
        return sha256(path)
