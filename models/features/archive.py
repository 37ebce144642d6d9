"""Images and texts through the towers, with the feature cache in between."""

from typing import NamedTuple

import torch
from tqdm import tqdm

from models.dataset import check_file, open_frames
from models.files import sha256, stamp

from .ahead import encode_ahead
from .cache import batched, opened, row_key, to_tensor


class Features(NamedTuple):
    """What the towers say of a data set. The optional fields are for questions: None where every row is a
    caption."""

    image: torch.Tensor  # (N, Dv) float32
    text: torch.Tensor  # (M, Dt) float32
    image_of: torch.Tensor  # (M,) int64
    places: torch.Tensor | None = None  # (N, P, Dp) float16, local features of each image
    question: torch.Tensor | None = None  # (K, Dt) float32
    question_of: torch.Tensor | None = None  # (M,) int64, -1 for a caption

    def of(self, images):
        """The features of some images (a bool mask (N,)) and their texts, renumbered."""
        texts = images[self.image_of]
        return Features(
            self.image[images],
            self.text[texts],
            (images.cumsum(0) - 1)[self.image_of[texts]],
            self.places if self.places is None else self.places[images],
            self.question,
            self.question_of if self.question_of is None else self.question_of[texts],
        )


class Encoded(NamedTuple):
    path: object
    digest: str | None  # SHA-256 of the content, 64 hex digits; None when it cannot be read or changes
    row: torch.Tensor | None  # (dim,) float32 unit row; None for a file that is no image or damaged
    error: str | None  # why there is no row; copies of a damaged file name one of them


def encode_archive(
    dataset, vision, text, cache=".cache/features.sqlite", batch_size=32, workers=None, quiet=False
):
    """Features of a VisionTextDataset. Images that do not decode are reported together, before any tower
    runs.

    `cache=None` keeps nothing on disk. Rows are rounded to float16 with or without a cache, so both give the
    same features. Raises ValueError for bad images (`dataset.skip_bad` drops them instead) and for an image
    that changes meanwhile."""
    with opened(cache) as store:
        paths = [dataset.path(i) for i in range(len(dataset.image_names))]
        stamps = [stamp(path) for path in paths]  # before the files are read: a later change is then noticed
        with _bar(len(paths), "image files", quiet) as bar:
            digests = store.file_digests(paths, stamps, workers, bar.update)
        unseen = [
            i for i, digest in enumerate(digests) if not digest or not _is_stored(store, vision, digest)
        ]
        bad = {}
        with _bar(len(unseen), "images, checked", quiet) as bar:
            for batch in batched(unseen, 256):
                bad |= dataset.find_damaged(batch, workers)
                bar.update(len(batch))
        files = list(zip(paths, stamps, digests))
        files = [file for file, name in zip(files, dataset.image_names) if name not in bad]
        dataset.drop(bad)
        readable = [file for file in files if file[2]]
        blobs, unread, damaged = _encode_missing(store, readable, vision, batch_size, workers, quiet)
        for i, (path, _, digest) in enumerate(files):
            if digest is None or path in unread or digest in damaged:
                error = unread.get(path) or damaged.get(digest) or f"{path}: changed meanwhile"
                raise ValueError(f"{dataset.where(i)}: {error}; run the same command again")
        image = _rows(store, vision, [digest for _, _, digest in files], blobs)
        return Features(
            image, _text_rows(store, dataset.captions, text, quiet), torch.tensor(dataset.image_of)
        )


def encode_texts(texts, text, cache=".cache/features.sqlite", quiet=False):
    """(len(texts), Dt) float32 unit rows, equal to those `encode_archive` gives and from the same cache."""
    if not len(texts):
        return torch.empty(0, text.dim)
    with opened(cache) as store:
        return _text_rows(store, texts, text, quiet)


def encode_files(paths, vision, cache=".cache/features.sqlite", batch_size=32, workers=None, at_once=128):
    """Yield an Encoded for each image file, in order, from the cache where it holds the content. The rows of
    `at_once` files are stored before the first of them is yielded, so a killed run repeats little."""
    with opened(cache) as store:
        for chunk in batched(list(paths), at_once):
            stamps, errors = {}, {}
            for path in chunk:
                try:
                    open(check_file(path), "rb").close()
                    stamps[path] = stamp(path)
                except (OSError, ValueError) as error:
                    errors[path] = str(error)
            digests = store.file_digests(list(stamps), list(stamps.values()), workers)
            files = []
            for path, digest in zip(stamps, digests):
                if digest is None:
                    errors[path] = f"{path}: cannot be read"
                else:
                    files.append((path, stamps[path], digest))
            blobs, unread, damaged = _encode_missing(store, files, vision, batch_size, workers, quiet=True)
            errors |= unread
            digest_of = dict(zip(stamps, digests))
            for path in chunk:
                digest = digest_of.get(path)
                if path in errors:
                    yield Encoded(path, None, None, errors[path])
                elif digest in damaged:
                    why = damaged[digest]
                    yield Encoded(
                        path, digest.hex(), None, why if str(path) in why else f"{path}: a copy of {why}"
                    )
                else:
                    yield Encoded(path, digest.hex(), _rows(store, vision, [digest], blobs)[0], None)


def _encode_missing(store, files, vision, batch_size, workers, quiet):
    """(blobs, unread, damaged) for files [(path, stamp, digest)]: {key: blob} of all rows, {path: error} of
    files that cannot be read or changed meanwhile, {digest: error} of content that does not decode. Encodes
    and stores what the cache lacks; the same content is encoded once."""
    blobs, unread, damaged = {}, {}, {}
    for tower in vision.parts:
        keys = {digest: row_key(tower, digest) for _, _, digest in files}
        found, _ = store.fetch(keys.values())
        blobs |= found
        copies = {}
        for file in files:
            if keys[file[2]] not in found:
                copies.setdefault(file[2], []).append(file)
        while todo := [same.pop(0) for same in copies.values() if same]:
            with _bar(len(todo), f"images, {tower.name}", quiet) as bar:
                encoded = encode_ahead(todo, _frames_of, (tower,), batch_size, workers)
                for batch in _in_batches(encoded, batch_size):
                    good = []
                    for (path, before, digest), rows, error in batch:
                        if isinstance(error, OSError) or not _still_is(path, before, digest):
                            unread[path] = str(error or f"{path}: changed while it was encoded")
                            continue  # a copy may still be whole
                        copies[digest] = []
                        if error:
                            damaged[digest] = str(error)
                        else:
                            good.append((keys[digest], rows[0]))
                    if good:
                        blobs |= store.put([key for key, _ in good], torch.stack([row for _, row in good]))
                    bar.update(len(batch))
    return blobs, unread, damaged


def _frames_of(file):
    return open_frames(file[0])


def _still_is(path, before, digest):
    """Whether a file still holds the content that its stamp and digest were taken of."""
    try:
        return stamp(path) == before or sha256(path) == digest.hex()
    except OSError:
        return False


def _is_stored(store, vision, digest):
    return all(row_key(tower, digest) in store for tower in vision.parts)


def _rows(store, vision, digests, blobs):
    """(len(digests), Dv) unit rows: the rows of the parts side by side."""
    columns = [
        to_tensor([blobs[row_key(tower, digest)] for digest in digests], store.path) for tower in vision.parts
    ]
    return _unit(torch.cat(columns, dim=1) if len(columns) > 1 else columns[0])


def _text_rows(store, texts, text, quiet):
    """(len(texts), Dt) unit rows."""
    keys = [row_key(text, one.encode()) for one in texts]
    blobs, _ = store.fetch(keys)
    missing = {key: one for key, one in zip(keys, texts) if key not in blobs}
    by_length = sorted(
        missing.items(), key=lambda item: len(item[1]), reverse=True
    )  # similar lengths need little padding
    with _bar(len(missing), f"captions, {text.name}", quiet) as bar:
        for batch in batched(by_length, 512):
            blobs |= store.put([key for key, _ in batch], text.encode([one for _, one in batch]))
            bar.update(len(batch))
    return _unit(to_tensor([blobs[key] for key in keys], store.path))


def _unit(rows):
    """F.normalize in place: a copy of 100,000 captions is 150 MB."""
    return rows.div_(rows.norm(dim=-1, keepdim=True).clamp_min_(1e-12))


def _in_batches(items, size):
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _bar(total, title, quiet):
    return tqdm(total=total, desc=title, unit="", disable=quiet or not total)
