"""Run the frozen towers once.

    features = encode_archive(dataset, vision, text, cache="features.sqlite")
    features.image     (N, Dv) float32   one unit row an image
    features.text      (M, Dt) float32   one unit row a caption
    features.image_of  (M,)    int64     the image each caption describes

Rows are kept in one SQLite file under a key made of the tower (weights, preprocessing) and the content of the image file
or caption, so only what was never seen is encoded: a renamed, copied or touched image is not, a changed one is. Each batch
is one transaction, so a killed run keeps what it had done and two runs at once share the file.
"""

import hashlib
import os
import sqlite3
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tqdm import tqdm


class Features(NamedTuple):
    image: torch.Tensor  # (N, Dv) float32
    text: torch.Tensor  # (M, Dt) float32
    image_of: torch.Tensor  # (M,) int64

    def of(self, images):
        """The features of some images (a bool mask (N,)) and their captions, renumbered."""
        captions = images[self.image_of]
        return Features(self.image[images], self.text[captions], (images.cumsum(0) - 1)[self.image_of[captions]])


def encode_archive(dataset, vision, text, cache=".cache/features.sqlite", batch_size=32, workers=None, quiet=False):
    """Features of a VisionTextDataset; images that don't decode are reported together, before any tower runs.

    `vision` and `text` are encoder objects (`.key`, `.encode`, `.preprocess`); `cache=None` keeps nothing on disk.
    Rows are rounded to float16 with or without a cache, so both give the same features."""
    workers = workers or os.cpu_count()
    with closing(FeatureCache(cache)) as store:
        digests = store.file_digests([dataset.path(i) for i in range(len(dataset.image_names))], workers)
        parts = getattr(vision, "parts", None) or [vision]  # joined towers are kept apart, so each is reused alone
        unseen = [i for i in range(len(digests)) if any(_key(part, digests[i]) not in store for part in parts)]
        bad = dataset.find_damaged(unseen, workers)
        digests = [d for d, name in zip(digests, dataset.image_names) if name not in bad]
        dataset.drop(bad)

        columns = []
        for part in parts:

            def image_rows(images, part=part):
                with ThreadPoolExecutor(workers) as pool:
                    load = lambda batch: [pool.submit(dataset.pixels, i, part.preprocess) for i in batch]  # noqa: E731
                    batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
                    ahead = load(batches[0]) if batches else []
                    for n, batch in enumerate(batches):  # the next batch is decoded while this one is encoded
                        pixels, ahead = torch.stack([f.result() for f in ahead]), load(batches[n + 1]) if n + 1 < len(batches) else []
                        yield batch, part.encode(pixels)

            keys = [_key(part, digest) for digest in digests]
            columns.append(store.rows(keys, image_rows, f"images, {part.name}", quiet))
        image = F.normalize(torch.cat(columns, dim=1), dim=-1)

        rows = _caption_rows(store, dataset.captions, text, quiet)
        return Features(image, rows, torch.tensor(dataset.image_of))


def encode_captions(captions, text, cache=".cache/features.sqlite", quiet=False):
    """(len(captions), Dt) float32 unit rows, equal to those `encode_archive` gives and from the same cache."""
    with closing(FeatureCache(cache)) as store:
        return _caption_rows(store, captions, text, quiet)


def _caption_rows(store, captions, text, quiet):
    def encode(unseen):
        unseen = sorted(unseen, key=lambda i: len(captions[i]), reverse=True)  # alike lengths, little padding
        for i in range(0, len(unseen), 512):
            yield unseen[i : i + 512], text.encode([captions[c] for c in unseen[i : i + 512]])

    keys = [_key(text, caption.encode()) for caption in captions]
    return F.normalize(store.rows(keys, encode, f"captions, {text.name}", quiet), dim=-1)


def _key(tower, content):
    return hashlib.blake2b(content, digest_size=16, key=hashlib.sha256(tower.key.encode()).digest()).digest()


class FeatureCache:
    """Rows of float16 in one SQLite file, by 16-byte key. A damaged file is renamed aside, named on screen, and begun anew."""

    def __init__(self, path):
        self.path = Path(path) if path else None
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
            if self.path and self.db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("quick_check failed")
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # locked, full, read-only: not damage
                raise OSError(f"feature cache {self.path}: {error}") from None
            aside = self.path.with_suffix(".damaged")
            print(f"{self.path} is damaged ({error}): moved to {aside.name}, encoding anew")
            self.db.close()
            os.replace(self.path, aside)
            self._open()

    def _open(self):
        self.db = sqlite3.connect(self.path or ":memory:", timeout=120)
        self.db.text_factory = lambda text: text.decode(errors="replace")  # a damaged path is one not seen before
        self.db.execute("CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, row BLOB, crc INTEGER)")
        self.db.execute("CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, stat TEXT, digest BLOB)")

    def close(self):
        self.db.close()

    def __contains__(self, key):
        return self.db.execute("SELECT 1 FROM rows WHERE key = ?", (key,)).fetchone() is not None

    def file_digests(self, paths, workers):
        """SHA-256 of each file; read from disk only when its size, inode or a time stamp changed since the last look."""

        def stamp(path):
            s = path.stat()
            return f"{s.st_size} {s.st_ino} {s.st_mtime_ns} {s.st_ctime_ns}"

        def digest(path):
            return hashlib.sha256(path.read_bytes()).digest()

        known = {path: (stat, d) for path, stat, d in self.db.execute("SELECT path, stat, digest FROM files")}
        stamps = [stamp(path) for path in paths]  # taken before the read: a file that changes in between is read again next time
        new = [i for i, path in enumerate(paths) if known.get(os.fsencode(path), ("",))[0] != stamps[i]]
        with ThreadPoolExecutor(workers) as pool, self.db:
            found = dict(zip(new, pool.map(lambda i: digest(paths[i]), new)))
            seen = [(os.fsencode(paths[i]), stamps[i], d) for i, d in found.items()]
            self.db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", seen)
        return [found[i] if i in found else known[os.fsencode(path)][1] for i, path in enumerate(paths)]

    def rows(self, keys, encode, what, quiet=False):
        """(len(keys), D) float32. Those not in the cache come from `encode(indices)`, which yields (indices, rows (B, D))
        batch by batch; each batch is stored before the next is asked for."""
        blobs, damaged = {}, 0
        for key in dict.fromkeys(keys):
            found = self.db.execute("SELECT row, crc FROM rows WHERE key = ?", (key,)).fetchone()
            if found and zlib.crc32(key + found[0]) == found[1]:
                blobs[key] = found[0]
            damaged += bool(found) and key not in blobs
        if damaged:
            print(f"{self.path}: {damaged} damaged rows ({what}), encoding them anew")
        first = {key: i for i, key in reversed(list(enumerate(keys)))}  # the same content twice is encoded once
        todo = [i for key, i in first.items() if key not in blobs]
        with tqdm(total=len(todo), desc=what, unit="", disable=quiet or not todo) as bar:
            for indices, rows in encode(todo) if todo else ():
                if not torch.isfinite(rows).all():
                    raise ValueError(f"the tower gave non-finite features ({what}); its weights may be damaged")
                new = {keys[i]: row.tobytes() for i, row in zip(indices, rows.half().cpu().numpy())}
                try:
                    with self.db:
                        checked = [(k, b, zlib.crc32(k + b)) for k, b in new.items()]  # with the key: a damaged index finds another's row
                        self.db.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", checked)
                except sqlite3.OperationalError as error:
                    raise OSError(f"feature cache {self.path}: {error}; what was encoded before is kept") from None
                blobs |= new
                bar.update(len(indices))
        flat = bytearray().join(blobs[key] for key in keys)
        return torch.frombuffer(flat, dtype=torch.float16).view(len(keys), -1).float()
