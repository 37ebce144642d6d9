"""The rows of images and videos in the feature cache: an image has one, a video one for each frame.

    blobs, known = fetch_rows(store, tower, digests, frames=8)
    mean_rows(store, vision, digests, blobs, 8)       # (N, Dv), of a video the mean over its frames
    ordered_rows(store, vision, digests, blobs, 8)    # (N, F, Dv), of an image its row F times

Which frames of a video are read depends on how many, so both numbers are in a key, see `frame_keys`.
"""

import torch

from .ahead import mean_row
from .cache import row_key, to_tensor


def frame_keys(tower, digest, frames, view=0):
    """The keys of the rows of a video that is read as `frames` frames, a list of bytes. A tower for clips
    has one row for all frames."""
    rows = 1 if tower.clip_frames > 1 else frames
    return [row_key(tower, digest, view, frames << 16 | number) for number in range(rows)]


def places_key(tower, digest, blobs, frames):
    """The key of the places of an image, or, when the row of one is not in `blobs`, of a video."""
    frame = 0 if row_key(tower, digest) in blobs else frames << 16
    return row_key(tower, digest, frame=frame, kind="places")


def fetch_rows(store, tower, digests, frames, view=0):
    """({key: blob}, set of digests) of the content whose rows are stored."""
    keys = {digest: [row_key(tower, digest, view)] for digest in digests}
    blobs = store.fetch(key for (key,) in keys.values())
    for digest, (key,) in keys.items():
        if key not in blobs:
            keys[digest] = frame_keys(tower, digest, frames, view)
            if keys[digest][0] in store:
                blobs |= store.fetch(keys[digest])
    return blobs, {digest for digest, own in keys.items() if blobs.keys() >= set(own)}


def mean_rows(store, vision, digests, blobs, frames, view=0):
    """(N, Dv) float32 unit rows: those of the parts side by side; of a video the mean over its frames, in
    float16 as the rows of images are."""
    columns = []
    for tower in vision.parts:
        keys = [_keys_of(tower, digest, blobs, frames, view) for digest in digests]
        rows = to_tensor([blobs[key] for own in keys for key in own], store.path)
        if len(rows) > len(keys):
            clips = rows.split([len(own) for own in keys])
            rows = torch.stack([mean_row(clip) for clip in clips]).half().float()
        columns.append(rows)
    return unit(torch.cat(columns, dim=1) if len(columns) > 1 else columns[0])


def ordered_rows(store, vision, digests, blobs, frames):
    """(N, frames, Dv) float32 unit rows: those of the parts side by side; of an image its row again and
    again."""
    columns = []
    for tower in vision.parts:
        keys = []
        for digest in digests:
            own = _keys_of(tower, digest, blobs, frames)
            keys += own * (frames // len(own))
        columns.append(to_tensor([blobs[key] for key in keys], store.path).view(len(digests), frames, -1))
    return unit(torch.cat(columns, dim=2))


def unit(rows):
    """F.normalize in place: a copy of 100,000 captions is 150 MB."""
    return rows.div_(rows.norm(dim=-1, keepdim=True).clamp_min_(1e-12))


def _keys_of(tower, digest, blobs, frames, view=0):
    key = row_key(tower, digest, view)
    return [key] if key in blobs else frame_keys(tower, digest, frames, view)
