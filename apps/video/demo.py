"""Synthetic videos of photographs, with known cuts.

shots = plan(seconds=60, seed=0)
make("video.mp4", images, shots)      # one image per shot, slow pan and zoom, cuts and dissolves
"""

import random
from typing import NamedTuple

from models.files import replacing


class Shot(NamedTuple):
    """One image on screen. `camera` holds the squares in view at the start and at the end, each (left, top,
    side) in shares of the image's centre square."""

    start: float  # seconds
    end: float
    dissolve: float  # seconds of the dissolve into the next shot, half of them before `end`; 0 is a cut
    camera: tuple


def plan(seconds, seed=0, shot_seconds=(2.0, 12.0)):
    """A list of Shots that fill `seconds`, the same for the same seed.

    Lengths are uniform in `shot_seconds`. Every other shot on average ends in a dissolve of 0.5 to 1.5 s. The
    camera moves from one random square of 75 to 100 % of the side to another."""
    chance = random.Random(f"{seed}")
    shots = []
    start = 0.0
    while start < seconds:
        end = start + chance.uniform(*shot_seconds)
        end = end if seconds - end >= shot_seconds[0] else seconds
        dissolve = chance.choice((0.0, chance.uniform(0.5, 1.5)))
        sides = (chance.uniform(0.75, 1), chance.uniform(0.75, 1))
        camera = tuple((chance.uniform(0, 1 - side), chance.uniform(0, 1 - side), side) for side in sides)
        shots.append(Shot(start, end, dissolve, camera))
        start = end
    return shots


def make(path, images, shots, size=224, fps=8):
    """Write a silent MP4 video of `size` x `size` pixels in which shot i shows images[i] (RGB PIL)."""
    ticks = range(round(shots[-1].end * fps))
    write_video(path, (_frame(images, shots, tick / fps, size) for tick in ticks), fps)


def write_video(path, frames, fps, **options):
    """Write RGB PIL images of one size as a silent MP4 video (H.264). `options` are x264's.

    The same arguments give the same file on every machine: x264's output depends on its number of threads, by
    default the number of CPUs, so it gets one. Raises OSError when the file cannot be written."""
    import av

    with replacing(path) as new:
        try:
            with av.open(str(new), "w", format="mp4") as video:
                stream = video.add_stream("libx264", rate=fps, options=options)
                stream.codec_context.thread_count = 1
                stream.pix_fmt = "yuv420p"
                for frame in frames:
                    if not stream.codec_context.is_open:
                        stream.width, stream.height = frame.size
                    video.mux(stream.encode(av.VideoFrame.from_image(frame)))
                video.mux(stream.encode())
        except av.error.FFmpegError as error:
            raise OSError(f"FFmpeg: {error.strerror}") from None  # `replacing` adds the path


def _frame(images, shots, time, size):
    """What is on screen at `time`: the view of one shot, or a blend of two during a dissolve."""
    from PIL import Image

    now = next((i for i, shot in enumerate(shots) if time < shot.end), len(shots) - 1)
    frame = _view(images[now], shots[now], time, size)
    for i in (now - 1, now):  # the dissolves at the beginning and at the end of this shot
        if 0 <= i < len(shots) - 1 and abs(time - shots[i].end) < shots[i].dissolve / 2:
            share = 0.5 + (time - shots[i].end) / shots[i].dissolve
            before, after = (_view(images[j], shots[j], time, size) for j in (i, i + 1))
            frame = Image.blend(before, after, share)
    return frame


def _view(image, shot, time, size):
    """The square of an image that the camera of a shot shows at `time`, scaled to `size` x `size`."""
    from PIL import Image

    done = min(max((time - shot.start) / (shot.end - shot.start), 0), 1)
    left, top, side = (a + done * (b - a) for a, b in zip(*shot.camera))
    square = min(image.size)
    x = (image.width - square) / 2 + left * square
    y = (image.height - square) / 2 + top * square
    box = (x, y, x + side * square, y + side * square)
    return image.resize((size, size), Image.Resampling.BILINEAR, box)
