"""The frames of a video at given times, and the frames of a file.

for time, image in read_frames("video.mp4", every(0.5)): ...    # upright RGB PIL images, seconds
duration("video.mp4")                                           # seconds, or None
open_frames("photo.jpg")                                        # a list of images; an image file has one
"""

import itertools
from pathlib import Path

from PIL import UnidentifiedImageError

from .images import DECODE_ERRORS, MAX_PIXELS, check_file, open_image, opened, upright_rgb
from .video import UNDECODABLE, UNREADABLE, Report, intervals, length

SLACK = 1e-6  # seconds; FFmpeg's clock ticks in microseconds, so closer times are the same
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # image formats that hold animations; Pillow reads them
# Browsers and FFmpeg show a frame of 10 ms or less for 100 ms: it stands for "as fast as you can".
SHORTEST, INSTEAD = 0.010, 0.100


def open_frames(source):
    """The frames of an image file (path or binary file object): a list of one upright RGB PIL image.
    Raises what `open_image` does."""
    return [open_image(source)]


def every(step):
    """Yield 0, step, 2 * step, ... without end. `itertools.count(0, step)` accumulates rounding errors."""
    return (i * step for i in itertools.count())


def read_frames(path, times, skip_bad=False, report=None):
    """Yield (time, RGB PIL image as players show it): the frame of a video or of an animated image on screen
    at each of `times`, until it ends.

    `times` are ascending, in seconds from the first frame. Frames are found by their timestamps, so a
    variable frame rate is right. The file is decoded once, and only the frames asked for are converted.
    `report` (a models.dataset.video.Report) is filled in while reading. Raises FileNotFoundError, and
    ValueError for a file that is no video, has no frames, is damaged or ends early; with `skip_bad` the
    damaged frames are left out and counted."""
    report = Report() if report is None else report
    times = iter(times)
    due = next(times, None)
    with open(check_file(path), "rb") as file:
        for end, show in _intervals(file, path, report, skip_bad):
            while due is not None and due + SLACK < end:
                yield due, show()
                due = next(times, None)
            if due is None:
                return


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
