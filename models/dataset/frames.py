"""The frames of a video at given times, and the frames of a file.

for time, image in read_frames("video.mp4", every(0.5)): ...    # upright RGB PIL images, seconds
duration("video.mp4")                                           # seconds, or None
open_frames("photo.jpg")                                        # a list of images; an image file has one
"""

import itertools
import os
from pathlib import Path

from .images import check_file, open_image

MAX_HOLD = 3600.0  # seconds one frame may last; more is a broken clock, and would give millions of copies
SLACK = 1e-6  # seconds; FFmpeg's clock ticks in microseconds, so closer times are the same


def open_frames(source):
    """The frames of an image file (path or binary file object): a list of one upright RGB PIL image.
    Raises what `open_image` does."""
    return [open_image(source)]


def every(step):
    """Yield 0, step, 2 * step, ... without end. `itertools.count(0, step)` accumulates rounding errors."""
    return (i * step for i in itertools.count())


def read_frames(path, times):
    """Yield (time, upright RGB PIL image): the frame of a video on screen at each of `times`, until it ends.

    `times` are ascending, in seconds from the first frame. Frames are found by their timestamps, so a
    variable frame rate is right. The file is decoded once, and only the frames asked for are converted.
    Raises FileNotFoundError, and ValueError for a file that is no video, has no frames, is damaged or ends
    early."""
    times = iter(times)
    due = next(times, None)
    for end, frame in _intervals(path):
        while due is not None and due + SLACK < end:
            yield due, _upright(frame)
            due = next(times, None)
        if due is None:
            return


def duration(path):
    """The length in seconds that a video declares. None when it declares none or cannot be read."""
    import av

    if not Path(path).is_file():
        return None
    try:
        with av.open(os.path.abspath(path)) as video:
            return video.duration / av.time_base if video.duration else None
    except (OSError, av.error.FFmpegError):
        return None


def _intervals(path):
    """Yield (end, frame): every decoded frame of a video, and when the next one replaces it, in seconds from
    the first frame. Raises as `read_frames` does."""
    import av

    path = check_file(path)
    start = shown = None
    try:
        with av.open(os.path.abspath(path)) as video:  # FFmpeg takes a relative "a:b.mp4" for a protocol
            stream = _first_stream(video, path)
            for frame in video.decode(stream):
                if frame.time is None:
                    remedy = f"copy it into a container that has them: ffmpeg -i {path} -c copy video.mp4"
                    raise ValueError(f"{path}: its frames have no timestamps; {remedy}")
                if shown is None:
                    start = frame.time
                elif frame.time - shown.time > MAX_HOLD:
                    jump = f"from {shown.time - start:.1f} s to {frame.time - start:.1f} s"
                    raise ValueError(
                        f"{path}: its clock jumps {jump}; convert it: ffmpeg -i {path} video.mp4"
                    )
                else:
                    yield frame.time - start, shown
                shown = frame
            if shown is None:
                raise ValueError(f"{path}: not one frame can be decoded")
            end = shown.time - start + float((shown.duration or 1) * shown.time_base)
            length = float((stream.duration or 0) * stream.time_base)
            if length - end > 1:
                remedy = f"keep what is there: ffmpeg -i {path} video.mp4"
                raise ValueError(
                    f"{path}: cut off or damaged, it ends at {end:.1f} s of {length:.1f} s; {remedy}"
                )
            yield end, shown
    except av.error.FFmpegError as error:
        where = "cannot be read as a video"
        if shown is not None:
            where = f"damaged after {shown.time - start:.1f} s"
        remedy = f"if a player shows it, convert it: ffmpeg -i {path} video.mp4"
        raise ValueError(f"{path}: {where} ({error.strerror}); {remedy}") from None


def _first_stream(video, path):
    """The first video stream of an open PyAV container. ValueError when it has none."""
    import av

    cover = av.stream.Disposition.attached_pic  # a song's cover art is a video stream of one frame
    streams = [stream for stream in video.streams.video if not stream.disposition & cover]
    if not streams:
        found = ", ".join(stream.type for stream in video.streams) or "nothing"
        raise ValueError(f"{path}: it has no frames, only: {found}")
    streams[0].thread_type = "AUTO"  # several threads decode it
    return streams[0]


def _upright(frame):
    image = frame.to_image()
    if not frame.rotation:
        return image
    return image.rotate(frame.rotation, expand=True)  # both count degrees counter-clockwise
