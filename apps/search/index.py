"""Bring an index up to date with its folder.

    done = update("photos", "index.sqlite", run="runs/default")  # Update(scan=..., indexed=100, ...)

Towers and predictor are loaded only when there is something to encode. Features come from the cache of
train.py wherever it has them. Each batch is one transaction: a killed run leaves an index that can be
searched, and the next one continues and ends with the same rows in the same order.
"""

import logging
import os
from array import array
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from apps.search.store import DEFAULT, opened, shown
from models.files import YOUNG, printable, sha256, stamp

log = logging.getLogger(__name__)
CACHE = ".cache/features.sqlite"
SKETCH = 256  # random directions: keep cosines to 0.01 (Johnson-Lindenstrauss) in 512 bytes


class Update(NamedTuple):
    """What `update` did. len(walked.files) = indexed + damaged + waiting."""

    walked: tuple  # Walk of models/dataset/folders.py
    indexed: int
    damaged: int  # cannot be decoded
    changed: int  # files whose content is new since the last time
    moved: int  # files known under another name
    gone: int
    waiting: int  # new files that may still be written to


def update(
    directory,
    file=DEFAULT,
    run="runs/default",
    device="auto",
    cache=CACHE,
    batch_size=32,
    quiet=True,
    exclude=(),
    follow_links=False,
    frames=8,
    settled=False,
):
    """Make `file` the index of the images and videos below `directory`, and return an Update. `exclude` and
    `follow_links` are those of `walk` in models/dataset/folders.py. Of each video `frames` frames are
    indexed. With `settled`, files that changed in the last two seconds are left for the next time.

    Files that cannot be decoded are logged once and read again only when they change. Files that were moved
    or renamed are recognised by their content, and so is the folder itself. Raises ValueError for a folder
    without images, which is what an unmounted disk looks like, and for the index of another folder; the index
    stays as it is."""
    from models.dataset import walk

    root = Path(directory).resolve()
    if not root.is_dir():
        raise ValueError(f"{directory}: no such folder of images")
    walked = walk(root, exclude, follow_links)
    if not walked.files:
        found = walked.without_images()
        raise ValueError(f"{directory}: no images in it {found}; an earlier index of it is kept")
    found = {os.fsencode(path): stamp(stat) for path, stat in walked.files.items()}
    waiting = {path for path, mark in found.items() if settled and YOUNG in mark}
    found = {path: mark for path, mark in found.items() if path not in waiting}
    with opened(file, create=True) as store:
        with store.db:
            if store.meta.get("frames", str(frames)) != str(frames):
                store.forget_videos()
            store.put(frames=str(frames))
        todo, same, gone = compare(store, root, found)
        gone -= waiting
        trained = fingerprint(run)
        if todo or not trained or store.meta.get("trained") != trained:
            model, other = _adopt(store, root, run, device, trained)
            if other:
                todo, same, gone = sorted(found), {}, set()
        with store.db:
            store.put(root=os.fsencode(root), follow_links="1" if follow_links else "")
            if todo or same or gone:
                store.put(complete="0", ann="")  # the approximate index holds other rows
            store.move(same, found)
        if todo:
            add(store, root, todo, found, model, cache, batch_size, quiet, frames)
        with store.db:
            store.remove(gone)
            store.put(complete="1", run=place(run))  # the same model may be in another folder now
        indexed, kept = store.count(), len(store.all_paths())
    moved = {path: source for path, source in same.items() if path != source}
    left = len(gone.difference(moved.values()))
    new = len(walked.files) - kept
    return Update(walked, indexed, kept - indexed, len(todo), len(moved), left, new)


def compare(store, root, found):
    """(files to encode, {file: the indexed path whose content it has}, indexed paths that are gone) of the
    files `found` in the folder `root`.

    ValueError when the index is that of another folder. If that is gone, `root` is taken for it when it holds
    at least half of its images: with a disk not there, one copy of one image must not cost the index."""
    old, advice = shown(store.root or root), "name another file with --index, or delete it"
    is_other = store.root not in ("", str(root))
    indexed = store.all_paths()
    if is_other and os.path.isdir(store.root) and any(map(os.path.lexists, indexed)):
        raise ValueError(f"{store.path}: is the index of {old}; {advice}")
    todo, gone = store.compare(root, found)
    same = store.recognise(root, todo, found, gone)
    if is_other:
        known = len(found) - len(todo) + len(same)
        here = f"{shown(root)} holds {known:,} of its {len(indexed):,} images"
        if 2 * known < len(indexed):
            raise ValueError(f"{store.path}: is the index of {old}, which is gone; {here}; {advice}")
        log.warning("%s: the index of %s, which is gone, follows its images: %s", store.path, old, here)
    return [path for path in todo if path not in same], same, gone


def fingerprint(run):
    """Text that changes when the model in a run folder does, found without torch; "" for no such folder."""
    files = [Path(run, name) for name in ("config.json", "model.safetensors")]  # as in models/runs.py
    return " ".join(sha256(path) for path in files if path.is_file())


def place(run):
    """What an index keeps as the name of its run: an absolute path, or the name of a model on the hub."""
    return os.path.abspath(run) if Path(run).exists() else str(run)


def _adopt(store, root, run, device, trained):
    """(the model of `run`, whether the index was made with another, whose rows are then removed)."""
    from models.vljepa import VLJEPA

    model = VLJEPA.load(run, device)
    other = store.meta.get("model", model.identity) != model.identity
    if other:
        log.warning("%s: made with another model; indexing all images again", store.path)
    with store.db:
        if other:
            store.clear()
        store.put(root=os.fsencode(root), model=model.identity, trained=trained, run=place(run), complete="0")
    return model, other


def add(store, root, todo, found, model, cache, batch_size, quiet, frames):
    """Write the images and videos `todo` to the index in batches. What cannot be decoded is logged, with no
    row."""
    import torch
    from tqdm import tqdm

    from models.dataset import HEIC_NEEDS, date_of
    from models.features import encode_files

    # Sketches are of the tower's features: the predictor leaves out what captions do not mention.
    directions = torch.randn(model.vision.dim, SKETCH, generator=torch.Generator().manual_seed(0))
    paths = [root / os.fsdecode(path) for path in todo]
    encoded = encode_files(paths, model.vision, cache, batch_size, frames=frames)
    with tqdm(total=len(todo), desc="images", unit="", disable=quiet) as bar:
        for start in range(0, len(todo), batch_size):
            batch = list(islice(encoded, batch_size))
            blobs = _blobs([file for file in batch if file.row is not None], model, directions)
            with store.db:
                for path, file in zip(todo[start : start + batch_size], batch):
                    kept, known, taken = (None, None), (found[path], file.digest), None
                    if file.row is None:
                        log.warning("left out: %s", printable(file.error))
                        known = ("", None) if HEIC_NEEDS in file.error else known  # read again next time
                    else:
                        kept, taken = next(blobs), date_of(file.path)
                    store.write(path, *known, *kept, taken=taken)
            bar.update(len(batch))


def _blobs(files, model, directions):
    """Yield (row, sketch, times) as bytes for each Encoded, see Index.write. `directions` is (Dv, SKETCH)."""
    import torch
    import torch.nn.functional as F

    from models.dataset import clip_times

    if not files:
        return
    clips = [file.row[None] if file.frames is None else file.frames for file in files]
    predicted = model.predict(torch.cat(clips)).half().cpu()  # (frames of all, Dt)
    sketches = F.normalize(torch.stack([file.row for file in files]) @ directions, dim=-1).half()
    for file, rows, sketch in zip(files, predicted.split([len(clip) for clip in clips]), sketches):
        times = None if file.frames is None else array("d", clip_times(file.path, len(rows))).tobytes()
        yield rows.numpy().tobytes(), sketch.numpy().tobytes(), times
