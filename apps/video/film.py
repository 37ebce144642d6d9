"""Films: the pictures a film shows at given times, and small films made of photographs.

for time, image in frames("film.mp4", every(0.5)): ...    # image: upright RGB PIL picture on screen at that time
shots = plan(seconds=60, seed=0)
make("film.mp4", images, shots)                           # one image a shot, slow pan and zoom, cuts and dissolves
"""

import itertools
import math
import os
import random
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

MAX_HOLD = 3600.0  # seconds one picture may stand; more is a broken clock, and would fill the memory with copies of it
SLACK = 1e-6  # seconds; FFmpeg's own clock ticks in microseconds, so times closer than that are the same


def every(seconds):
    """0, seconds, 2 * seconds, ... without end, and without the drift of repeated addition."""
    return (i * seconds for i in itertools.count())


def frames(path, times):
    """Yield (time, upright RGB PIL image) at each of the ascending `times` (seconds from the film's first picture) it lasts to:
    the picture on screen then, told by the timestamps, so a variable frame rate is right. Decodes from the beginning on, once; only
    the pictures asked for are converted.

    Raises FileNotFoundError, and ValueError for what is no film, holds no picture, is damaged or ends early."""
    import av

    if not Path(path).is_file():  # a pipe would be waited for
        raise FileNotFoundError(
            f"{path}: {'a folder or a pipe, not a film file' if Path(path).exists() else 'no such film'}"
        )
    shown = start = None
    times = iter(times)
    due = next(times, None)
    try:
        with av.open(str(path)) as film:
            # A song's cover art is a video stream too, of one picture.
            streams = [
                s for s in film.streams.video if not s.disposition & av.stream.Disposition.attached_pic
            ]
            if not streams:
                raise ValueError(
                    f"{path}: no pictures in it, only: {', '.join(s.type for s in film.streams) or 'nothing'}"
                )
            stream = streams[0]
            stream.thread_type = "AUTO"
            for frame in film.decode(stream):
                if frame.time is None:
                    raise ValueError(
                        f"{path}: its pictures carry no times; put it into a container: ffmpeg -i {path} -c copy film.mp4"
                    )
                start = frame.time if start is None else start
                if shown is not None and frame.time - shown.time > MAX_HOLD:
                    raise ValueError(
                        f"{path}: its clock jumps from {shown.time - start:.1f} s to {frame.time - start:.1f} s; "
                        "write it anew: ffmpeg -i FILM film.mp4"
                    )
                while shown is not None and due is not None and due + SLACK < frame.time - start:
                    yield due, _upright(shown)
                    due = next(times, None)
                if due is None:
                    return
                shown = frame
            if shown is None:
                raise ValueError(f"{path}: not one picture can be decoded")
            end = shown.time - start + float((shown.duration or 1) * shown.time_base)
            length = float((stream.duration or 0) * stream.time_base)
            if length - end > 1:
                raise ValueError(
                    f"{path}: cut off or damaged, it ends at {end:.1f} s of {length:.1f} s; "
                    f"keep what is there: ffmpeg -i {path} film.mp4"
                )
            while due is not None and due + SLACK < end:
                yield due, _upright(shown)
                due = next(times, None)
    except av.error.FFmpegError as error:
        where = (
            f"damaged after {shown.time - start:.1f} s" if shown is not None else "can't be read as a film"
        )
        raise ValueError(
            f"{path}: {where} ({error.strerror}); where a player shows it: ffmpeg -i {path} film.mp4"
        ) from None


def embeddings(path, encode, step, batch=32, quiet=False):
    """Yield (time, row (Dt,)) every `step` seconds of a film. `encode` makes rows (B, Dt) of up to `batch` images; with a batch of
    1 each row is there as soon as its picture is."""
    length = seconds(path)
    with tqdm(
        total=length and math.ceil(length / step), desc=f"frames of {path}", unit="", disable=quiet
    ) as bar:
        pictures = frames(path, every(step))
        while chunk := list(itertools.islice(pictures, batch)):
            times, images = zip(*chunk)
            yield from zip(times, encode(list(images)).cpu())
            bar.update(len(chunk))


def seconds(path):
    """How long a film says it is; None where it doesn't or can't be read, which is for `frames` to say."""
    import av

    if not Path(path).is_file():
        return None
    try:
        with av.open(str(path)) as film:
            return film.duration / av.time_base if film.duration else None
    except (OSError, av.error.FFmpegError):
        return None


def _upright(frame):
    image = frame.to_image()
    return (
        image.rotate(frame.rotation, expand=True) if frame.rotation else image
    )  # both count degrees counter-clockwise


class Shot(NamedTuple):
    start: float  # seconds
    end: float
    dissolve: float  # seconds of the dissolve into the next shot, half of them before `end`; 0 is a cut
    camera: (
        tuple  # the squares (left, top, side) seen at start and end, as shares of the picture's middle square
    )


def plan(seconds, seed=0, shot_seconds=(2.0, 12.0)):
    """Shots that fill `seconds`: lengths uniform in `shot_seconds`, every other change of shot on average a dissolve of 0.5 to
    1.5 s, the camera moving from one random square of 75 to 100 % of the side to another."""
    chance, shots, start = random.Random(f"{seed}"), [], 0.0
    while start < seconds:
        end = start + chance.uniform(*shot_seconds)
        end = end if seconds - end >= shot_seconds[0] else seconds
        dissolve = chance.choice((0.0, chance.uniform(0.5, 1.5)))
        squares = []
        for side in (chance.uniform(0.75, 1), chance.uniform(0.75, 1)):
            squares.append((chance.uniform(0, 1 - side), chance.uniform(0, 1 - side), side))
        shots.append(Shot(start, end, dissolve, tuple(squares)))
        start = end
    return shots


def make(path, images, shots, size=224, fps=8):
    """Write a silent MP4 film (H.264) of `size` x `size` pixels: shot i shows images[i] (RGB PIL). OSError where it can't be written."""
    import av
    from PIL import Image

    def picture(i, time):
        shot, image = shots[i], images[i]
        done = min(max((time - shot.start) / (shot.end - shot.start), 0), 1)
        left, top, side = (a + done * (b - a) for a, b in zip(*shot.camera))
        square = min(image.size)
        x, y = (image.width - square) / 2 + left * square, (image.height - square) / 2 + top * square
        return image.resize(
            (size, size), Image.Resampling.BILINEAR, (x, y, x + side * square, y + side * square)
        )

    new = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.tmp")  # moved to its place when it is whole
    try:
        with av.open(str(new), "w", format="mp4") as film:
            stream = film.add_stream("libx264", rate=fps)
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            for tick in range(round(shots[-1].end * fps)):
                time = tick / fps
                i = next(i for i, shot in enumerate(shots) if time < shot.end or i + 1 == len(shots))
                image = picture(i, time)
                for a, b in ((i - 1, i), (i, i + 1)):
                    if a >= 0 and b < len(shots) and abs(time - shots[a].end) < shots[a].dissolve / 2:
                        image = Image.blend(
                            picture(a, time),
                            picture(b, time),
                            0.5 + (time - shots[a].end) / shots[a].dissolve,
                        )
                film.mux(stream.encode(av.VideoFrame.from_image(image)))
            film.mux(stream.encode())
        os.replace(new, path)
    except av.error.FFmpegError as error:
        raise OSError(f"{path}: can't be written as a film ({error.strerror})") from None
    finally:
        new.unlink(missing_ok=True)
