"""The feature cache: rows of float16 in one SQLite file, each under a key of the tower and the content it
comes from.

    with opened(".cache/features.sqlite") as store:
        key = row_key(tower, content)            # 16 bytes
        store.put([key], rows)                   # (1, D), one transaction
        blobs = store.fetch([key])               # {key: bytes}, without rows under a wrong checksum
"""

import hashlib
import logging
import os
import sqlite3
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch

from models.files import YOUNG, sha256

log = logging.getLogger(__name__)
COUNT = struct.Struct("<H")  # of the tokens in a blob
KINDS = ("pooled", "places", "tokens")
SCHEMA = (
    "CREATE TABLE rows (key BLOB PRIMARY KEY, row BLOB, crc INTEGER)",
    "CREATE TABLE files (path TEXT PRIMARY KEY, stat TEXT, digest BLOB)",
)


def row_key(tower, content, view=0, frame=0, kind="pooled"):
    """16 bytes that name one row: the tower's key, the content (bytes), the number of the augmented view (0:
    none), the number of the video frame, and the kind of features, one of KINDS."""
    axes = struct.pack(">IQB", view, frame, KINDS.index(kind))
    tower_digest = hashlib.sha256(tower.key.encode()).digest()
    return hashlib.blake2b(content, digest_size=16, key=tower_digest, person=axes).digest()


def to_tensor(blobs, where):
    """The rows in a list of blobs as (N, D) float32. ValueError naming `where` for rows of several widths or
    not finite: their checksums are right, so this is no damage, and no tower gives such rows."""
    widths = {len(blob) for blob in blobs}
    if len(widths) == 1 and (width := min(widths)) and width % 2 == 0:
        rows = torch.frombuffer(bytearray().join(blobs), dtype=torch.float16).view(len(blobs), -1)
        if torch.isfinite(rows).all():
            return rows.float()
    raise ValueError(f"feature cache {where}: rows that no tower gives ({sorted(widths)} bytes); delete it")


def to_arrays(blobs):
    """A list of (T, D) float16 arrays that share the memory of blobs of `put_tokens`."""
    counts = [COUNT.unpack_from(blob)[0] for blob in blobs]
    return [np.frombuffer(blob, np.float16, offset=2).reshape(n, -1) for n, blob in zip(counts, blobs)]


def _float16(rows):
    """A tensor as an array of float16. ValueError for numbers that are not finite in it."""
    rows = rows.half().cpu()
    if not torch.isfinite(rows).all():
        raise ValueError("the tower gave non-finite features, in float16; its weights may be damaged")
    return rows.numpy()


@contextmanager
def opened(path):
    """The cache at `path`, or one in memory for None. What SQLite cannot do (full, locked, read-only) raises
    OSError naming the file."""
    try:
        with closing(FeatureCache(path)) as store:
            yield store
    except sqlite3.Error as error:
        raise OSError(f"feature cache {path}: {error}; what was encoded before is kept") from None


class FeatureCache:
    """Rows of float16 in one SQLite file, by 16-byte key. A damaged file is renamed, logged, and started
    again; a file that was never a feature cache raises ValueError and is left alone."""

    def __init__(self, path):
        self.path = Path(path) if path else None
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, full, read-only: not damage
                raise
            self.db.close()
            if self.path.suffix != ".sqlite":
                raise ValueError(
                    f"{self.path}: not a feature cache ({error}); name another file with --cache"
                ) from None
            aside = self.path.with_suffix(".damaged")
            log.warning("%s is damaged (%s): renamed to %s, encoding again", self.path, error, aside.name)
            os.replace(self.path, aside)
            self._open()

    def _open(self):
        self.db = sqlite3.connect(self.path or ":memory:", timeout=120)
        # A path with damaged bytes then counts as one that was not seen before.
        self.db.text_factory = lambda text: text.decode(errors="replace")
        found = {sql for (sql,) in self.db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
        if found and not found & set(SCHEMA):
            raise ValueError(
                f"{self.path}: a database, but not a feature cache; name another file with --cache"
            )
        if found - set(SCHEMA):  # a view or trigger would run untrusted SQL
            raise sqlite3.DatabaseError(
                f"it holds what no feature cache does: {min(found - set(SCHEMA))[:60]}"
            )
        for table in SCHEMA:
            self.db.execute(table.replace("TABLE", "TABLE IF NOT EXISTS"))
        if self.path and self.db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("quick_check failed")

    def close(self):
        self.db.close()

    def __contains__(self, key):
        return self.db.execute("SELECT 1 FROM rows WHERE key = ?", (key,)).fetchone() is not None

    def fetch(self, keys):
        """{key: blob} of the rows that are there. Damaged ones are left out and logged."""
        blobs = {}
        damaged = 0
        for key in dict.fromkeys(keys):
            found = self.db.execute("SELECT row, crc FROM rows WHERE key = ?", (key,)).fetchone()
            if found is None:
                continue
            row, crc = found
            if isinstance(row, bytes) and zlib.crc32(key + row) == crc:
                blobs[key] = row
            else:
                damaged += 1
        if damaged:
            log.warning("%s: %d damaged rows, encoding them again", self.path, damaged)
        return blobs

    def put(self, keys, rows):
        """Store rows (B, D) as float16 in one transaction; return {key: blob}. ValueError for rows that are
        not finite."""
        return self._put({key: row.tobytes() for key, row in zip(keys, _float16(rows))})

    def put_tokens(self, keys, states):
        """The same of a list of B (T, D). Their number T is before them, in two bytes."""
        pairs = zip(keys, map(_float16, states))
        return self._put({key: COUNT.pack(len(rows)) + rows.tobytes() for key, rows in pairs})

    def _put(self, blobs):
        with self.db:
            self.write(list(blobs), blobs.values())
        return blobs

    def write(self, keys, blobs):
        """Store blobs in the transaction that the caller began."""
        # The checksum covers the key too: a damaged index finds the row of another.
        checked = [(key, blob, zlib.crc32(key + blob)) for key, blob in zip(keys, blobs)]
        self.db.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", checked)

    def file_digests(self, paths, stamps, workers=None, progress=None):
        """The SHA-256 of each file, 32 bytes, or None for one that cannot be read. A file is read only when
        its stamp has changed since the last look. `progress(n)` is called after every n files."""
        names = [os.fsencode(path) for path in paths]
        known = [self._known_file(name) for name in names]
        digests = []
        for stamp, (stat, digest) in zip(stamps, known):
            digests.append(digest if stat == stamp and isinstance(digest, bytes) else None)
        new = [i for i, digest in enumerate(digests) if digest is None]
        if progress:
            progress(len(digests) - len(new))
        with ThreadPoolExecutor(workers) as pool:
            for batch in batched(new, 256):
                for i, digest in zip(batch, pool.map(_digest, [paths[i] for i in batch])):
                    digests[i] = digest
                # A young stamp matches no later one, so it is only worth storing with a new digest.
                read = [i for i in batch if digests[i]]
                changed = [i for i in read if YOUNG not in stamps[i] or known[i][1] != digests[i]]
                with self.db:
                    self.db.executemany(
                        "INSERT OR REPLACE INTO files VALUES (?, ?, ?)",
                        [(names[i], stamps[i], digests[i]) for i in changed],
                    )
                if progress:
                    progress(len(batch))
        return digests

    def _known_file(self, name):
        """(stamp, digest) as stored for a file, or (None, None)."""
        found = self.db.execute("SELECT stat, digest FROM files WHERE path = ?", (name,)).fetchone()
        return found or (None, None)


def _digest(path):
    """The SHA-256 of a file, 32 bytes; None when it cannot be read."""
    try:
        return bytes.fromhex(sha256(path))
    except OSError:
        return None


def batched(items, size):
    """A list in lists of `size`, the last one shorter."""
    return [items[i : i + size] for i in range(0, len(items), size)]
