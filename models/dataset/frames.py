"""The frames of a video at given times, and the frames of a file.

for time, image in read_frames("video.mp4", every(0.5)): ...    # upright RGB PIL images, seconds
duration("video.mp4")                                           # seconds, or None
open_frames("photo.jpg")                                        # a list of images; an image file has one
open_frames("clip.mp4", 8)                                      # a video has eight, evenly spaced
"""

import itertools
import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from PIL import UnidentifiedImageError

from .clips import SLACK, frames_at
from .images import DECODE_ERRORS, MAX_PIXELS, check_file, is_video, open_image, opened, upright_rgb
from .video import UNDECODABLE, UNREADABLE, Report, intervals, length

FRAMES = 8  # of a video, unless --frames says otherwise
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # image formats that hold animations; Pillow reads them
# Browsers and FFmpeg show a frame of 10 ms or less for 100 ms: it means "as fast as you can".
SHORTEST, INSTEAD = 0.010, 0.100


def open_frames(source, count=FRAMES):
    """The frames of a file (path or binary file object), a list of upright RGB PIL images: an image file has
    one, also if it is animated. A video, recognised by its content, has `count`, see `open_clip`.

    Raises what `open_image` and `open_clip` do."""
    if not is_video(source):
        return [open_image(source)]
    return [image for _, image in open_clip(source, count)]


def open_clip(source, count=FRAMES):
    """[(time, RGB PIL image), ...] of a video (path or binary file object): what is on screen in the middle
    of each of `count` equal parts, in seconds from the first frame.

    A video of fewer frames shows some of them at several times. Only the frames that are needed are decoded,
    see models.dataset.clips. Raises ValueError for a video that ends early or is damaged where it is read."""
    return _read(source, partial(frames_at, times=lambda end: middles(end, count)))


def clip_times(path, count=FRAMES):
    """The times at which `open_clip` reads a video, a list of seconds. Decodes no more than its beginning."""
    found = []

    def times(end):
        found[:] = middles(end, count)
        return []

    _read(path, partial(frames_at, times=times))
    return found


def middles(end, count):
    """The middles of `count` equal parts of `end` seconds, a list."""
    return [(i + 0.5) * end / count for i in range(count)]


def frame_at(path, time):
    """The RGB PIL image on screen at a time of a video, in seconds from the first frame."""
    return _read(path, partial(frames_at, times=lambda end: [time]))[0][1]


def _read(source, work):
    """work(file, name) of a path or of an open file."""
    if not isinstance(source, (str, os.PathLike)):
        return work(source, "image")
    with open(check_file(source), "rb") as file:
        return work(file, source)


def every(step):
    """Yield 0, step, 2 * step, ... without end. `itertools.count(0, step)` accumulates rounding errors."""
    return (i * step for i in itertools.count())


def read_frames(path, times, skip_bad=False, report=None):
    """Yield (time, RGB PIL image as players show it): the frame of a video or of an animated image on screen
    at each of `times`, until it ends.

    `times` are ascending, in seconds from the first frame. Frames are found by their timestamps, so a
    variable frame rate is right. The file is decoded once, and only the frames asked for are converted. "-"
    is standard input, and a device such as /dev/video0 a camera: each frame comes when the next has arrived.
    `report` (a models.dataset.video.Report) is filled in while reading. Raises FileNotFoundError, and
    ValueError for a file that is no video, has no frames, is damaged or ends early; with `skip_bad` the
    damaged frames are left out and counted."""
    report = Report() if report is None else report
    times = iter(times)
    due = next(times, None)
    with _opened(path) as file:
        for end, show in _intervals(file, path, report, skip_bad):
            while due is not None and due + SLACK < end:
                yield due, show()
                due = next(times, None)
            if due is None:
                return


def _opened(path):
    """The binary file object of a path, with None in its place for a camera."""
    if str(path) == "-":
        return open(0, "rb", buffering=0, closefd=False)
    if Path(path).is_char_device():
        return nullcontext()
    return open(check_file(path), "rb")


def duration(path):
    """The length in seconds that a video declares. None when it declares none or cannot be read."""
    import av

    if not Path(path).is_file():
        return None
    try:
        with open(path, "rb") as file:
            return length(file)
    except (OSError, av.error.FFmpegError):
        return None


def _intervals(file, name, report, skip_bad):
    """The intervals of a video or an animated image, see models.dataset.video."""
    if file is None or not file.seekable():
        yield from intervals(file, name, report, skip_bad)
        return
    try:
        image = opened(file, ANIMATED)
        count = getattr(image, "n_frames", 1)
    except UnidentifiedImageError:
        image = None
    except DECODE_ERRORS as error:
        raise ValueError(f"{name}: cannot be read as an animated image ({error})") from None
    if image is None:
        file.seek(0)
        yield from intervals(file, name, report, skip_bad)
    else:
        yield from _animation(image, count, name, report, skip_bad)
    if report.decoded == 1:
        _check_sequence(file, name, report, skip_bad)


def _check_sequence(file, name, report, skip_bad):
    """Of a damaged sequence in AVIF (brand "avis"), decoders give the first frame alone, without an error.
    ValueError then; with `skip_bad`, the rest is counted as one."""
    file.seek(8)
    if file.read(4) != b"avis":
        return
    if not skip_bad:
        raise ValueError(f"{name}: damaged after its first frame; leave out what is damaged with --skip-bad")
    report.left_out[UNREADABLE] += 1
    report.seen += 1


def _animation(image, count, name, report, skip_bad):
    """Yield (end, show) of the `count` frames of an open animated PIL image."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"{name}: {image.width} x {image.height} pixels are over the limit of {MAX_PIXELS:,}"
        )
    hidden = getattr(image, "default_image", False)  # of an APNG: for readers that know no animations
    for number in range(int(hidden), count):
        report.seen += 1
        try:
            image.seek(number)
            image.load()
            frame = upright_rgb(image)
        except DECODE_ERRORS as error:
            if not skip_bad:
                remedy = "leave out what is damaged with --skip-bad"
                raise ValueError(f"{name}: damaged after {report.end:.1f} s ({error}); {remedy}") from None
            report.left_out[UNDECODABLE] += 1
            continue
        report.decoded += 1
        seconds = image.info.get("duration", 0) / 1000
        report.end += seconds if seconds > SHORTEST else INSTEAD
        yield report.end, frame.copy
    if report.decoded == 0:
        raise ValueError(f"{name}: not one frame can be decoded")
