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
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from tqdm import tqdm

from .cache import batched, opened, sha256_of, stamp_of

__all__ = ["Features", "encode_archive", "encode_captions"]


class Features(NamedTuple):
    image: torch.Tensor  # (N, Dv) float32
    text: torch.Tensor  # (M, Dt) float32
    image_of: torch.Tensor  # (M,) int64

    def of(self, images):
        """The features of some images (a bool mask (N,)) and their captions, renumbered."""
        captions = images[self.image_of]
        return Features(
            self.image[images], self.text[captions], (images.cumsum(0) - 1)[self.image_of[captions]]
        )


def encode_archive(
    dataset, vision, text, cache=".cache/features.sqlite", batch_size=32, workers=None, quiet=False
):
    """Features of a VisionTextDataset; images that don't decode are reported together, before any tower runs.

    `vision` and `text` are encoder objects (`.key`, `.encode`, `.preprocess`); `cache=None` keeps nothing on disk.
    Rows are rounded to float16 with or without a cache, so both give the same features."""
    workers = workers or os.cpu_count()
    with opened(cache) as store:
        paths = [dataset.path(i) for i in range(len(dataset.image_names))]
        stamps = [
            stamp_of(path) for path in paths
        ]  # taken before the read: a file that changes in between is read again next time
        digests = store.file_digests(paths, stamps, workers, quiet)
        parts = getattr(vision, "parts", None) or [
            vision
        ]  # joined towers are kept apart, so each is reused alone
        unseen = [
            i for i in range(len(digests)) if any(_key(part, digests[i]) not in store for part in parts)
        ]
        bad = {}
        with tqdm(total=len(unseen), desc="images, checked", unit="", disable=quiet or not unseen) as bar:
            for batch in batched(unseen, 256):
                bad |= dataset.find_damaged(batch, workers)
                bar.update(len(batch))
        good = [i for i, name in enumerate(dataset.image_names) if name not in bad]
        paths, stamps, digests = ([column[i] for i in good] for column in (paths, stamps, digests))
        dataset.drop(bad)

        columns = []
        for part in parts:

            def image_rows(images, part=part):
                """(images, their rows of one tower) batch by batch."""
                with ThreadPoolExecutor(workers) as pool:
                    load = lambda batch: [pool.submit(dataset.pixels, i, part.preprocess) for i in batch]  # noqa: E731
                    batches = batched(images, batch_size)
                    ahead = load(batches[0]) if batches else []
                    for n, batch in enumerate(batches):  # the next batch is decoded while this one is encoded
                        pixels, ahead = (
                            torch.stack([f.result() for f in ahead]),
                            load(batches[n + 1]) if n + 1 < len(batches) else [],
                        )
                        rows = part.encode(pixels)
                        for i in batch:  # a row stands under the digest of what was read at first
                            if stamp_of(paths[i]) != stamps[i] and sha256_of(paths[i]) != digests[i]:
                                raise ValueError(
                                    f"{paths[i]}: changed while it was encoded; run the same line again"
                                )
                        yield batch, rows

            keys = [_key(part, digest) for digest in digests]
            columns.append(store.rows(keys, image_rows, f"images, {part.name}", quiet))
        image = _unit(torch.cat(columns, dim=1) if len(columns) > 1 else columns[0])
        return Features(
            image, _caption_rows(store, dataset.captions, text, quiet), torch.tensor(dataset.image_of)
        )


def encode_captions(captions, text, cache=".cache/features.sqlite", quiet=False):
    """(len(captions), Dt) float32 unit rows, equal to those `encode_archive` gives and from the same cache."""
    with opened(cache) as store:
        return _caption_rows(store, captions, text, quiet)


def _caption_rows(store, captions, text, quiet):
    def encode(unseen):
        unseen = sorted(unseen, key=lambda i: len(captions[i]), reverse=True)  # alike lengths, little padding
        for batch in batched(unseen, 512):
            yield batch, text.encode([captions[i] for i in batch])

    keys = [_key(text, caption.encode()) for caption in captions]
    return _unit(store.rows(keys, encode, f"captions, {text.name}", quiet))


def _unit(rows):
    """F.normalize in place: of 100,000 captions a copy is 150 MB."""
    return rows.div_(rows.norm(dim=-1, keepdim=True).clamp_min_(1e-12))


def _key(tower, content):
    return hashlib.blake2b(content, digest_size=16, key=hashlib.sha256(tower.key.encode()).digest()).digest()
