"""The feature cache: rows of float16 in one SQLite file, each under a key of what it was made from and by."""

import hashlib
import os
import sqlite3
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

SCHEMA = (
    "CREATE TABLE rows (key BLOB PRIMARY KEY, row BLOB, crc INTEGER)",
    "CREATE TABLE files (path TEXT PRIMARY KEY, stat TEXT, digest BLOB)",
)


@contextmanager
def opened(path):
    """The cache at `path`; what SQLite can't do (full, locked, read-only) becomes an OSError that names the file."""
    try:
        with closing(FeatureCache(path)) as store:
            yield store
    except sqlite3.Error as error:
        raise OSError(f"feature cache {path}: {error}; what was encoded before is kept") from None


class FeatureCache:
    """Rows of float16 in one SQLite file, by 16-byte key. A damaged file is renamed aside, named on screen, and begun anew; a file
    that was never a feature cache is refused with a ValueError and left alone."""

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
            print(f"{self.path} is damaged ({error}): moved to {aside.name}, encoding anew")
            os.replace(self.path, aside)
            self._open()

    def _open(self):
        self.db = sqlite3.connect(self.path or ":memory:", timeout=120)
        self.db.text_factory = lambda text: text.decode(
            errors="replace"
        )  # a damaged path is one not seen before
        found = {sql for (sql,) in self.db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
        if found and not found & set(SCHEMA):
            raise ValueError(
                f"{self.path}: a database, but not a feature cache; name another file with --cache"
            )
        if found - set(SCHEMA):  # a view or trigger would run a stranger's SQL
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

    def file_digests(self, paths, stamps, workers, quiet=False):
        """SHA-256 of each file; read from disk only when its stamp changed since the last look."""
        known = {
            path: (stamp, digest)
            for path, stamp, digest in self.db.execute("SELECT path, stat, digest FROM files")
        }
        digests = [
            d if s == stamp and isinstance(d, bytes) else None
            for path, stamp in zip(paths, stamps)
            for s, d in [known.get(os.fsencode(path), (None, None))]
        ]
        new = [i for i, digest in enumerate(digests) if digest is None]
        with (
            tqdm(total=len(new), desc="image files", unit="", disable=quiet or not new) as bar,
            ThreadPoolExecutor(workers) as pool,
        ):
            for batch in batched(new, 256):
                for i, digest in zip(batch, pool.map(lambda i: sha256_of(paths[i]), batch)):
                    digests[i] = digest
                seen = [(os.fsencode(paths[i]), stamps[i], digests[i]) for i in batch]
                news = [
                    row for row in seen if " seen " not in row[1] or known.get(row[0], ("", ""))[1] != row[2]
                ]
                with self.db:
                    self.db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", news)
                bar.update(len(batch))
        return digests

    def rows(self, keys, encode, what, quiet=False):
        """(len(keys), D) float32. Those not in the cache come from `encode(indices)`, which yields (indices, rows (B, D))
        batch by batch; each batch is stored before the next is asked for."""
        blobs, damaged = {}, 0
        for key in dict.fromkeys(keys):
            found = self.db.execute("SELECT row, crc FROM rows WHERE key = ?", (key,)).fetchone()
            if found and isinstance(found[0], bytes) and zlib.crc32(key + found[0]) == found[1]:
                blobs[key] = found[0]
            damaged += bool(found) and key not in blobs
        if damaged:
            print(f"{self.path}: {damaged} damaged rows ({what}), encoding them anew")
        first = {
            key: i for i, key in reversed(list(enumerate(keys)))
        }  # the same content twice is encoded once
        todo = [i for key, i in first.items() if key not in blobs]
        with tqdm(total=len(todo), desc=what, unit="", disable=quiet or not todo) as bar:
            for indices, rows in encode(todo) if todo else ():
                if not torch.isfinite(rows).all():
                    raise ValueError(
                        f"the tower gave non-finite features ({what}); its weights may be damaged"
                    )
                new = {keys[i]: row.tobytes() for i, row in zip(indices, rows.half().cpu().numpy())}
                with self.db:
                    checked = [
                        (k, b, zlib.crc32(k + b)) for k, b in new.items()
                    ]  # with the key: a damaged index finds another's row
                    self.db.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", checked)
                blobs |= new
                bar.update(len(indices))
        widths = {len(blob) for blob in blobs.values()}
        whole = len(widths) == 1 and min(widths) and not min(widths) % 2
        rows = (
            torch.frombuffer(bytearray().join(blobs[key] for key in keys), dtype=torch.float16).view(
                len(keys), -1
            )
            if whole
            else None
        )
        if (
            not whole or not torch.isfinite(rows).all()
        ):  # under right checksums: not damage, but somebody's making
            raise ValueError(
                f"feature cache {self.path}: holds rows that no tower gives ({what}, {sorted(widths)} bytes); delete it"
            )
        return rows.float()


def sha256_of(path):
    """SHA-256 of a file, as bytes."""
    return hashlib.sha256(path.read_bytes()).digest()


def stamp_of(path):
    """What changes with the file. Within 2 s (the clock tick of FAT) a file can change again and keep its times, so the stamp of
    one that young, or of one from the future, equals no later stamp."""
    s, now = path.stat(), time.time_ns()
    young = f" seen {now}" if now - max(s.st_mtime_ns, s.st_ctime_ns) < 2e9 else ""
    return f"{s.st_size} {s.st_ino} {s.st_mtime_ns} {s.st_ctime_ns}{young}"


def batched(items, size):
    """A list in lists of `size`, the last one shorter."""
    return [items[i : i + size] for i in range(0, len(items), size)]
