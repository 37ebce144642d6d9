"""From a video to embeddings, and from embeddings to words.

report = Report()                                              # of models.dataset.video
for time, row in embeddings("video.mp4", model.encode_image, step=0.5): ...     # row: (Dt,)
times, rows = whole_video("video.mp4", model.encode_image, step=0.5, report=report)
write, name = writer(model, "nearest", None, ".cache/features.sqlite")
describe([0, 8, len(times)], times, report.end, write(means))  # two Segments
"""

import itertools
import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from models.dataset.frames import duration, every, read_frames


class Segment(NamedTuple):
    start: float  # seconds
    end: float
    middle: float  # time of the middle frame
    score: float  # cosine of the words and the decoded embedding
    words: str


class Moment(NamedTuple):
    score: float  # cosine of the frame with a text
    at: float  # seconds
    start: float  # of its segment
    end: float


def embeddings(path, encode, step, batch=32, quiet=False, skip_bad=False, report=None):
    """Yield (time, row (Dt,) on the CPU) every `step` seconds of a video. `encode` maps up to `batch` images
    to rows (B, Dt). With a batch of 1, each row is there as soon as its frame is. `skip_bad`, `report` and
    what is raised are those of `read_frames`."""
    length = duration(path)
    total = math.ceil(length / step) if length else None
    frames = read_frames(path, every(step), skip_bad, report)
    with tqdm(total=total, desc=f"frames of {Path(path).name}", unit="", disable=quiet) as bar:
        while chunk := list(itertools.islice(frames, batch)):
            times, images = zip(*chunk)
            yield from zip(times, encode(list(images)).cpu())
            bar.update(len(chunk))


def whole_video(path, encode, step, quiet=False, skip_bad=False, report=None):
    """(times, rows (F, Dt) float32): a frame every `step` seconds, see `embeddings`."""
    times, rows = zip(*embeddings(path, encode, step, quiet=quiet, skip_bad=skip_bad, report=report))
    return list(times), torch.stack(rows)


def writer(model, words, decoder, cache):
    """(write, name): `write` maps rows (S, Dt) to S pairs (cosine, words), and `name` describes it. `words`
    is "nearest" (training caption) or "decoder" (of the folder `decoder`)."""
    from models.decoder import Decoder

    if words == "nearest":
        texts, text = model.captions(cache)
        return partial(_nearest, texts, text), f"the nearest of {len(texts)} training captions, right or not"
    loaded = Decoder.load(decoder, model.device, model.text_space)
    return partial(_decoded, loaded, model), f"written by {decoder}"


def _nearest(texts, text, rows):
    scores, found = (rows @ text.T).max(1)  # (S,), (S,)
    return [(score, texts[i]) for score, i in zip(scores.tolist(), found.tolist())]


def _decoded(decoder, model, rows):
    texts = decoder.write(rows, encode=model.encode_text)
    scores = (rows * model.encode_text(texts).cpu()).sum(1)  # (S,)
    return list(zip(scores.tolist(), texts))


def describe(edges, times, end, said):
    """A list of Segments. `edges` (S + 1) are frame numbers, `times` (F) in seconds, `said` S pairs of cosine
    and words."""
    clock = [*times, end]
    spans = zip(edges, edges[1:], said)
    return [Segment(clock[a], clock[b], times[(a + b - 1) // 2], *words) for a, b, words in spans]


def moments(scores, edges, clock):
    """A list of Moments, best first: the frame of each segment with the highest of scores (F,). `edges`
    (S + 1) are frame numbers, `clock` (F + 1) the times of the frames and the end, in seconds."""
    found = []
    for a, b in zip(edges, edges[1:]):
        best = a + int(scores[a:b].argmax())
        found.append(Moment(scores[best].item(), clock[best], clock[a], clock[b]))
    return sorted(found, reverse=True)
