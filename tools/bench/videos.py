"""Rows of videos: a few frames of a long one against decoding it, and an index of an hour."""

import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.prepare import write_csv

from .data import PACKAGED, captions_of
from .timing import Row, process, side_by_side, timed

MINUTES, SIZE, RATE = 10, 480, 25  # of the video: pixels of a side, frames per second
EACH_MINUTE = 6  # frames of the index


def videos(args):
    """Eight frames of a ten-minute video against decoding it; six such videos in a search index."""
    from models.dataset import open_clip
    from models.dataset.frames import read_frames

    with TemporaryDirectory() as folder:
        path = Path(folder, "long.mp4")
        make_long(args, path)
        found = open_clip(path, 8)
        times = [time for time, _ in found]
        expected = [image.tobytes() for _, image in read_frames(path, times)]
        same = sum(image.tobytes() == other for (_, image), other in zip(found, expected))
        calls = [partial(open_clip, path, 8), partial(decode, path)]
        ours, whole = side_by_side(calls, min(3, args.repeats))
        what = f"8 frames of {MINUTES} minutes, {SIZE} x {SIZE}, s"
        yield Row(
            what, ours, f"FFmpeg decoding all of it, {whole:.1f}; {same} of 8 frames equal", whole / ours
        )
        yield from index(args, folder, path)


def make_long(args, path):
    """Write the video: a window that moves over another image of the archive every five seconds."""
    from apps.video.demo import write_video
    from models.dataset import open_image

    names = list(captions_of(args))[:20]
    images = [open_image(Path(args.images, name)).resize((2 * SIZE, 2 * SIZE)) for name in names]

    def frames():
        for number in range(60 * MINUTES * RATE):
            shot, at = divmod(number, 5 * RATE)
            yield images[shot % len(images)].crop((at, 2 * at, at + SIZE, 2 * at + SIZE))

    write_video(path, frames(), RATE, preset="veryfast")


def decode(path):
    """Decode a video and drop its frames."""
    import av

    with av.open(str(path)) as video:
        video.streams.video[0].thread_type = "AUTO"
        return sum(1 for _ in video.decode(video=0))


def index(args, folder, path):
    """An hour of video through apps.search index, against FFmpeg's decoding of it."""
    found = dict(list(captions_of(args).items())[:32])
    captions, clips = Path(folder, "few.csv"), Path(folder, "clips")
    write_csv(captions, [(name, text) for name, texts in found.items() for text in texts])
    run = partial(process, PYTHONPATH=os.getcwd())
    model = ["--run", f"{folder}/run", "--cache", f"{folder}/cache.sqlite", "--quiet"]
    flags = ["--csv", captions, "--images", args.images, "--epochs", 1, "--vision", PACKAGED]
    run("train.py", *flags, *model)
    clips.mkdir()
    content = path.read_bytes()
    for number in range(60 // MINUTES):  # other content each, so that none is in the cache
        Path(clips, f"{number}.mp4").write_bytes(content + (b"\0\0\0\x08free" * (number + 1)))
    flags = ["--index", f"{folder}/index.sqlite", "--frames", EACH_MINUTE * MINUTES]
    done = run("apps/search/__main__.py", "index", clips, *flags, *model)
    bare = 60 / MINUTES * timed(partial(decode, path))
    what = f"apps.search index, an hour of video, {60 * EACH_MINUTE} frames, s"
    yield Row(what, done.seconds, f"FFmpeg decoding all of it, {bare:.0f}", bare / done.seconds)
    yield Row("  its peak memory, GB", done.peak)
