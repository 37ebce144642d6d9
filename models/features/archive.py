"""Images and texts through the towers, with the feature cache in between."""

import logging
import time
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
from tqdm import tqdm

from models.dataset import FRAMES, check_file, is_video, open_frames, random_view
from models.files import level, sha256, stamp
from models.script import said

from .ahead import encode_ahead, frames_for
from .cache import batched, opened, row_key, to_arrays, to_tensor
from .clips import fetch_rows, frame_keys, mean_rows, ordered_rows, places_key, unit
from .places import Places, known_records, open_part, put_places
from .questions import Questions, encode_questions

log = logging.getLogger(__name__)
VIEWS_TIMED = 32  # images, to say before the others how long a view takes


class Features(NamedTuple):
    """What the towers say of a data set. The optional fields are there where questions are."""

    image: torch.Tensor  # (N, Dv) float32; with `in_order` (N, F, Dv), of the frames of each video
    text: torch.Tensor  # (M, Dt) float32
    image_of: torch.Tensor  # (M,) int64
    questions: Questions | None = None
    places: Places | None = None  # (N, P, Dp), local features of each image
    views: torch.Tensor | None = None  # (N, K, Dv) float16, of augmented views of each image

    def of(self, images):
        """The features of some images (a bool mask (N,)) and their texts and questions, renumbered."""
        texts = images[self.image_of]
        return Features(
            self.image[images],
            self.text[texts],
            (images.cumsum(0) - 1)[self.image_of[texts]],
            None if self.questions is None else self.questions.of(images),
            None if self.places is None else self.places[images],
            None if self.views is None else self.views[images],
        )


class File(NamedTuple):
    path: object
    stamp: str  # taken before the content was read
    digest: bytes | None  # SHA-256 of that content, 32 bytes; None when it cannot be read


class Encoded(NamedTuple):
    path: object
    digest: str | None  # SHA-256 of the content, 64 hex digits; None when it cannot be read or changes
    row: torch.Tensor | None  # (dim,) float32 unit row; None for a file that is no image or damaged
    error: str | None  # why there is no row; copies of a damaged file name one of them
    frames: torch.Tensor | None = None  # (F, dim) float32 unit rows of the frames of a video


def encode_archive(
    dataset,
    vision,
    text,
    cache=".cache/features.sqlite",
    batch_size=32,
    workers=None,
    quiet=False,
    places=False,
    views=0,
    frames=FRAMES,
    in_order=False,
):
    """Features of a VisionTextDataset, with `places` also the local features of its images, and with `views`
    those of that many augmented views of each. Images that do not decode are reported together, before any
    tower runs, and what became of every row is logged.

    A video is read as `frames` frames, or as many as a tower for clips sees at once. Its row and its places
    are the means over these; with `in_order`, Features.image holds the rows of the frames, and of an image
    its own row `frames` times.

    `cache=None` keeps nothing on disk. Rows are rounded to float16 with or without a cache, so both give the
    same features. Raises ValueError for bad images (`dataset.skip_bad` drops them instead) and for an image
    that changes meanwhile."""
    frames = frames_for(vision, frames)
    with opened(cache) as store:
        files = _decodable(dataset, store, vision, frames, workers, quiet)
        readable = [file for file in files if file.digest]
        options = (frames, batch_size, workers, quiet)
        blobs, unread, damaged = _encode_missing(store, readable, vision, *options, places)
        for i, (path, _, digest) in enumerate(files):
            if digest is None or path in unread or digest in damaged:
                error = unread.get(path) or damaged.get(digest) or f"{path}: changed meanwhile"
                raise ValueError(f"{dataset.where(i)}: {error}; run the same command again")
        digests = [file.digest for file in files]
        more = _views(store, files, vision, views, options) if views else None

        asked = dataset.question_rows
        encode = partial(_token_states, store, text=text, quiet=quiet)
        return Features(
            (ordered_rows if in_order else mean_rows)(store, vision, digests, blobs, frames),
            _text_rows(store, dataset.captions, text, quiet),
            torch.tensor(dataset.image_of, dtype=torch.int64),
            encode_questions(asked, dataset.image_names, encode) if asked else None,
            _places(store, vision, digests, blobs, frames) if places else None,
            more,
        )


def _decodable(dataset, store, vision, frames, workers, quiet):
    """A File for each image of a data set, without those that do not decode, see VisionTextDataset.drop."""
    paths = [dataset.path(i) for i in range(len(dataset.image_names))]
    stamps = [stamp(path) for path in paths]  # before the files are read: a later change is then noticed
    with _bar(len(paths), "image files", quiet) as bar:
        digests = store.file_digests(paths, stamps, workers, bar.update)
    unseen = [
        i for i, digest in enumerate(digests) if not digest or not _is_stored(store, vision, digest, frames)
    ]
    bad = {}
    with _bar(len(unseen), "images, checked", quiet) as bar:
        for batch in batched(unseen, 256):
            bad |= dataset.find_damaged(batch, workers, frames)
            bar.update(len(batch))
    files = [File(*found) for found in zip(paths, stamps, digests)]
    files = [file for file, name in zip(files, dataset.image_names) if name not in bad]
    dataset.drop(bad)
    log.log(level(dataset.left_out), "%s", dataset.account())
    return files


def encode_texts(texts, text, cache=".cache/features.sqlite", quiet=False):
    """(len(texts), Dt) float32 unit rows, equal to those `encode_archive` gives and from the same cache."""
    with opened(cache) as store:
        return _text_rows(store, texts, text, quiet)


def encode_tokens(texts, text, cache=".cache/features.sqlite", quiet=False):
    """A list of (T, Dk) float16 arrays, the states of the tokens of each text, from the same cache."""
    with opened(cache) as store:
        return _token_states(store, texts, text, quiet)


def encode_files(
    paths, vision, cache=".cache/features.sqlite", batch_size=32, workers=None, at_once=128, frames=FRAMES
):
    """Yield an Encoded for each image or video file, in order, from the cache where it holds the content. The
    rows of `at_once` files are stored before the first of them is yielded, so a killed run repeats little.
    """
    frames = frames_for(vision, frames)
    with opened(cache) as store:
        for chunk in batched(list(paths), at_once):
            files, errors = _readable(store, chunk, workers)
            options = (frames, batch_size, workers, True)
            blobs, unread, damaged = _encode_missing(store, files, vision, *options)
            errors |= unread
            digest_of = {file.path: file.digest for file in files}
            for path in chunk:
                if path in errors:
                    yield Encoded(path, None, None, errors[path])
                    continue
                digest = digest_of[path]
                error = damaged.get(digest)
                row = rows = None
                if error is None:
                    row = mean_rows(store, vision, [digest], blobs, frames)[0]
                    if row_key(vision.parts[0], digest) not in blobs:
                        rows = ordered_rows(store, vision, [digest], blobs, frames)[0]
                elif str(path) not in error:
                    error = f"{path}: a copy of {error}"
                yield Encoded(path, digest.hex(), row, error, rows)


def _readable(store, paths, workers):
    """(files, errors): a File for each path that can be read, {path: error} for the others."""
    stamps, errors = {}, {}
    for path in paths:
        try:
            open(check_file(path), "rb").close()
            stamps[path] = stamp(path)
        except (OSError, ValueError) as error:
            errors[path] = said(error)
    digests = store.file_digests(list(stamps), list(stamps.values()), workers)
    files = []
    for path, digest in zip(stamps, digests):
        if digest is None:
            errors[path] = f"{path}: cannot be read"
        else:
            files.append(File(path, stamps[path], digest))
    return files, errors


def _encode_missing(store, files, vision, frames, batch_size, workers, quiet, places=False, view=0):
    """(blobs, unread, damaged) for a list of File: {key: blob} of all rows, {path: error} of files that
    cannot be read or changed meanwhile, {digest: error} of content that does not decode.

    Encodes and stores what the cache lacks. The same content is encoded once; where a file cannot be read,
    the next copy of it is tried."""
    blobs, unread, damaged = {}, {}, {}
    for tower in vision.parts:
        found, known = fetch_rows(store, tower, [file.digest for file in files], frames, view)
        blobs |= found
        if places:
            keys = {digest: places_key(tower, digest, found, frames) for digest in known}
            stored = known_records(store, tower, keys.values())
            known = {digest for digest, key in keys.items() if key in stored}
        copies = {}  # {digest: the files that hold it}, of the content to encode
        for file in files:
            if file.digest not in known:
                copies.setdefault(file.digest, []).append(file)
        while copies:
            first = [same.pop(0) for same in copies.values()]
            videos = set()  # digests
            read = partial(_frames_of, view=view, count=frames, videos=videos)
            for batch in _encoded_batches(first, read, tower, batch_size, workers, quiet, places, view):
                good = {}  # {digest: what encode_ahead gives}
                for file, row, error in batch:
                    if isinstance(error, OSError) or not _still_is(file):
                        unread[file.path] = str(error or f"{file.path}: changed while it was encoded")
                        continue  # a copy may still be whole
                    copies[file.digest].clear()
                    if error:
                        damaged[file.digest] = str(error)
                    else:
                        good[file.digest] = row[0]
                blobs |= _store(store, tower, good, videos, frames, places, view)
            copies = {digest: same for digest, same in copies.items() if same}
    return blobs, unread, damaged


def _store(store, tower, good, videos, frames, places, view):
    """Store what `encode_ahead` gave for {digest: rows, or with `places` (rows, places)}. Returns the
    blobs."""
    if not good:
        return {}
    keys, rows, maps = [], [], []
    for digest, found in good.items():
        rows.append(found[0] if places else found)  # (frames, dim)
        own = frame_keys(tower, digest, frames, view)
        keys += own if digest in videos else [row_key(tower, digest, view)]
        maps += [found[1]] if places else []
    if places:
        put_places(store, tower, [places_key(tower, one, keys, frames) for one in good], torch.stack(maps))
    return store.put(keys, torch.cat(rows))


def _encoded_batches(files, read, tower, batch_size, workers, quiet, places, view):
    """Yield what `encode_ahead` gives for these files, in lists of `batch_size`, under a progress bar."""
    what = f"view {view}" if view else "images"
    with _bar(len(files), f"{what}, {tower.name}", quiet) as bar:
        options = dict(places=places, squash=view > 0, each_frame=True)
        rows = encode_ahead(files, read, (tower,), batch_size, workers, **options)
        while batch := list(islice(rows, batch_size)):
            yield batch
            bar.update(len(batch))


def _frames_of(file, view, count, videos):
    """The frames of a file, or with a `view` over 0 that random view of each. The digest of a video is added
    to the set `videos`."""
    if is_video(file.path):
        videos.add(file.digest)
    frames = open_frames(file.path, count)
    return [random_view(frame, f"{file.digest.hex()}/{view}") for frame in frames] if view else frames


def _still_is(file):
    """Whether a file still holds the content that its stamp and digest were taken of."""
    try:
        return stamp(file.path) == file.stamp or sha256(file.path) == file.digest.hex()
    except OSError:
        return False


def _is_stored(store, vision, digest, frames):
    return all(
        row_key(tower, digest) in store or frame_keys(tower, digest, frames)[0] in store
        for tower in vision.parts
    )


def _views(store, files, vision, count, options):
    """(N, count, Dv) float16 unit rows of `count` augmented views of each file, which all decode."""
    found = None
    digests = [file.digest for file in files]
    began = time.perf_counter()
    some = files[:VIEWS_TIMED]
    _encode_missing(store, some, vision, *options, view=1)
    seconds = (time.perf_counter() - began) / len(some)
    size = f"{2 * count * vision.dim * len(files) / 1e6:.0f} MB in the cache"
    log.info("%d views of %d images: %s, %.3f s per image and view", count, len(files), size, seconds)
    for view in range(1, count + 1):
        blobs, unread, _ = _encode_missing(store, files, vision, *options, view=view)
        if unread:
            raise ValueError(f"{min(unread.values())}; run the same command again")
        rows = mean_rows(store, vision, digests, blobs, options[0], view)
        if found is None:
            found = torch.empty(len(files), count, rows.shape[1], dtype=torch.float16)
        found[:, view - 1] = rows
    return found


def _places(store, vision, digests, blobs, frames):
    """The Places of images that were all encoded, (N, P, Dp)."""
    parts = []
    for tower in vision.parts:
        keys = [places_key(tower, digest, blobs, frames) for digest in digests]
        parts.append(open_part(store, tower, keys))
    return Places(parts)


def _text_rows(store, texts, text, quiet):
    """(len(texts), Dt) unit rows."""
    if not texts:
        return torch.empty(0, text.dim)
    blobs = _text_blobs(store, texts, text, "pooled", text.encode, store.put, quiet)
    return unit(to_tensor(blobs, store.path))


def _token_states(store, texts, text, quiet):
    """A list of (T, Dk) arrays of float16, one per text."""
    return to_arrays(_text_blobs(store, texts, text, "tokens", text.encode_tokens, store.put_tokens, quiet))


def _text_blobs(store, texts, text, kind, encode, put, quiet):
    """What the cache holds for each text. What it lacks is encoded and put there."""
    keys = [row_key(text, one.encode(), kind=kind) for one in texts]
    blobs = store.fetch(keys)
    missing = {key: one for key, one in zip(keys, texts) if key not in blobs}
    # Texts of similar length need little padding.
    by_length = sorted(missing.items(), key=lambda item: len(item[1]), reverse=True)
    what = "captions" if kind == "pooled" else "questions"
    with _bar(len(missing), f"{what}, {text.name}", quiet) as bar:
        for batch in batched(by_length, 512):
            blobs |= put([key for key, _ in batch], encode([one for _, one in batch]))
            bar.update(len(batch))
    return [blobs[key] for key in keys]


def _bar(total, title, quiet):
    return tqdm(total=total, desc=title, unit="", disable=quiet or not total)
