"""From anything that holds frames to rows of a tower, with the next frames decoded while these are encoded.

for item, rows, error in encode_ahead(paths, open_frames, vision.parts):
    rows     # one (dim,) float32 unit row on the CPU per tower, or None
    error    # why this item has none, or None
"""

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch

PLACES_DIM = 320  # numbers of a place at most: 31 kB per image of 7 x 7 places


def encode_ahead(
    items, read, towers, batch_size=32, workers=None, places=False, squash=False, each_frame=False
):
    """Yield (item, rows, error) for each item, in order.

    `read(item)` gives the item's frames, a list of RGB PIL images, and is called from `workers` threads
    (default: one per core); the OSError or ValueError that it raises is yielded as `error`. An image is one
    frame. The row of several frames is the mean of their rows, see `mean_row`, and with `each_frame` all of
    these, (frames, dim); a tower for clips sees the frames as one. With `places`, a row is a pair (row,
    places (P, Dp)), whose places are the mean over the frames. With `squash`, a tower sees the whole frame
    and not its middle. Towers see about `batch_size` frames at a time. Raises ValueError for a tower that
    gives rows without norm 1."""

    size = max(1, batch_size // max(tower.clip_frames for tower in towers))

    def pixels(item):
        try:
            frames = read(item)
            if not frames:
                raise ValueError("no frames in it")
            return [_inputs(tower, frames, squash) for tower in towers], None
        except (OSError, ValueError) as error:
            return None, error

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        decoded = _ahead(pool, pixels, items, size)
        for batch in _batches(decoded, size):
            clips = [found for _, (found, _) in batch if found is not None]
            rows = _encode(clips, towers, places, each_frame)
            for item, (found, error) in batch:
                yield item, next(rows) if found is not None else None, error


def frames_for(vision, frames):
    """How many frames of a video a tower is given: `frames`, or as many as a tower for clips sees at once."""
    return vision.clip_frames if vision.clip_frames > 1 else frames


def _inputs(tower, frames, squash):
    """(inputs, ...) of a list of frames: an input per frame, or one clip. No copy for one input: threads
    would copy in parallel, and slow the tower down."""
    prepare = tower.squash if squash else tower.preprocess
    if tower.clip_frames > 1:
        return prepare(frames)[None]
    pixels = [prepare(frame) for frame in frames]
    return pixels[0][None] if len(pixels) == 1 else torch.stack(pixels)


def _batches(decoded, size):
    """Lists of entries of `decoded`. A list ends when it holds `size` frames or `size` entries."""
    batch, frames = [], 0
    for entry in decoded:
        pixels, _ = entry[1]
        batch.append(entry)
        frames += len(pixels[0]) if pixels is not None else 0
        if frames >= size or len(batch) >= size:
            yield batch
            batch, frames = [], 0
    if batch:
        yield batch


def _encode(pixels, towers, places, each_frame):
    """Yield, for each entry of `pixels` ([(frames, ...) per tower]), its rows: one (dim,) per tower, with
    `each_frame` (frames, dim), or with `places` a pair (row, places)."""
    if not pixels:
        return
    columns = []
    for i, tower in enumerate(towers):
        clips = [entry[i] for entry in pixels]
        sizes = [len(clip) for clip in clips]
        found = tower.encode(torch.cat(clips), places=True) if places else tower.encode(torch.cat(clips))
        rows, maps = found if places else (found, None)
        rows = _checked(tower, rows).split(sizes)
        column = rows if each_frame else [mean_row(row) for row in rows]
        if places:
            column = zip(column, [part.mean(0) for part in narrow(maps.float().cpu()).split(sizes)])
        columns.append(column)
    yield from zip(*columns)


def mean_row(rows):
    """The mean (dim,) of the rows (frames, dim) of a video, scaled to their norm. The mean of equal rows is
    that row."""
    if len(rows) == 1:
        return rows[0]
    mean = rows.mean(0)
    return mean * (rows.norm(dim=1).mean() / mean.norm().clamp_min(1e-12))


def narrow(maps):
    """(B, P, D) -> (B, P, at most PLACES_DIM), by a random projection that depends on D alone. It keeps
    distances (Johnson and Lindenstrauss 1984); docs/EXPERIMENTS.md has what it costs."""
    width = maps.shape[2]
    if width <= PLACES_DIM:
        return maps
    generator = torch.Generator().manual_seed(width)
    return maps @ (torch.randn(width, PLACES_DIM, generator=generator) / PLACES_DIM**0.5)


def _checked(tower, rows):
    """The rows (B, dim) as float32 on the CPU. ValueError for rows that are not of norm 1."""
    rows = rows.float().cpu()
    if not ((rows.norm(dim=1) - 1).abs() < 0.01).all():  # NaN too
        wrong = "gave rows that are not finite and of norm 1; its weights may be damaged"
        raise ValueError(f"tower {tower.name} {wrong}")
    return rows


def _ahead(pool, function, items, count):
    """Yield (item, function(item)) in order, with the results of the next `count` items being computed
    meanwhile."""
    queue = deque()
    for item in items:
        queue.append((item, pool.submit(function, item)))
        if len(queue) > count:
            item, future = queue.popleft()
            yield item, future.result()
    for item, future in queue:
        yield item, future.result()
