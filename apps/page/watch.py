"""What a video shows, segment by segment.

    video = read(loaded, "video.mp4")             # Video: a row every half second, and the segments
    segments(loaded, "video.mp4", video)          # [Segment, ...], words once per segment
    search(loaded, video, "a ship at sea")        # (scores (F,), [Moment, ...])

The strip cuts where the meaning changes; `uniform` gives as many segments of equal length."""

from typing import NamedTuple

import torch

from apps.video.segments import cut_by_change, means, uniform
from apps.video.watch import describe, moments, whole_video
from models.dataset.frames import read_frames
from models.dataset.video import Report

STEP = 0.5  # seconds between frames
MOST = 2400  # frames of a video: twenty minutes
TILE = 360  # pixels


class Video(NamedTuple):
    times: list  # F floats, in seconds
    rows: torch.Tensor  # (F, Dt) unit rows
    end: float  # seconds
    changes: list  # edges (S + 1) of the segments that differ, as frame numbers
    equal: list  # edges (S + 1) of as many segments of one length
    report: str  # what became of the frames


def read(loaded, path):
    """The Video at `path`, with a progress bar; its damaged frames are left out and counted. Raises what
    `read_frames` does, and ValueError for more than MOST frames."""
    seen = 0

    def encode(images):
        nonlocal seen
        seen += len(images)
        if seen > MOST:
            raise ValueError(f"{path}: is longer than {MOST * STEP / 60:g} minutes; cut it")
        return loaded.model.encode_image(images)

    report = Report()
    times, rows = whole_video(path, encode, STEP, skip_bad=True, report=report)
    edges = cut_by_change(rows, STEP).tolist()
    equal = uniform(len(rows), len(edges) - 1).tolist()
    return Video(times, rows, report.end, edges, equal, str(report))


def segments(loaded, video, edges):
    """The Segments between `edges`, a list of frame numbers."""
    said = loaded.writer(means(video.rows, torch.tensor(edges)))
    return describe(edges, video.times, video.end, said)


def tiles(path, found):
    """[(RGB PIL image, caption)] of the middle frames of Segments, for a gallery."""
    shown = []
    for segment, (_, image) in zip(
        found, read_frames(path, [segment.middle for segment in found], skip_bad=True)
    ):
        image.thumbnail((TILE, TILE))
        shown.append((image, f"{segment.start:.1f} to {segment.end:.1f} s: {segment.words}"))
    return shown


def search(loaded, video, text):
    """(scores (F,) float32, list of Moments): the cosine of each frame with a text, and the best frame of
    each segment, best first."""
    scores = video.rows @ loaded.model.encode_text(text).cpu()[0]
    return scores, moments(scores, video.changes, [*video.times, video.end])


def moment_tiles(path, found):
    """[(RGB PIL image, caption)] of Moments in their order, for a gallery."""
    images = {}
    for at, image in read_frames(path, sorted(moment.at for moment in found), skip_bad=True):
        image.thumbnail((TILE, TILE))
        images[at] = image
    return [(images[moment.at], f"{moment.score:.2f} at {moment.at:.1f} s") for moment in found]
